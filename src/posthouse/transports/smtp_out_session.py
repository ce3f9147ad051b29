"""One session with a next hop: drives the client automaton over a socket.

This is the hot path of the relay, and callbacks all through: what arrives goes
to the automaton, outcomes go to the source, new work comes from it, and all
that is due leaves in one write. A message of up to `PIECE_BYTES` goes whole; a
larger one in pieces, by a task of its own that waits while the peer does not
read, so that memory stays at a few pieces however large the message is.

A message that turns out damaged is never ended: the connection is dropped
without the final dot, and no peer delivers any of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from posthouse.errors import BodyDamaged, NextHopFailure, StorageError, TlsFailed
from posthouse.ports import Body, RecipientResult, SessionEnd, Target, Transaction, WorkSource
from posthouse.proto.client_envelope import LocalRefusal
from posthouse.proto.client_events import (
    AuthAnswered,
    Awaited,
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
from posthouse.transports.tls import ClientTls, MemoryTls

if TYPE_CHECKING:
    from posthouse.transports.smtp_out import OutSettings

PIECE_BYTES: Final = 256 * 1024
_CLOSING_SECONDS: Final = 5.0  # for a peer to answer QUIT or to take our last octets
_NOT_KNOWN: Final = frozenset({500, 502, 504})  # RFC 5321 §4.2.4, from one who offered CHUNKING
_REFUSED_AT_ONCE: Final = 64  # local refusals in a row before the loop gets its turn


class HandshakeFailure(NextHopFailure):
    """The peer offered TLS, but the handshake came to nothing."""


@dataclass(slots=True)
class _Content:
    """A message that goes in pieces; head: its first piece."""

    body: Body
    head: bytes


class _MemoryBody:
    """A message that is in memory, in pieces."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._at = 0
        self.size_bytes = len(octets)

    async def read(self, limit: int) -> bytes:
        piece = self._octets[self._at : self._at + limit]
        self._at += len(piece)
        return piece

    def close(self) -> None:
        pass


class SmtpSession(asyncio.Protocol):
    """See `posthouse.ports.Session`. Made and opened by `SmtpConnector`."""

    def __init__(
        self,
        target: Target,
        settings: OutSettings,
        wish: TlsWish,
        tls: ClientTls,
        open_body: Callable[[int], Awaitable[Body]],
    ) -> None:
        self.target = target
        self._settings = settings
        self._client = ClientSession(settings.helo_name, tls=wish, chunking=settings.chunking)
        self._tls_maker = tls
        self._open_body = open_body
        self._loop = asyncio.get_running_loop()
        self.on_bdat_refused: Callable[[Target], None] | None = None
        self._transport: asyncio.Transport | None = None
        self._tls: MemoryTls | None = None
        self._source: WorkSource | None = None
        self._pumping = False
        self._paused = False
        self._writable: asyncio.Future[None] | None = None
        self._preparing = False
        self._quit_wanted = False
        # By id() of the transaction: one message may go as two, to two domains, at once.
        self._contents: dict[int, _Content] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._written = 0
        self._progress = (0, 0, 0)
        self._progress_at = self._loop.time()
        self._closing_at: float | None = None
        self._idle_since: float | None = None
        self._own_fault = False
        self._damaged: Transaction | None = None  # the one whose stored body broke under way
        self._ended: Ended | None = None
        self._gone = False
        self._opened: asyncio.Future[Greeted] = self._loop.create_future()
        self._probed: asyncio.Future[Probed] | None = None
        self._end: asyncio.Future[SessionEnd] = self._loop.create_future()
        self._when_gone: list[Callable[[SmtpSession], object]] = []

    # ------------------------------------------------------------------ ports.Session

    def poke(self) -> None:
        """Work may have come: ask the source again if idle. Harmless at any time."""
        self._pump()

    def quit(self) -> None:
        """End in good order once what is under way has its answers."""
        self._quit_wanted = True
        self._pump()

    def idle_since(self) -> float | None:
        """Loop time since when nothing is under way, else None."""
        return self._idle_since

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
        self._source = source
        self._loop.call_soon(self._pump)

    async def probe(self, recipients: Sequence[str] = ()) -> Probed:
        """The replies to MAIL FROM:<> and RCPT. Raises NextHopFailure when they do not come."""
        self._probed = self._loop.create_future()
        self._client.probe(recipients)
        if self._client.over:
            self._fail_waiters()
        self._flush()
        return await self._probed

    def drop(self, why: str) -> None:
        """Close at once; what is under way is returned."""
        self._handle(self._client.connection_lost(why))
        if self._transport is not None:
            self._transport.abort()

    def when_gone(self, callback: Callable[[SmtpSession], object]) -> None:
        """Call back when the connection is gone (at once if it is)."""
        if self._gone:
            callback(self)
        else:
            self._when_gone.append(callback)

    def check_time(self, now: float) -> None:
        """Drop the session when the peer has taken too long. `now`: loop time."""
        transport = self._transport
        if transport is None or self._gone:
            return
        if self._closing_at is not None:
            if now - self._closing_at >= _CLOSING_SECONDS:
                transport.abort()
            return
        buffered = transport.get_write_buffer_size()
        progress = (self._client.replies_seen, self._written, buffered)
        awaited = self._client.awaiting
        if progress != self._progress or (awaited is None and not buffered):
            self._progress = progress
            self._progress_at = now
        elif now - self._progress_at >= self._limit_seconds(awaited, buffered):
            what = awaited.value if awaited is not None and not buffered else "the peer to read"
            self._lose(f"timed out waiting for {what}")

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # create_connection makes this one

    def data_received(self, data: bytes) -> None:
        if self._tls is None:
            events = self._client.feed(data)
        else:
            plain = self._decrypt(data)
            events = self._client.feed(plain) if plain else []
        for event in events:
            if type(event) is Settled:
                self._finished(event)
            else:
                self._on_event(event)
        self._pump()
        if self._tls is not None and self._tls.eof:
            self._lose("lost connection")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._writable is not None:
            self._wake_writer()
        else:
            self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        why = "lost connection" if exc is None else f"lost connection: {exc}"
        self._handle(self._client.connection_lost(why))
        self._idle_since = None
        self._wake_writer()
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
                self._finished(event)
            case Returned():
                transaction = _transaction(event.token)
                self._forget(transaction)
                assert self._source is not None
                if transaction is self._damaged:
                    self._tell_damaged(transaction, self._source, event.why)
                else:
                    self._source.returned(transaction, why=event.why, after_dot=event.after_dot)
            case ContentWanted():
                transaction = _transaction(event.token)
                self._run(self._stream(transaction, self._contents.pop(id(transaction))))
            case Greeted():
                if not self._opened.done():
                    self._opened.set_result(event)
            case TlsWanted():
                self._shake_hands()
            case AuthAnswered():
                assert self._source is not None
                self._source.auth_answered(
                    event.credentials, code=event.reply.code, text=event.reply.text
                )
            case Probed():
                if self._probed is not None and not self._probed.done():
                    self._probed.set_result(event)
            case Ended():
                self._close(event)

    def _finished(self, event: Settled) -> None:
        transaction = _transaction(event.token)
        recipients = transaction.message.recipients
        results = [
            RecipientResult(recipient.seq, code, text, stage)
            for recipient, (code, text, stage) in zip(recipients, event.answers, strict=True)
        ]
        if (
            results[0].code >= 500
            and self.on_bdat_refused is not None
            and any(r.code in _NOT_KNOWN and r.stage == "dot" for r in results)
        ):
            self.on_bdat_refused(self.target)
        if self._contents:
            self._forget(transaction)
        assert self._source is not None
        self._source.finished(transaction, results)

    def _close(self, ended: Ended) -> None:
        self._ended = ended
        transport = self._transport
        if transport is None or self._gone:
            return
        if ended.failure is not None and not ended.flush:
            transport.abort()
            return
        self._flush()
        if self._tls is not None and self._tls.established:
            self._write(self._tls.close())
        self._closing_at = self._loop.time()
        transport.close()

    def _lose(self, why: str) -> None:
        """The session is no use any more: tell so and drop the connection."""
        self._handle(self._client.connection_lost(why))
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------ work

    def _pump(self) -> None:
        """Begin what may begin, write what is due."""
        client = self._client
        source = self._source
        if source is not None and not self._pumping:
            self._pumping = True  # a source that pokes us while it is asked changes nothing
            try:
                self._take_work(source)
            finally:
                self._pumping = False
        if self._quit_wanted and not self._preparing:
            client.quit()
        self._flush()
        if client.busy or self._preparing:
            self._idle_since = None
        elif self._idle_since is None and not self._gone:
            self._idle_since = self._loop.time()

    def _take_work(self, source: WorkSource) -> None:
        client = self._client
        refused = 0
        while client.may_begin and not (self._paused or self._preparing or self._quit_wanted):
            transaction = source.next_transaction()
            if transaction is None:
                return
            if not self._begin(transaction, source):
                refused += 1
                if refused == _REFUSED_AT_ONCE:
                    self._loop.call_soon(self._pump)
                    return

    def _begin(self, transaction: Transaction, source: WorkSource) -> bool:
        """Start a transaction; False when it was refused here and now."""
        body = transaction.body
        if body is None:
            self._preparing = True
            self._run(self._prepare(transaction, source))
            return True
        if len(body) > PIECE_BYTES:
            memory = _MemoryBody(body)
            return self._begin_large(transaction, source, _Content(memory, b""), body)
        return self._begin_whole(transaction, source, body)

    def _begin_whole(self, transaction: Transaction, source: WorkSource, body: bytes) -> bool:
        refusal = self._client.begin(
            transaction,
            transaction.message,
            body,
            octets=len(body),
            head=body,
            credentials=transaction.credentials,
        )
        return refusal is None or self._refuse(transaction, source, refusal)

    def _begin_large(
        self, transaction: Transaction, source: WorkSource, content: _Content, head: bytes
    ) -> bool:
        refusal = self._client.begin(
            transaction,
            transaction.message,
            None,
            octets=content.body.size_bytes,
            head=head,
            credentials=transaction.credentials,
        )
        if refusal is None:
            self._contents[id(transaction)] = content
            return True
        content.body.close()
        return self._refuse(transaction, source, refusal)

    def _refuse(self, transaction: Transaction, source: WorkSource, refusal: LocalRefusal) -> bool:
        source.finished(
            transaction,
            [
                RecipientResult(recipient.seq, refusal.code, refusal.text, "local")
                for recipient in transaction.message.recipients
            ],
        )
        return False

    async def _prepare(self, transaction: Transaction, source: WorkSource) -> None:
        """Open a message that is on disk, and begin it once its first piece is there."""
        why, damage = "session ended", ""
        body: Body | None = None
        try:
            body = await self._open_body(transaction.message.queue_id)
            head = await body.read(PIECE_BYTES)
        except KeyError:
            why = "the message is gone"
        except BodyDamaged as error:
            damage = _fault(error)
        except Exception as error:  # whatever it was, the message must not stay in our hands
            why = _fault(error)
        else:
            if self._client.may_begin:
                self._preparing = False
                if len(head) == body.size_bytes:
                    body.close()
                    self._begin_whole(transaction, source, head)
                else:
                    self._begin_large(transaction, source, _Content(body, head), head)
                self._pump()
                return
        if body is not None:
            body.close()
        self._preparing = False
        if damage:
            self._tell_damaged(transaction, source, damage)
        else:
            source.returned(transaction, why=why, after_dot=False)
        self._pump()

    def _tell_damaged(self, transaction: Transaction, source: WorkSource, why: str) -> None:
        source.finished(
            transaction,
            [
                RecipientResult(recipient.seq, 554, why, "damaged")
                for recipient in transaction.message.recipients
            ],
        )

    async def _stream(self, transaction: Transaction, content: _Content) -> None:
        """Send a message in pieces, as fast as the peer takes them."""
        client = self._client
        try:
            piece = content.head or await content.body.read(PIECE_BYTES)
            while piece and not client.over:
                if not client.content(piece):
                    raise BodyDamaged("the stored message is longer than recorded")
                self._flush()
                await asyncio.sleep(0)  # others have their turn; a lost connection is told
                if self._paused:
                    await self._wait_writable()
                piece = await content.body.read(PIECE_BYTES)
            if not client.end_content():
                raise BodyDamaged("the stored message is shorter than recorded")
        except (BodyDamaged, StorageError) as error:
            self._own_fault = True
            if isinstance(error, BodyDamaged):
                self._damaged = transaction
            self._lose(_fault(error))
        finally:
            content.body.close()
        self._pump()

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._lose(f"internal error: {task.exception()!r}")
        self._tell_end()

    async def _wait_writable(self) -> None:
        if self._gone:
            return
        self._writable = self._loop.create_future()
        try:
            await self._writable
        finally:
            self._writable = None

    def _wake_writer(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _forget(self, transaction: Transaction) -> None:
        content = self._contents.pop(id(transaction), None)
        if content is not None:
            content.body.close()

    # ------------------------------------------------------------------ octets

    def _flush(self) -> None:
        output = self._client.take_output()
        if not output:
            return
        data = output[0] if len(output) == 1 else b"".join(output)
        tls = self._tls
        if tls is not None:
            try:
                data = tls.wrap(data)
            except TlsFailed as failure:
                self._fail_tls(failure)
                return
        self._write(data)

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():  # uvloop raises where asyncio warns
            return
        self._written += len(data)
        transport.write(data)

    def _shake_hands(self) -> None:
        try:
            self._tls = self._tls_maker.open_channel(self.target.host)
            self._write(self._tls.start())
        except TlsFailed as failure:
            self._fail_tls(failure)

    def _decrypt(self, data: bytes) -> bytes:
        assert self._tls is not None
        was_established = self._tls.established
        try:
            plain, due = self._tls.feed(data)
        except TlsFailed as failure:
            self._fail_tls(failure)
            return b""
        if due:
            self._write(due)
        if self._tls.established and not was_established:
            self._client.tls_established()
            self._flush()
        return plain

    def _fail_tls(self, failure: TlsFailed) -> None:
        if failure.alert:
            self._write(failure.alert)  # goes out at once where the socket takes it
        self._lose(f"TLS failed: {failure.detail}")

    # ------------------------------------------------------------------ ends

    def _limit_seconds(self, awaited: Awaited | None, buffered: int) -> float:
        settings = self._settings
        if buffered:
            return settings.data_block_timeout
        match awaited:
            case Awaited.GREETING:
                return settings.greeting_timeout
            case Awaited.DOT | Awaited.NO_MAIL_DOT:
                return settings.final_dot_timeout
            case Awaited.QUIT:
                return min(settings.command_timeout, _CLOSING_SECONDS)
            case _:
                return settings.command_timeout

    def _fail_waiters(self) -> None:
        ended = self._ended or Ended(failure="lost connection", stage="session")
        for future in (self._opened, self._probed):
            if future is not None and not future.done():
                future.set_exception(self._failure(ended))

    def _failure(self, ended: Ended) -> NextHopFailure:
        target = self.target
        shaking = self._tls is not None and not self._tls.established
        kind = HandshakeFailure if shaking else NextHopFailure
        return kind(
            f"{target.host}[{target.address}]:{target.port}: {ended.failure or 'session ended'}",
            stage=ended.stage or "session",
            reply_code=ended.reply_code,
            reply_text=ended.reply_text,
        )

    def _tell_end(self) -> None:
        """Settle `wait_end` once the connection is gone and no task is left."""
        if not self._gone or self._tasks or self._end.done():
            return
        ended = self._ended or Ended()
        self._end.set_result(
            SessionEnd(
                failure=None if self._own_fault else ended.failure,
                stage=ended.stage,
                reply_code=ended.reply_code,
                reply_text=ended.reply_text,
            )
        )


def _transaction(token: object) -> Transaction:
    assert isinstance(token, Transaction)
    return token


def _fault(error: Exception) -> str:
    """Why our own copy of a message could not be sent."""
    if isinstance(error, BodyDamaged):
        return f"damaged: {error}"
    return f"storage: {error}" if isinstance(error, StorageError) else f"internal error: {error!r}"
