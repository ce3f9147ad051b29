"""SMTP towards a next hop: opens sessions and probes (`posthouse.ports_relay.Connector`).

The protocol itself is `posthouse.proto.smtp_client`; this module and
`smtp_out_session` with its parts move its octets. One coarse timer watches all sessions of a
connector: a timer a command would cost more than the command.

Failures: `NextHopFailure`, always with the stage. In mode "opportunistic" a
handshake that fails is no failure: the session is opened again, in clear, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from posthouse import observe
from posthouse.errors import NextHopFailure
from posthouse.ports_relay import Target, WorkSource
from posthouse.ports_spool import Body
from posthouse.proto.client_opening import TlsWish
from posthouse.transports.smtp_out_session import HandshakeFailure, SmtpSession
from posthouse.transports.tls import ClientTls, TlsMode

_KEEPALIVE: Final = (
    (socket.TCP_KEEPIDLE, 30),
    (socket.TCP_KEEPINTVL, 10),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 60_000),  # milliseconds: octets nobody acknowledges
)
_MAX_WITHOUT_BDAT: Final = 1000
_LINE_SECONDS: Final = 86400.0
"""For this node's own door to a turned line (ATRN), which has the time-outs of SMTP towards the
primary: many sessions share the line, one that waits for others' large messages is not stuck."""
_MIN_TICK_SECONDS: Final = 0.01
_MAX_TICK_SECONDS: Final = 1.0
_WISHES: Final[dict[TlsMode, TlsWish]] = {
    "none": "never",
    "opportunistic": "if_offered",
    "required": "must",
    "verified": "must",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutSettings:
    """How sessions are opened and how long a peer may take. Times in seconds.

    helo_name: our name in EHLO. ca_file: roots for "verified" instead of the system's.
    chunking: use BDAT where offered. Time-outs are those of RFC 5321 §4.5.3.2; they
    begin anew with every reply, `data_block_timeout` with every octet the peer takes.
    """

    helo_name: str
    tls: TlsMode = "opportunistic"
    ca_file: Path | None = None
    chunking: bool = True
    connect_timeout: float = 30.0  # as Postfix's smtp_connect_timeout
    greeting_timeout: float = 300.0
    command_timeout: float = 300.0
    data_block_timeout: float = 180.0
    final_dot_timeout: float = 600.0


class SmtpConnector:
    """Opens sessions with next hops.

    open_body: reads a stored message that is not in memory (`Spool.open_body`).
    Raises ConfigError when `ca_file` cannot be used.
    """

    def __init__(self, settings: OutSettings, open_body: Callable[[int], Awaitable[Body]]) -> None:
        self._settings = settings
        self._open_body = open_body
        self._tls = ClientTls(settings.tls, ca_file=settings.ca_file)
        self._sessions: set[SmtpSession] = set()
        self._without_bdat: set[Target] = set()  # they offered it and did not know it
        self._timer: asyncio.TimerHandle | None = None
        shortest = min(
            settings.greeting_timeout,
            settings.command_timeout,
            settings.data_block_timeout,
            settings.final_dot_timeout,
        )
        self._tick_seconds = min(max(shortest / 4, _MIN_TICK_SECONDS), _MAX_TICK_SECONDS)

    async def connect(self, target: Target, source: WorkSource) -> SmtpSession:
        """Open a session; it asks `source` for work in the loop's next turn.

        Raises NextHopFailure.
        """
        session = await self._open(target)
        session.start(source)
        return session

    async def probe(
        self, target: Target, recipients: Sequence[str] = ()
    ) -> Sequence[tuple[int, str]]:
        """Ask whether mail is taken, with MAIL FROM:<> and RCPT, and leave in good order.

        Recipients that are not in ASCII are left out. Returns the replies to RCPT.
        Raises NextHopFailure; its stage is "mail" when MAIL was refused.
        """
        session = await self._open(target)
        try:
            probed = await session.probe([r for r in recipients if r.isascii()])
        except BaseException:  # cancelled, too: it has waited long enough
            session.drop("given up")
            raise
        session.quit()  # its end is watched by the clock of all sessions
        reply = probed.reply
        if reply.code >= 300:
            raise NextHopFailure(
                f"{_name(target)} refused a probe: {reply}",
                stage="mail",
                reply_code=reply.code,
                reply_text=reply.text,
            )
        return [(rcpt.code, rcpt.text) for rcpt in probed.rcpts]

    async def close(self) -> None:
        """Drop every session; what was under way is given back to its source."""
        sessions = list(self._sessions)
        for session in sessions:
            session.drop("shutting down")
        for session in sessions:
            await session.wait_end()

    # ------------------------------------------------------------------ opening

    async def _open(self, target: Target) -> SmtpSession:
        wish = _WISHES[self._settings.tls]
        if target.address.startswith("/"):  # this node itself; its line has TLS as it was opened
            return await self._try(target, "never")
        if self._settings.tls != "opportunistic":
            return await self._try(target, wish)
        try:
            return await self._try(target, wish)
        except HandshakeFailure as failure:
            why = failure.detail.partition(": ")[2]  # without the name
            observe.note(
                "smtp",
                f"TLS with {_name(target)} failed: {why}; sending in clear",
                next_hop=target.host,
                address=target.address,
            )
        return await self._try(target, "never")

    async def _try(self, target: Target, wish: TlsWish) -> SmtpSession:
        settings = self._settings
        if target.address.startswith("/"):  # it waits for its turn on the line, then its primary
            settings = dataclasses.replace(
                settings,
                command_timeout=_LINE_SECONDS,
                data_block_timeout=_LINE_SECONDS,
                final_dot_timeout=_LINE_SECONDS,
            )
        if target in self._without_bdat:
            settings = dataclasses.replace(settings, chunking=False)
        session = SmtpSession(target, settings, wish, self._tls, self._open_body)
        if settings.chunking:
            session.when_bdat_refused(self._note_bdat_refused)
        try:
            async with asyncio.timeout(settings.connect_timeout):
                transport = await connect(lambda: session, target)
        except TimeoutError as error:
            raise NextHopFailure(
                f"connect to {_name(target)}: timed out", stage="connect"
            ) from error
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise NextHopFailure(f"connect to {_name(target)}: {why}", stage="connect") from error
        _notice_death(transport)
        self._watch(session)
        try:
            greeted = await session.opened()
        except BaseException:  # cancelled, too: nobody would hold the connection
            session.drop("given up")
            raise
        if greeted.tls_refused:
            observe.note(
                "smtp",
                f"{_name(target)} refused STARTTLS: {greeted.tls_refused}; sending in clear",
                next_hop=target.host,
                address=target.address,
            )
        return session

    def _note_bdat_refused(self, target: Target) -> None:
        if len(self._without_bdat) >= _MAX_WITHOUT_BDAT:
            self._without_bdat.pop()
        self._without_bdat.add(target)

    # ------------------------------------------------------------------ time-outs

    def _watch(self, session: SmtpSession) -> None:
        self._sessions.add(session)
        session.when_gone(self._sessions.discard)
        if self._timer is None:
            self._tick()

    def _tick(self) -> None:
        self._timer = None
        if not self._sessions:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        for session in list(self._sessions):
            session.check_time(now)
        self._timer = loop.call_later(self._tick_seconds, self._tick)


async def connect(make: Callable[[], asyncio.Protocol], target: Target) -> asyncio.Transport:
    """Connect to an IP address, or to the unix socket that an absolute path names. Raises OSError.

    A socket address holds 107 octets of path, which is little: it is reached through /proc.
    """
    loop = asyncio.get_running_loop()
    if not target.address.startswith("/"):
        transport, _ = await loop.create_connection(make, target.address, target.port)
        return transport
    directory, _, name = target.address.rpartition("/")
    holder = os.open(directory or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        transport, _ = await loop.create_unix_connection(make, f"/proc/self/fd/{holder}/{name}")
    finally:
        os.close(holder)
    return transport


def _notice_death(transport: asyncio.Transport) -> None:
    """Let the kernel find out that the peer's host died: in about a minute, not in two hours."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    if sock.family == socket.AF_UNIX:
        return
    with contextlib.suppress(OSError):  # gone already, which is told elsewhere
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _name(target: Target) -> str:
    return f"{target.host}[{target.address}]:{target.port}"
