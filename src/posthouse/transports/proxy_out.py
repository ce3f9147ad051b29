"""SMTP towards the primary for `standby = "proxy"` (`posthouse.ports_standby`).

The protocol is `proto.lockstep_client`; this module moves its octets and keeps
time. Failures: `NextHopFailure` with the stage. In mode "opportunistic" a
handshake that fails sends the session out again, in clear, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from typing import Final

from posthouse.errors import NextHopFailure, TlsFailed
from posthouse.mail.credentials import Credentials
from posthouse.mail.envelope import Recipient
from posthouse.mail.reply import Reply
from posthouse.ports_relay import Target
from posthouse.ports_tls import TlsChannel
from posthouse.proto.client_auth import SessionAuth
from posthouse.proto.client_opening import TlsWish
from posthouse.proto.lockstep_client import (
    Answered,
    Broken,
    Event,
    HandshakeWanted,
    LockstepClient,
    Opened,
)
from posthouse.proto.replies_in import PeerReply
from posthouse.transports.smtp_out import OutSettings
from posthouse.transports.tls import ClientTls

_WISHES: Final[dict[str, TlsWish]] = {
    "none": "never",
    "opportunistic": "if_offered",
    "required": "must",
    "verified": "must",
}


class _HandshakeFailed(NextHopFailure):
    """TLS was offered and came to nothing."""


class ProxyConnector:
    """See `ports_standby.PrimaryConnector`. Raises ConfigError when `ca_file` cannot be used."""

    def __init__(self, settings: OutSettings) -> None:
        self._settings = settings
        self._tls = ClientTls(settings.tls, ca_file=settings.ca_file)
        self._sessions: set[ProxySession] = set()

    async def open(self, target: Target) -> ProxySession:
        """Connect, greet, EHLO, STARTTLS as configured. Raises NextHopFailure."""
        wish = _WISHES[self._settings.tls]
        if self._settings.tls == "opportunistic":
            with contextlib.suppress(_HandshakeFailed):
                return await self._try(target, wish)
            wish = "never"
        return await self._try(target, wish)

    def close(self) -> None:
        """Tear every session down."""
        for session in tuple(self._sessions):
            session.abort("shutting down")

    async def _try(self, target: Target, wish: TlsWish) -> ProxySession:
        session = ProxySession(target, self._settings, wish, self._tls)
        session.when_gone = self._sessions.discard
        loop = asyncio.get_running_loop()
        name = f"{target.host}[{target.address}]:{target.port}"
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                await loop.create_connection(lambda: session, target.address, target.port)
        except TimeoutError as error:
            raise NextHopFailure(f"connect to {name}: timed out", stage="connect") from error
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise NextHopFailure(f"connect to {name}: {why}", stage="connect") from error
        if not session.over:
            self._sessions.add(session)
        try:
            await session.opened(self._settings.greeting_timeout)
        except BaseException:  # cancelled, too
            session.abort("given up")
            raise
        return session


class ProxySession(asyncio.Protocol):
    """See `ports_standby.PrimarySession`. One awaiter at a time."""

    def __init__(
        self, target: Target, settings: OutSettings, wish: TlsWish, tls: ClientTls | None
    ) -> None:
        self.target = target
        self.when_gone: Callable[[ProxySession], object] = _nobody
        self._settings = settings
        self._client = LockstepClient(settings.helo_name, tls=wish)
        self._tls_maker = tls
        self._tls: TlsChannel | None = None
        self._transport: asyncio.Transport | None = None
        self._failure: NextHopFailure | None = None
        self._waiter: asyncio.Future[PeerReply | None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self._opened = False
        self._auth = SessionAuth()

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport  # type: ignore[assignment]  # create_connection makes this one

    def data_received(self, data: bytes) -> None:
        """Take octets from the primary."""
        channel = self._tls
        if channel is None:
            self._handle(self._client.feed(data))
            return
        before = channel.established
        try:
            plain, reply = channel.feed(data)
        except TlsFailed as error:
            self._tls_failed(error)
            return
        self._write_raw(reply)
        if channel.established and not before:
            self._handle(self._client.secured())
        if plain:
            self._handle(self._client.feed(plain))
        if channel.eof:
            self._handle(self._client.lost("lost connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        self._transport = None
        self._handle(self._client.lost("lost connection" if exc is None else f"lost: {exc}"))
        self._wake_writer()
        self.when_gone(self)

    def pause_writing(self) -> None:
        """The primary does not read."""
        self._paused = True

    def resume_writing(self) -> None:
        """It reads again."""
        self._paused = False
        self._wake_writer()

    # ------------------------------------------------------------------ ports_standby

    @property
    def over(self) -> bool:
        """It failed or was closed."""
        return self._failure is not None

    @property
    def smtputf8(self) -> bool:
        """The primary offers SMTPUTF8."""
        return self._client.extensions.smtputf8

    @property
    def size_limit(self) -> int:
        """What it announced with SIZE; 0 for no limit."""
        return self._client.extensions.size_limit or 0

    async def authenticate(self, credentials: Credentials) -> Reply | None:
        """See `ports_standby`."""
        self._auth.offered(self._client.extensions.auth, secure=self._client.secure)
        if not self._auth.wants(credentials):
            return None
        exchange = self._auth.begin(credentials)
        line: bytes | None = exchange.first
        reply: PeerReply | None = None
        while line is not None:
            if self._failure is None:
                self._client.say(line.decode().removesuffix("\r\n"))
            reply = await self._wait_raw(self._settings.command_timeout)
            assert reply is not None
            line = exchange.answer(reply)
        self._auth.end(exchange)
        assert reply is not None
        if 300 <= reply.code < 400:  # it still waits for something: no command would be one
            self.abort(f"AUTH was answered {reply}")
            raise NextHopFailure(f"AUTH was answered {reply}", stage="auth")
        return Reply(reply.code, "", reply.text)

    async def mail(
        self,
        sender: str,
        *,
        size: int,
        body: str,
        smtputf8: bool,
        ret: str,
        envid: str,
        credentials: Credentials | None = None,
    ) -> Reply:
        """See `ports_standby`."""
        offered = self._client.extensions
        line = f"MAIL FROM:<{sender}>"
        if size and offered.size_limit is not None:
            line += f" SIZE={size}"
        if body == "8BITMIME" and offered.eightbitmime:
            line += " BODY=8BITMIME"
        if smtputf8 and offered.smtputf8:
            line += " SMTPUTF8"
        if offered.dsn:
            line += f" RET={ret}" * bool(ret) + f" ENVID={envid}" * bool(envid)
        auth = self._auth.parameter(credentials)
        line += f" AUTH={auth}" * bool(auth)
        return await self._ask(line)

    async def rcpt(self, recipient: Recipient) -> Reply:
        """See `ports_standby`."""
        line = f"RCPT TO:<{recipient.address}>"
        if self._client.extensions.dsn:
            line += f" NOTIFY={recipient.notify}" * bool(recipient.notify)
            line += f" ORCPT={recipient.orcpt}" * bool(recipient.orcpt)
        return await self._ask(line)

    async def data(self) -> Reply:
        """See `ports_standby`."""
        reply = await self._ask("DATA")
        if reply.code == 354:
            self._client.begin_content()
        return reply

    def write(self, piece: bytes) -> bool:
        """See `ports_standby`."""
        if self._failure is not None or self._transport is None:
            return True
        self._write(self._client.content(piece))
        return not self._paused

    async def drain(self) -> None:
        """See `ports_standby`."""
        if not self._paused or self._failure is not None:
            return
        self._writable = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._settings.data_block_timeout):
                await self._writable
        except TimeoutError:
            self.abort("timed out waiting for the primary to read")
        finally:
            self._writable = None

    async def end(self) -> Reply:
        """See `ports_standby`."""
        if self._failure is None:
            self._client.end_content()
        return await self._wait(self._settings.final_dot_timeout)

    async def reset(self) -> None:
        """See `ports_standby`."""
        reply = await self._ask("RSET")
        if not reply.positive:  # whatever it remembers now, no message must meet it
            self.abort(f"RSET was answered {reply}")
            raise self._failure or NextHopFailure("RSET was refused", stage="session")

    def close(self) -> None:
        """QUIT without waiting for its reply: it says nothing that matters.

        A message under way is torn off without its final dot: nobody delivers half of it.
        """
        transport, failure = self._transport, self._failure
        if transport is None:
            return
        if failure is None and not (self._client.waiting or self._client.in_content):
            self._client.say("QUIT")
            self._flush()
            transport.close()
        else:
            transport.abort()
        self._failure = failure or NextHopFailure("closed", stage="session")
        self._wake(self._failure)

    # ------------------------------------------------------------------ the connector's side

    @classmethod
    def adopt(
        cls,
        transport: asyncio.Transport,
        channel: TlsChannel | None,
        rest: bytes,
        *,
        target: Target,
        settings: OutSettings,
    ) -> ProxySession:
        """Go on as the client of a connection that was turned around (ATRN).

        channel: its TLS, established, or None; rest: what the peer has said behind the turn.
        Nothing is negotiated again: who dialled in chose how. Wait for `opened`.
        """
        session = cls(target, settings, "never", None)
        session._transport, session._tls = transport, channel
        transport.set_protocol(session)
        if rest:
            session._handle(session._client.feed(rest))
        return session

    async def opened(self, seconds: float) -> None:
        """Wait until commands may be given. Raises NextHopFailure."""
        if not self._opened:
            await self._wait_raw(seconds)

    def abort(self, why: str) -> None:
        """Tear the connection down; whoever waits hears `why`."""
        self._handle(self._client.lost(why))
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------ inside

    async def _ask(self, line: str) -> Reply:
        if self._failure is None:
            if any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in line):
                return Reply(553, "5.1.3", "a character that no command can carry")
            self._client.say(line)
        return await self._wait(self._settings.command_timeout)

    async def _wait(self, seconds: float) -> Reply:
        reply = await self._wait_raw(seconds)
        assert reply is not None
        return Reply(reply.code, "", reply.text)

    async def _wait_raw(self, seconds: float) -> PeerReply | None:
        if self._failure is not None:
            raise self._failure
        self._waiter = asyncio.get_running_loop().create_future()
        self._flush()
        try:
            async with asyncio.timeout(seconds):
                return await self._waiter
        except TimeoutError:
            self.abort("timed out")
            assert self._failure is not None
            raise self._failure from None
        finally:
            self._waiter = None

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case Opened():
                    self._opened = True
                    self._tell(None)
                case Answered():
                    self._tell(event.reply)
                case HandshakeWanted():
                    self._start_tls()
                case Broken():
                    self._fail(event)
        self._flush()

    def _start_tls(self) -> None:
        assert self._tls_maker is not None  # else it was never asked for
        try:
            self._tls = self._tls_maker.open_channel(self.target.host)
            self._write_raw(self._tls.start())
        except TlsFailed as error:
            self._tls_failed(error)

    def _tls_failed(self, error: TlsFailed) -> None:
        self._write_raw(error.alert)
        kind = NextHopFailure if self._opened else _HandshakeFailed
        self._failure = self._failure or kind(f"TLS failed: {error.detail}", stage="starttls")
        self.abort(error.detail)

    def _fail(self, event: Broken) -> None:
        if self._failure is None:
            code, text = (event.reply.code, event.reply.text) if event.reply else (0, "")
            self._failure = NextHopFailure(
                event.why, stage=event.stage, reply_code=code, reply_text=text
            )
        self._wake(self._failure)
        if self._transport is not None:
            self._transport.abort()

    def _tell(self, reply: PeerReply | None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(reply)

    def _wake(self, failure: NextHopFailure) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(failure)
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _flush(self) -> None:
        out = self._client.take_output()
        if out:
            self._write(out)

    def _write(self, plain: bytes) -> None:
        if self._tls is not None and self._tls.established:
            try:
                plain = self._tls.wrap(plain)
            except TlsFailed as error:
                self._tls_failed(error)
                return
        self._write_raw(plain)

    def _write_raw(self, octets: bytes) -> None:
        if octets and self._transport is not None and not self._transport.is_closing():
            self._transport.write(octets)


def _nobody(_session: ProxySession) -> None:
    """Until the connector wants to know."""
