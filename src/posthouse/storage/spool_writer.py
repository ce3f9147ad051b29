"""The one thread that makes mail durable: group commit.

All that arrived while one batch was being written forms the next. For a batch

1. the records are appended to the segment and flushed (one fdatasync);
2. the event loop hears of it in one call: listeners rung, futures resolved;
3. the rows are written when those of enough batches have come together, when somebody
   wants to read, when the relay settles something, or a moment later (`spool_late`);
4. where a transaction holds more than insertions, the WAL is flushed.

Step 1 is `spool_append`, what has to do with rows is `spool_rows`; here is who waits for what.

An accepted message needs neither its row nor a flush of the WAL to be safe: its record
alone is enough for the next start to take it in (`spool_recovery`; docs/durability.md).
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import apsw

from posthouse import observe
from posthouse.errors import StorageBroken, StorageError
from posthouse.ports_spool import Settlement
from posthouse.storage import schema
from posthouse.storage.segments import Layout, Place, SegmentWriter
from posthouse.storage.spool_accept import Accept
from posthouse.storage.spool_append import Appender
from posthouse.storage.spool_batch import Batch
from posthouse.storage.spool_clock import DueClock
from posthouse.storage.spool_disk import Disk, translate
from posthouse.storage.spool_incoming import Memory
from posthouse.storage.spool_late import LateRows
from posthouse.storage.spool_recovery import Left
from posthouse.storage.spool_rows import Done, Rows, Settle
from posthouse.storage.spool_unsettled import Unsettled
from posthouse.storage.spool_upkeep import Upkeep

T = TypeVar("T")
_MOST_MESSAGES = 256
_MOST_BYTES = 8 << 20
_MOST_SETTLEMENTS = 2048
# Rows written later: as many as one statement takes, or after so long.
_MOST_LATE = schema.WIDEST
_LATE_SECONDS = 0.05
# While the content of other messages is coming in, a flush waits for them so long.
_GATHER_SECONDS = 0.001
_ENOUGH_MESSAGES = 32
# Outcomes wait for more of them: each batch is a transaction and a flush of the WAL.
_SETTLE_SECONDS = 0.002


Call = tuple[Callable[[Batch, apsw.Connection], Any] | None, "asyncio.Future[Any]", bool]


class Writer:
    """Owns the writing connection and the open segment. `put_*` and `stop` are for the loop."""

    def __init__(
        self,
        *,
        connection: apsw.Connection,
        batch: Batch,
        layout: Layout,
        disk: Disk,
        segments: SegmentWriter,
        due: DueClock,
        unsettled: Unsettled,
        done: Done,
        failed: Callable[[StorageError], None],
        files_gone: Callable[[], None],
        wal_pages: int,
        incoming: Memory,
        left: Sequence[Left],
        left_why: StorageError | None,
    ) -> None:
        self._incoming = incoming
        self._connection = connection
        self._segments = segments
        self._due = due
        self._done = done
        self._failed = failed
        self._batch = batch
        self._upkeep = Upkeep(
            connection,
            layout,
            disk,
            segments,
            wal_pages=wal_pages,
            flush_wal=lambda: self._rows.flush_wal(),
            wake=lambda: self._wake.put(None),
            files_gone=lambda: self._soon(files_gone),
        )
        self._loop = asyncio.get_running_loop()
        self._accepts: deque[Accept] = deque()
        self._settles: deque[Settle] = deque()
        self._calls: deque[Call] = deque()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._woken = False
        self._gathering: asyncio.TimerHandle | None = None
        self._stopping = False
        self._late = LateRows(due)
        if left_why is not None:
            self._late.take_over(left, left_why, delivered=unsettled.keys)
        self._appender = Appender(segments, self._late, self._tell_failed)
        self._rows = Rows(
            connection=connection,
            batch=batch,
            layout=layout,
            disk=disk,
            due=due,
            unsettled=unsettled,
            late=self._late,
            upkeep=self._upkeep,
            tell=self._tell,
            failed=self._tell_failed,
        )
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)

    def start(self) -> None:
        """Begin to take work."""
        self._thread.start()

    # ------------------------------------------------------------------ on the loop

    def put_accept(self, accept: Accept) -> None:
        """Make a message durable; its future tells."""
        self._accepts.append(accept)
        if not self._incoming.open or len(self._accepts) >= _ENOUGH_MESSAGES:
            self._hurry()
        else:
            self._gather(_GATHER_SECONDS)

    def put_settle(self, settlements: Sequence[Settlement]) -> asyncio.Future[None]:
        """Apply what became of recipients."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._settles.append((settlements, future))
        self._gather(_SETTLE_SECONDS)
        return future

    def _gather(self, seconds: float) -> None:
        """Wake the thread so much later, unless something brings that forward."""
        if not self._woken and self._gathering is None:
            self._gathering = self._loop.call_later(seconds, self._hurry)

    def _hurry(self) -> None:
        """Wake the thread at the end of this turn of the loop: what else comes in it goes along."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._wake.put, None)

    def put_call(self, work: Callable[[Batch, apsw.Connection], T]) -> asyncio.Future[T]:
        """Run `work` in a transaction of its own, made durable."""
        return self._put(work, in_transaction=True)

    @property
    def unlisted(self) -> int:
        """Recipients answered 250 whose rows the database refused last; 0 when they only wait."""
        late = self._late
        return 0 if late.failure is None else late.count

    def put_rows(self) -> asyncio.Future[None]:
        """Write the rows of all messages told of so far, if the database takes them."""
        return self._put(None, in_transaction=False)

    def _put(
        self, work: Callable[[Batch, apsw.Connection], T] | None, *, in_transaction: bool
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.append((work, future, in_transaction))
        self._wake.put(None)
        return future

    def put_rebuild(self) -> asyncio.Future[None]:
        """Write a damaged index afresh."""
        return self._put(lambda _, c: schema.rebuild_queues(c), in_transaction=False)

    @property
    def lags(self) -> bool:
        """True while messages are there whose rows are to come."""
        return self._late.lags

    @property
    def resting(self) -> bool:
        """True when all upkeep is done that there was to do."""
        return self._upkeep.resting

    async def stop(self) -> None:
        """Finish what was handed over, then end the thread."""
        self._stopping = True
        self._wake.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    def put_try(self) -> asyncio.Future[None]:
        """Try the disk and the database as intake will use them."""

        def attempt(_batch: Batch, connection: apsw.Connection) -> None:
            self._upkeep.try_disk()
            connection.execute(
                "UPDATE segment SET size = size WHERE id = (SELECT max(id) FROM segment)"
            )

        return self.put_call(attempt)

    def put_copies(self, copies: Sequence[tuple[Place, bytes]]) -> asyncio.Future[None]:
        """Append records of messages again and point their rows there (compaction)."""

        def copy(batch: Batch, connection: apsw.Connection) -> None:
            asked = json.dumps([place.queue_id for place, _ in copies])
            found = {Place(*row) for row in connection.execute(schema.PLACES, (asked,))}
            still = [copy for copy in copies if copy[0] in found]
            if not still:
                return
            at = self._segments.append([record for _, record in still])
            moves = []
            for place, record in still:
                moves.append((place.queue_id, self._segments.number, at, place.segment))
                at += len(record)
            batch.move(moves, segment=self._segments.number, end=self._segments.end)

        return self.put_call(copy)

    # ------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while True:
            self._await_work()
            self._woken = False
            while self._turn():
                self._keep_up(idle=False)
            self._keep_up(idle=not (self._accepts or self._settles))
            if self._stopping and not (self._accepts or self._settles or self._calls):
                break
        self._rows.write()
        self._segments.seal()
        self._upkeep.close()
        self._rows.close()
        self._connection.close()

    def _await_work(self) -> None:
        waits = self._late.count and self._late.failure is None
        try:
            self._wake.get(timeout=_LATE_SECONDS if waits else None)
        except queue.Empty:
            self._rows.write()

    def _keep_up(self, *, idle: bool) -> None:
        # With rows to come, a segment that looks empty may not be. They come soon, unless
        # they cannot be written: then it may be just what is given back that makes room.
        if not self._late.count:
            self._upkeep.between_batches(idle=idle)
        elif self._late.failure is not None:
            self._upkeep.between_batches(idle=idle, keep=self._late.segments)

    def _turn(self) -> bool:
        """Do what was handed over; True when there was more of it than fits one batch."""
        accepts = self._take_accepts()
        settles = self._take_settles()
        if accepts or settles:
            try:
                self._commit_together(accepts, settles)
            except Exception as error:  # ours to mend, but the thread must live and nobody hang
                observe.trouble("spool", "a batch failed in an unforeseen way", error)
                self._rows.roll_back()
                self._segments.seal()
                self._tell(accepts, settles, StorageBroken(f"internal error: {error!r}"))
        if self._calls:
            self._call(*self._calls.popleft())
        return (
            bool(self._calls)
            or (self._stopping and bool(self._accepts or self._settles))
            or len(accepts) >= _MOST_MESSAGES
            or len(settles) >= 16
        )

    def _take_accepts(self) -> list[Accept]:
        taken: list[Accept] = []
        size = 0
        waiting = self._accepts
        while waiting and len(taken) < _MOST_MESSAGES and size < _MOST_BYTES:
            accept = waiting.popleft()
            size += accept.size if accept.body_crc is None else 0
            taken.append(accept)
        return taken

    def _take_settles(self) -> list[Settle]:
        taken: list[Settle] = []
        size = 0
        while self._settles and size < _MOST_SETTLEMENTS:
            settle = self._settles.popleft()
            size += len(settle[0])
            taken.append(settle)
        return taken

    def _commit_together(self, accepts: list[Accept], settles: list[Settle]) -> None:
        if accepts and self._late.failure is not None:
            error = self._rows.write()
            if error is not None:  # first what was answered, then more
                self._tell(accepts, [], error)
                accepts = []
        if accepts:
            self._appender.append(accepts)
            self._tell(accepts, [], None)
        if settles:
            self._rows.settle(settles)
        elif self._late.count >= _MOST_LATE:
            self._rows.write()

    def _tell(
        self, accepts: list[Accept], settles: list[Settle], error: StorageError | None
    ) -> None:
        self._soon(self._done, accepts, settles, error)

    def _tell_failed(self, error: StorageError) -> None:
        self._soon(self._failed, error)

    def _soon(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    def _call(
        self,
        work: Callable[[Batch, apsw.Connection], Any] | None,
        future: asyncio.Future[Any],
        in_transaction: bool,
    ) -> None:
        result: Any = None
        failure: BaseException | None = self._rows.write()
        if work is None or (failure is not None and in_transaction):
            self._soon(_resolve, future, None, failure if in_transaction else None)
            return
        failure = None
        number, end = self._segments.number, self._segments.end
        try:
            if in_transaction:
                self._connection.execute("BEGIN IMMEDIATE")
            result = work(self._batch, self._connection)
            if in_transaction:
                self._connection.execute("COMMIT")
            self._due.close_batch()
            self._upkeep.removed = True
            failure = self._rows.flush_wal()
        except Exception as error:
            self._rows.roll_back()
            if (self._segments.number, self._segments.end) != (number, end):  # copies, in vain
                self._segments.take_back(end if self._segments.number == number else 0)
            failure = error
            if isinstance(error, (apsw.Error, OSError, StorageError)):
                failure = translate(error, "cannot commit")
                self._soon(self._failed, failure)
        self._soon(_resolve, future, result, failure)


def _resolve(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)
