"""One session with a next hop: drives the client automaton over a socket.

Callbacks all through: what arrives goes to the automaton, outcomes go to the
source, new work comes from it, and all that is due leaves in one write.

The parts: `smtp_out_work` (messages in and out, the hot path), `smtp_out_line`
(octets and TLS), `smtp_out_patience` (time-outs); here is how it begins and ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from posthouse.errors import NextHopFailure
from posthouse.ports_relay import SessionEnd, Target, WorkSource
from posthouse.ports_spool import Body
from posthouse.proto.client_events import (
    AuthAnswered,
    ContentWanted,
    Ended,
    Event,
    Greeted,
    Probed,
    Returned,
    Settled,
    TlsWanted,
)
from posthouse.proto.client_opening import TlsWish
from posthouse.proto.smtp_client import ClientSession
from posthouse.transports.smtp_out_line import OutLine
from posthouse.transports.smtp_out_patience import CLOSING_SECONDS, Patience
from posthouse.transports.smtp_out_work import Work
from posthouse.transports.tls import ClientTls

if TYPE_CHECKING:
    from posthouse.transports.smtp_out import OutSettings


class HandshakeFailure(NextHopFailure):
    """The peer offered TLS, but the handshake came to nothing."""


class SmtpSession(asyncio.Protocol):
    """See `posthouse.ports_relay.Session`. Made and opened by `SmtpConnector`."""

    def __init__(
        self,
        target: Target,
        settings: OutSettings,
        wish: TlsWish,
        tls: ClientTls,
        open_body: Callable[[int], Awaitable[Body]],
    ) -> None:
        self.target = target
        self._loop = loop = asyncio.get_running_loop()
        self._client = client = ClientSession(
            settings.helo_name, tls=wish, chunking=settings.chunking
        )
        self._line = line = OutLine(client, tls, target.host, self._lose)
        self._work = Work(client, line, open_body, lose=self._lose, rested=self._tell_end)
        self._patience = Patience(settings, client, line, loop.time())
        self._closing_at: float | None = None
        self._ended: Ended | None = None
        self._opened: asyncio.Future[Greeted] = loop.create_future()
        self._probed: asyncio.Future[Probed] | None = None
        self._end: asyncio.Future[SessionEnd] = loop.create_future()
        self._when_gone: list[Callable[[SmtpSession], object]] = []

    # ------------------------------------------------------------------ ports_relay.Session

    def poke(self) -> None:
        """Work may have come: ask the source again if idle. Harmless at any time."""
        self._work.pump()

    def quit(self) -> None:
        """End in good order once what is under way has its answers."""
        self._work.quit()

    def idle_since(self) -> float | None:
        """Loop time since when nothing is under way, else None."""
        return self._work.idle_since

    async def wait_end(self) -> SessionEnd:
        """Wait until the connection is gone."""
        return await asyncio.shield(self._end)

    # ------------------------------------------------------------------ for the connector

    async def opened(self) -> Greeted:
        """Wait until mail may go. Raises NextHopFailure."""
        greeted = await self._opened
        if self._ended is not None:  # greeted, and ended in the same breath
            raise self._failure(self._ended)
        return greeted

    def start(self, source: WorkSource) -> None:
        """Ask `source` for work from the loop's next turn on."""
        self._work.start(source)

    async def probe(self, recipients: Sequence[str] = ()) -> Probed:
        """The replies to MAIL FROM:<> and RCPT. Raises NextHopFailure when they do not come."""
        self._probed = self._loop.create_future()
        self._client.probe(recipients)
        if self._client.over:
            self._fail_waiters()
        self._line.flush()
        return await self._probed

    def drop(self, why: str) -> None:
        """Close at once; what is under way is returned."""
        self._lose(why)

    def when_bdat_refused(self, callback: Callable[[Target], object]) -> None:
        """Call back when the peer offered BDAT and turns out not to know it."""
        self._work.on_bdat_refused = lambda: callback(self.target)

    def when_gone(self, callback: Callable[[SmtpSession], object]) -> None:
        """Call back when the connection is gone (at once if it is)."""
        if self._line.gone:
            callback(self)
        else:
            self._when_gone.append(callback)

    def check_time(self, now: float) -> None:
        """Drop the session when the peer has taken too long. `now`: loop time."""
        if self._line.transport is None or self._line.gone:
            return
        if self._closing_at is not None:
            if now - self._closing_at >= CLOSING_SECONDS:
                self._line.abort()
            return
        overdue = self._patience.find_overdue(now)
        if overdue is not None:
            self._lose(f"timed out waiting for {overdue}")

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._line.transport = transport  # type: ignore[assignment]  # create_connection's kind

    def data_received(self, data: bytes) -> None:
        line, work = self._line, self._work
        if line.tls is None:
            events = self._client.feed(data)
        else:
            plain = line.decrypt(data)
            events = self._client.feed(plain) if plain else []
        for event in events:
            if type(event) is Settled:
                work.finished(event)
            else:
                self._on_event(event)
        work.pump()
        if line.tls is not None and line.tls.eof:
            self._lose("lost connection")

    def pause_writing(self) -> None:
        self._line.paused = True

    def resume_writing(self) -> None:
        if not self._line.resume():
            self._work.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        self._line.gone = True
        why = "lost connection" if exc is None else f"lost connection: {exc}"
        self._handle(self._client.connection_lost(why))
        self._work.idle_since = None
        self._line.wake_writer()
        self._fail_waiters()
        for callback in self._when_gone:
            callback(self)
        self._tell_end()

    # ------------------------------------------------------------------ events

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            self._on_event(event)

    def _on_event(self, event: Event) -> None:
        match event:
            case Settled():
                self._work.finished(event)
            case Returned():
                self._work.returned(event)
            case ContentWanted():
                self._work.stream(event)
            case Greeted():
                if not self._opened.done():
                    self._opened.set_result(event)
            case TlsWanted():
                self._line.shake_hands()
            case AuthAnswered():
                assert self._work.source is not None
                self._work.source.auth_answered(
                    event.credentials, code=event.reply.code, text=event.reply.text
                )
            case Probed():
                if self._probed is not None and not self._probed.done():
                    self._probed.set_result(event)
            case Ended():
                self._close(event)

    # ------------------------------------------------------------------ ends

    def _close(self, ended: Ended) -> None:
        self._ended = ended
        line = self._line
        if line.transport is None or line.gone:
            return
        if ended.failure is not None and not ended.flush:
            line.abort()
            return
        self._closing_at = self._loop.time()
        line.finish()

    def _lose(self, why: str) -> None:
        """The session is no use any more: tell so and drop the connection."""
        self._handle(self._client.connection_lost(why))
        self._line.abort()

    def _fail_waiters(self) -> None:
        ended = self._ended or Ended(failure="lost connection", stage="session")
        for future in (self._opened, self._probed):
            if future is not None and not future.done():
                future.set_exception(self._failure(ended))

    def _failure(self, ended: Ended) -> NextHopFailure:
        target = self.target
        kind = HandshakeFailure if self._line.shaking else NextHopFailure
        return kind(
            f"{target.host}[{target.address}]:{target.port}: {ended.failure or 'session ended'}",
            stage=ended.stage or "session",
            reply_code=ended.reply_code,
            reply_text=ended.reply_text,
        )

    def _tell_end(self) -> None:
        """Settle `wait_end` once the connection is gone and no task is left."""
        if not self._line.gone or self._work.tasks or self._end.done():
            return
        ended = self._ended or Ended()
        self._end.set_result(
            SessionEnd(
                failure=None if self._work.own_fault else ended.failure,
                stage=ended.stage,
                reply_code=ended.reply_code,
                reply_text=ended.reply_text,
            )
        )
