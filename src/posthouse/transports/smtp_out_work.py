"""The messages of one session: taken from its source, handed to the automaton, their outcomes told.

This is the hot path of the relay: plain functions, no task for a small message.
A message of up to `PIECE_BYTES` goes whole; a larger one in pieces, by a task of
its own that waits while the peer does not read, so that memory stays at a few
pieces however large the message is.

A message that turns out damaged is never ended: the connection is dropped
without the final dot, and no peer delivers any of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Final

from posthouse.errors import BodyDamaged, StorageError
from posthouse.ports_relay import RecipientResult, Transaction, WorkSource
from posthouse.ports_spool import Body
from posthouse.proto.client_envelope import LocalRefusal
from posthouse.proto.client_events import ContentWanted, Returned, Settled
from posthouse.proto.smtp_client import ClientSession
from posthouse.transports.smtp_out_line import OutLine

PIECE_BYTES: Final = 256 * 1024
_NOT_KNOWN: Final = frozenset({500, 502, 504})  # RFC 5321 §4.2.4, from one who offered CHUNKING
_REFUSED_AT_ONCE: Final = 64  # local refusals in a row before the loop gets its turn


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


class Work:
    """Keeps one session busy. open_body: reads a message that is not in memory.

    lose: called with the reason when the session is no use any more; rested: when the last
    task is over. on_bdat_refused: who hears that the peer offered BDAT and does not know it.
    idle_since: loop time since when nothing is under way, else None. own_fault: what ended the
    session was not the peer's doing. tasks: messages that are being read.
    """

    def __init__(
        self,
        client: ClientSession,
        line: OutLine,
        open_body: Callable[[int], Awaitable[Body]],
        *,
        lose: Callable[[str], None],
        rested: Callable[[], None],
    ) -> None:
        self.source: WorkSource | None = None
        self.on_bdat_refused: Callable[[], object] | None = None
        self.idle_since: float | None = None
        self.own_fault = False
        self.tasks: set[asyncio.Task[None]] = set()
        self._client = client
        self._line = line
        self._open_body = open_body
        self._lose = lose
        self._rested = rested
        self._loop = asyncio.get_running_loop()
        self._pumping = False
        self._preparing = False
        self._quit_wanted = False
        # By id() of the transaction: one message may go as two, to two domains, at once.
        self._contents: dict[int, _Content] = {}
        self._damaged: Transaction | None = None  # the one whose stored body broke under way

    def start(self, source: WorkSource) -> None:
        """Ask `source` for work from the loop's next turn on."""
        self.source = source
        self._loop.call_soon(self.pump)

    def quit(self) -> None:
        """Take no more, and say QUIT once what is under way has its answers."""
        self._quit_wanted = True
        self.pump()

    # ------------------------------------------------------------------ taking

    def pump(self) -> None:
        """Begin what may begin, write what is due."""
        client = self._client
        source = self.source
        if source is not None and not self._pumping:
            self._pumping = True  # a source that pokes us while it is asked changes nothing
            try:
                self._take_work(source)
            finally:
                self._pumping = False
        if self._quit_wanted and not self._preparing:
            client.quit()
        self._line.flush()
        if client.busy or self._preparing:
            self.idle_since = None
        elif self.idle_since is None and not self._line.gone:
            self.idle_since = self._loop.time()

    def _take_work(self, source: WorkSource) -> None:
        client = self._client
        refused = 0
        while client.may_begin and not (self._line.paused or self._preparing or self._quit_wanted):
            transaction = source.next_transaction()
            if transaction is None:
                return
            if not self._begin(transaction, source):
                refused += 1
                if refused == _REFUSED_AT_ONCE:
                    self._loop.call_soon(self.pump)
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

    # ------------------------------------------------------------------ outcomes

    def finished(self, event: Settled) -> None:
        """Tell the source what became of a transaction."""
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
            self.on_bdat_refused()
        if self._contents:
            self._forget(transaction)
        assert self.source is not None
        self.source.finished(transaction, results)

    def returned(self, event: Returned) -> None:
        """Give the source back what ended without an outcome."""
        transaction = _transaction(event.token)
        self._forget(transaction)
        assert self.source is not None
        if transaction is self._damaged:
            self._tell_damaged(transaction, self.source, event.why)
        else:
            self.source.returned(transaction, why=event.why, after_dot=event.after_dot)

    def _tell_damaged(self, transaction: Transaction, source: WorkSource, why: str) -> None:
        source.finished(
            transaction,
            [
                RecipientResult(recipient.seq, 554, why, "damaged")
                for recipient in transaction.message.recipients
            ],
        )

    def _forget(self, transaction: Transaction) -> None:
        content = self._contents.pop(id(transaction), None)
        if content is not None:
            content.body.close()

    # ------------------------------------------------------------------ from disk, and in pieces

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
                self.pump()
                return
        if body is not None:
            body.close()
        self._preparing = False
        if damage:
            self._tell_damaged(transaction, source, damage)
        else:
            source.returned(transaction, why=why, after_dot=False)
        self.pump()

    def stream(self, event: ContentWanted) -> None:
        """Send the content that the automaton asks for."""
        transaction = _transaction(event.token)
        self._run(self._stream(transaction, self._contents.pop(id(transaction))))

    async def _stream(self, transaction: Transaction, content: _Content) -> None:
        """Send a message in pieces, as fast as the peer takes them."""
        client = self._client
        try:
            piece = content.head or await content.body.read(PIECE_BYTES)
            while piece and not client.over:
                if not client.content(piece):
                    raise BodyDamaged("the stored message is longer than recorded")
                self._line.flush()
                await asyncio.sleep(0)  # others have their turn; a lost connection is told
                if self._line.paused:
                    await self._line.wait_writable()
                piece = await content.body.read(PIECE_BYTES)
            if not client.end_content():
                raise BodyDamaged("the stored message is shorter than recorded")
        except (BodyDamaged, StorageError) as error:
            self.own_fault = True
            if isinstance(error, BodyDamaged):
                self._damaged = transaction
            self._lose(_fault(error))
        finally:
            content.body.close()
        self.pump()

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._lose(f"internal error: {task.exception()!r}")
        self._rested()


def _transaction(token: object) -> Transaction:
    assert isinstance(token, Transaction)
    return token


def _fault(error: Exception) -> str:
    """Why our own copy of a message could not be sent."""
    if isinstance(error, BodyDamaged):
        return f"damaged: {error}"
    return f"storage: {error}" if isinstance(error, StorageError) else f"internal error: {error!r}"
