"""The door for on-demand mail relay (RFC 2645, port 366): who dials in fetches mail.

Moves octets between a socket, an optional TLS channel and `proto.odmr_server`.
Logins and turns are decided elsewhere. When a turn is granted, the connection
is given away, with its TLS and what was received behind the turn, and the door
forgets it.

Bounds: connections in all and from one network, 10 minutes idle (RFC 2645 §5.3
asks for that much; a minute for who has not logged in), three failed logins a
connection, a pause after each so that secrets cannot be guessed quickly, and
little is read ahead while an answer is awaited.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, cast

from posthouse import observe
from posthouse.domain.client_network import client_network, plain_address
from posthouse.errors import TlsFailed
from posthouse.mail.reply import Reply
from posthouse.ports_session import SessionFacts
from posthouse.ports_tls import TlsChannel, TlsServer
from posthouse.proto.odmr_server import (
    Closing,
    CramLogin,
    Etrn,
    Event,
    OdmrServer,
    PlainLogin,
    StartTls,
    Turn,
)

IDLE_SECONDS: Final = 600.0
UNKNOWN_SECONDS: Final = 60.0
"""In all, for who has not logged in: a stranger's connections must not keep a primary out."""
MAX_CONNECTIONS: Final = 100
MAX_FROM_NETWORK: Final = 10
_READ_AHEAD_BYTES: Final = 1 << 16
LOGIN_PAUSE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A connection that was turned around: the peer waits for a client's EHLO, and greets first."""

    user: str
    address: str
    transport: asyncio.Transport
    channel: TlsChannel | None
    rest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OdmrDesk:
    """Who decides. secrets: by user; challenge: a fresh one for CRAM-MD5.

    turn: what to answer to ATRN (user, domains, tls); positive: `take` gets the line next.
    """

    hostname: str
    secrets: Mapping[str, str]
    challenge: Callable[[], str]
    turn: Callable[[str, tuple[str, ...], str], Awaitable[Reply]]
    take: Callable[[Line], None]
    etrn: Callable[[str, SessionFacts], Awaitable[Reply]]
    tls: TlsServer | None = None


class OdmrKeeper:
    """Knows every session; `desk` may be replaced (reload)."""

    def __init__(self, desk: OdmrDesk, *, pause_seconds: float = LOGIN_PAUSE_SECONDS) -> None:
        self.desk = desk
        self.pause_seconds = pause_seconds
        self.sessions: set[OdmrDoor] = set()

    def has_room(self, network: str) -> bool:
        """Tell whether one more may come from there."""
        if len(self.sessions) >= MAX_CONNECTIONS:
            return False
        return sum(one.network == network for one in self.sessions) < MAX_FROM_NETWORK

    def make_session(self) -> OdmrDoor:
        """The protocol factory."""
        return OdmrDoor(self)

    def close(self) -> None:
        """End every session."""
        for session in tuple(self.sessions):
            session.end("421 4.3.2 Service shutting down")


class OdmrDoor(asyncio.Protocol):
    """One connection."""

    def __init__(self, keeper: OdmrKeeper) -> None:
        self._keeper = keeper
        self._desk = keeper.desk
        self._loop = asyncio.get_running_loop()
        self._server = OdmrServer(
            self._desk.hostname,
            offer_starttls=self._desk.tls is not None,
            challenge=self._desk.challenge,
        )
        self._transport: asyncio.Transport | None = None
        self._channel: TlsChannel | None = None
        self._address = ""
        self.network = ""
        self._stalled = False
        self._unknown: asyncio.TimerHandle | None = None  # until somebody has logged in
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, or turn away."""
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._address = plain_address(peer[0]) if peer else ""
        self.network = client_network(self._address) if peer else ""
        if not self._keeper.has_room(self.network):
            self._transport.write(b"421 4.7.0 Too many connections\r\n")
            self._transport.close()
            return
        self._keeper.sessions.add(self)
        self._unknown = self._loop.call_later(UNKNOWN_SECONDS, self.end, "421 4.4.2 timeout")
        self._server.greet()
        self._send()
        self._touch()

    def data_received(self, data: bytes) -> None:
        """Take octets."""
        self._touch()
        if self._channel is not None:
            before = self._channel.established
            try:
                data, reply = self._channel.feed(data)
            except TlsFailed as error:
                observe.note("odmr", f"{self._address}: TLS failed: {error.detail}")
                self._write(error.alert)
                self._close()
                return
            self._write(reply)
            if self._channel.established and not before:
                self._server.tls_started(self._channel.describe())
        self._server.receive(data)
        if self._task is not None and self._server.buffered_bytes > _READ_AHEAD_BYTES:
            self._stall()
        self._pump()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Gone."""
        self._forget()

    # ------------------------------------------------------------------ inside

    def end(self, line: str) -> None:
        """Say a last line and close."""
        self._say_raw(f"{line}\r\n".encode())
        self._close()

    def _pump(self) -> None:
        while self._task is None and self._transport is not None:
            event = self._server.next_event()
            self._send()
            if event is None:
                return
            self._handle(event)

    def _handle(self, event: Event) -> None:
        match event:
            case StartTls():
                assert self._desk.tls is not None  # else it was never offered
                self._channel = self._desk.tls.open_channel()
                self._channel.start()
            case Closing():
                self._close()
            case _:
                self._task = self._loop.create_task(self._decide(event))
                self._task.add_done_callback(self._decided)

    async def _decide(self, event: Event) -> None:
        closing: Closing | None = None
        match event:
            case CramLogin() | PlainLogin():
                closing = await self._login(event)
            case Turn():
                await self._turn(event)
            case Etrn():
                facts = SessionFacts(address=self._address, network="", identity=self._server.user)
                self._server.answer(await self._desk.etrn(event.node, facts))
        self._send()
        if closing is not None:
            self._close()

    async def _login(self, login: CramLogin | PlainLogin) -> Closing | None:
        good = check_login(login, self._desk.secrets.get(login.user))
        if not good:
            observe.note("odmr", f"{self._address}: authentication failed for {login.user!r}")
            await asyncio.sleep(self._keeper.pause_seconds)
        return self._server.answer_login(good=good, user=login.user)

    async def _turn(self, event: Turn) -> None:
        server, transport = self._server, self._transport
        reply = await self._desk.turn(server.user, event.domains, server.tls)
        if self._transport is None:
            return
        if server.answer_turn(reply) is not None:
            self._send()
            self._close()
            return
        self._send()
        if server.turned and transport is not None:
            line = Line(
                user=server.user,
                address=self._address,
                transport=transport,
                channel=self._channel,
                rest=server.take_rest(),
            )
            self._forget()
            self._desk.take(line)

    def _decided(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            observe.trouble("odmr", f"session of {self._address} failed", error)
            self.end("421 4.3.0 local error in processing")
            return
        self._touch()
        if self._server.user and self._unknown is not None:
            self._unknown.cancel()
        if self._stalled and self._transport is not None:
            self._stalled = False
            self._transport.resume_reading()
        self._pump()

    def _stall(self) -> None:
        """Read no more until what is being decided has been answered."""
        if not self._stalled and self._transport is not None:
            self._stalled = True
            self._transport.pause_reading()

    def _touch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._timer = self._loop.call_later(IDLE_SECONDS, self.end, "421 4.4.2 timeout")

    def _send(self) -> None:
        self._say_raw(self._server.take_output())

    def _say_raw(self, plain: bytes) -> None:
        if not plain:
            return
        if self._channel is not None and self._channel.established:
            try:
                plain = self._channel.wrap(plain)
            except TlsFailed:
                self._close()
                return
        self._write(plain)

    def _write(self, octets: bytes) -> None:
        if octets and self._transport is not None and not self._transport.is_closing():
            self._transport.write(octets)

    def _close(self) -> None:
        transport = self._transport
        self._forget()
        if transport is not None:
            transport.close()

    def _forget(self) -> None:
        self._transport = None
        self._keeper.sessions.discard(self)
        for timer in (self._timer, self._unknown):
            if timer is not None:
                timer.cancel()
        self._timer = self._unknown = None
        if self._task is not None and self._task is not asyncio.current_task(self._loop):
            self._task.cancel()


def check_login(login: CramLogin | PlainLogin, secret: str | None) -> bool:
    """Compare in constant time; a user who does not exist costs as much as a wrong secret."""
    known = secret if secret is not None else "nobody has this secret"
    if isinstance(login, PlainLogin):
        given, wanted = login.secret.encode(), known.encode()
    else:
        # RFC 2195 names MD5; a keyed digest does not rest on what is broken in it.
        wanted = hmac.new(known.encode(), login.challenge, hashlib.md5).hexdigest().encode()
        given = login.digest.lower().encode()
    return hmac.compare_digest(given, wanted) and secret is not None
