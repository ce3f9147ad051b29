"""The one thread that makes mail durable: group commit.

All that arrived while one batch was being written forms the next. For a batch

1. the records are appended to the segment and flushed (one fdatasync);
2. the event loop hears of it in one call: listeners rung, futures resolved;
3. the rows are written when those of enough batches have come together, when somebody
   wants to read, when the relay settles something, or a moment later (`spool_late`);
4. where a transaction holds more than insertions, the WAL is flushed.

An accepted message needs neither its row nor a flush of the WAL to be safe: its record
alone is enough for the next start to take it in (`spool_recovery`; docs/durability.md).
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from zlib import crc32

import apsw

from posthouse import observe
from posthouse.errors import StorageBroken, StorageError
from posthouse.mail.queueid import format_queue_id
from posthouse.ports_spool import Outcome, Settlement
from posthouse.storage import schema
from posthouse.storage.segments import (
    HEADER_BYTES,
    PRIVATE,
    Layout,
    Place,
    SegmentWriter,
    encode_tail,
    pack_header,
)
from posthouse.storage.spool_accept import Accept
from posthouse.storage.spool_batch import Batch
from posthouse.storage.spool_clock import DueClock
from posthouse.storage.spool_disk import Disk, translate
from posthouse.storage.spool_incoming import Memory
from posthouse.storage.spool_late import LateRows
from posthouse.storage.spool_recovery import Left
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


Settle = tuple[Sequence[Settlement], "asyncio.Future[None]"]
Call = tuple[Callable[[Batch, apsw.Connection], Any] | None, "asyncio.Future[Any]", bool]
Done = Callable[[list[Accept], list[Settle], StorageError | None], None]


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
        self._disk = disk
        self._layout = layout
        self._segments = segments
        self._due = due
        self._unsettled = unsettled
        self._rebuilt = False
        self._done = done
        self._failed = failed
        self._batch = batch
        self._upkeep = Upkeep(
            connection,
            layout,
            disk,
            segments,
            wal_pages=wal_pages,
            flush_wal=self._flush_wal,
            wake=lambda: self._wake.put(None),
            files_gone=lambda: self._soon(files_gone),
        )
        self._loop = asyncio.get_running_loop()
        self._nobody: asyncio.Future[None] = self._loop.create_future()
        self._accepts: deque[Accept] = deque()
        self._settles: deque[Settle] = deque()
        self._calls: deque[Call] = deque()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._woken = False
        self._gathering: asyncio.TimerHandle | None = None
        self._stopping = False
        self._wal_fd: int | None = None
        self._late = LateRows(due)
        self.lags = bool(left)  # read in the loop: messages are there whose rows are to come
        if left_why is not None:
            self._late.take_over(left, left_why, delivered=unsettled.keys)
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
        self._write_rows()
        self._segments.seal()
        self._upkeep.close()
        if self._wal_fd is not None:
            os.close(self._wal_fd)
        self._connection.close()

    def _await_work(self) -> None:
        waits = self._late.count and self._late.failure is None
        try:
            self._wake.get(timeout=_LATE_SECONDS if waits else None)
        except queue.Empty:
            self._write_rows()

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
                self._roll_back()
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
            error = self._write_rows()
            if error is not None:  # first what was answered, then more
                self._tell(accepts, [], error)
                accepts = []
        if accepts:
            self._append(accepts)
            self._tell(accepts, [], None)
        if settles:
            self._settle_together(settles)
        elif self._late.count >= _MOST_LATE:
            self._write_rows()

    def _write_rows(self) -> StorageError | None:
        """Write the rows that are to come; returns why not. They stay to come then."""
        error = self._transact([])
        if error is not None and _is_damage(error) and not self._rebuilt:
            self._repair_index()
            error = self._transact([])
        return error

    def _settle_together(self, settles: list[Settle]) -> None:
        error = self._transact(settles)
        if error is not None and self._late.count:  # one may be fine without the other
            rowless = self._write_rows()
            if rowless is not None:
                settles = self._settle_without(settles, rowless)
            error = self._transact(settles, rows=False)
        if error is not None and (len(settles) > 1 or _is_damage(error)):
            for settle in settles:  # a damaged page must not stop the rest
                self._tell([], [settle], self._settle_apart(settle[0]))
            settles = []
        if error is None and settles:
            self._upkeep.removed = True
            error = self._flush_wal()
        if settles:
            self._tell([], settles, error)

    def _settle_without(self, settles: list[Settle], error: StorageError) -> list[Settle]:
        """Settle what has rows of such as also name messages without, and have those tried again.

        Returns the others. A message may not be taken as settled whose row will be written yet.
        """
        whole: list[Settle] = []
        for settle in settles:
            with_rows = self._late.without(list(settle[0]))
            if len(with_rows) == len(settle[0]):
                whole.append(settle)
                continue
            if _is_damage(error) and self._note_delivered(settle[0]):
                whole.append((with_rows, settle[1]))
                continue
            if self._transact([(with_rows, self._nobody)], rows=False) is None:
                self._upkeep.removed = True
                self._flush_wal()
            self._tell([], [settle], error)
        return whole

    def _note_delivered(self, settlements: Sequence[Settlement]) -> bool:
        """Remember what was delivered of messages whose rows a damaged page refuses; durable."""
        delivered = self._late.find_delivered(settlements)
        try:
            if delivered:
                self._unsettled.remember([(s.queue_id, s.seq) for s in delivered])
        except OSError as error:
            self._soon(self._failed, translate(error, "cannot remember what was delivered"))
            return False
        self._late.noted += delivered
        return True

    def _tell(
        self, accepts: list[Accept], settles: list[Settle], error: StorageError | None
    ) -> None:
        self._soon(self._done, accepts, settles, error)

    def _soon(self, call: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    # ------------------------------------------------------------------ accept

    def _append(self, accepts: list[Accept]) -> None:
        """Write and flush the records; those that fail are marked, the others wait for rows."""
        buffers: list[bytes] = []
        placed: list[Accept] = []
        offset = 0
        for accept in accepts:
            try:
                accept.tail = tail = encode_tail(accept.envelope, accept.client)
            except (UnicodeError, TypeError, ValueError) as error:
                accept.error = StorageBroken(f"envelope cannot be stored: {error}")
                continue
            accept.tail_size = len(tail)
            if accept.body_crc is None:
                crc = 0
                for chunk in accept.chunks:
                    crc = crc32(chunk, crc)
                buffers.append(pack_header(accept.queue_id, accept.size, crc, tail))
                buffers += accept.chunks
                accept.segment = -1  # known once written
                accept.at = offset
                offset += HEADER_BYTES + accept.size + len(tail)
            else:
                crc = accept.body_crc
                header = pack_header(accept.queue_id, accept.size, crc, tail, private=True)
                buffers.append(header)
                accept.segment = PRIVATE
                offset += HEADER_BYTES + len(tail)
            buffers.append(tail)
            placed.append(accept)
        if not placed:
            return
        try:
            begin = self._segments.append(buffers)
        except OSError as error:
            failure = translate(error, "cannot write a segment")
            self._soon(self._failed, failure)
            for accept in placed:
                accept.error = failure
            return
        for accept in placed:
            if accept.segment == PRIVATE:
                continue
            accept.segment = self._segments.number
            accept.at += begin
        self._late.add(placed, segment=self._segments.number, end=self._segments.end)
        self.lags = True

    # ------------------------------------------------------------------ transactions

    def _transact(self, settles: list[Settle], *, rows: bool = True) -> StorageError | None:
        """Write rows to come and what was settled; returns why not. Nothing of it is visible then.

        rows: False leaves out the rows to come.
        """
        late = self._late
        rows = rows and late.count > 0
        if not rows and not settles:
            return None
        execute = self._connection.execute
        settlements = [s for settle in settles for s in settle[0]]
        try:
            execute("BEGIN IMMEDIATE")
            if rows:
                settlements = late.insert(self._batch, settlements)
            if settlements:
                self._batch.settle(settlements)
            execute("COMMIT")
        except Exception as error:  # whatever it is, the thread must live: mail was answered
            self._roll_back()
            failure = translate(error, "cannot commit")
            failure.__cause__ = error
            if rows:
                late.failure = failure
            if not (settles and _is_damage(failure)):  # which is tried again in parts
                self._soon(self._failed, failure)
            return failure
        if rows:
            late.written()
            self.lags = False
        self._due.close_batch()
        return None

    def _settle_apart(self, settlements: Sequence[Settlement]) -> StorageError | None:
        """Settle what the damaged pages of the database allow, remember the rest; durable."""
        stuck: list[Settlement] = []
        error = self._settle_halves(settlements, stuck)
        if error is None and stuck:
            delivered = [(s.queue_id, s.seq) for s in stuck if s.outcome is Outcome.DELIVERED]
            try:
                if delivered:
                    self._unsettled.remember(delivered)
            except OSError as failure:
                error = translate(failure, "cannot remember what was delivered")
                self._soon(self._failed, error)
        self._upkeep.removed = True
        return error or self._flush_wal()

    def _settle_halves(
        self, settlements: Sequence[Settlement], stuck: list[Settlement]
    ) -> StorageError | None:
        """Halve down to the rows that cannot be written. Returns any other failure."""
        error = self._transact([(settlements, self._nobody)], rows=False)
        if error is None or not _is_damage(error):
            return error
        if not self._rebuilt:
            self._repair_index()
            return self._settle_halves(settlements, stuck)
        if len(settlements) == 1:
            [settlement] = settlements
            stuck.append(settlement)
            key = (settlement.queue_id, settlement.seq)
            if key not in self._unsettled.keys:
                name = format_queue_id(settlement.queue_id)
                what = f"{settlement.outcome.name.lower()}, but its row is damaged"
                observe.alert("spool", f"{name}: recipient {key[1]} {what}", queue_id=name)
            self._unsettled.leave_out(key)
            return None
        half = len(settlements) // 2
        return self._settle_halves(settlements[:half], stuck) or self._settle_halves(
            settlements[half:], stuck
        )

    def _repair_index(self) -> None:
        """Write the index of the queues afresh, once: it may be all that is damaged."""
        self._rebuilt = True
        try:
            schema.rebuild_queues(self._connection)
        except apsw.Error as error:
            observe.trouble("spool", "the index of the queues cannot be written afresh", error)

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._batch.load_domains()
        except apsw.Error as error:
            observe.trouble("spool", "cannot roll back", error)
        self._due.close_batch()

    def _flush_wal(self) -> StorageError | None:
        """Make all transactions so far durable."""
        try:
            if self._upkeep.wal_suspect:
                self._upkeep.rescue_wal()
                return None
            if self._wal_fd is None:
                path = self._layout.database.with_name("spool.db-wal")
                self._wal_fd = self._disk.open_to_read(path)
            self._disk.flush(self._wal_fd)
        except (OSError, apsw.Error) as error:
            # What the WAL holds on the disk is unknown from here on; a checkpoint
            # carries it from the page cache into the database file.
            self._upkeep.wal_suspect = True
            failure = translate(error, "cannot flush the write-ahead log")
            self._soon(self._failed, failure)
            return failure
        return None

    def _call(
        self,
        work: Callable[[Batch, apsw.Connection], Any] | None,
        future: asyncio.Future[Any],
        in_transaction: bool,
    ) -> None:
        result: Any = None
        failure: BaseException | None = self._write_rows()
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
            failure = self._flush_wal()
        except Exception as error:
            self._roll_back()
            if (self._segments.number, self._segments.end) != (number, end):  # copies, in vain
                self._segments.take_back(end if self._segments.number == number else 0)
            failure = error
            if isinstance(error, (apsw.Error, OSError, StorageError)):
                failure = translate(error, "cannot commit")
                self._soon(self._failed, failure)
        self._soon(_resolve, future, result, failure)


def _is_damage(error: StorageError) -> bool:
    """Whether a page of the database is damaged, which waiting does not mend."""
    return isinstance(error.__cause__, apsw.CorruptError)


def _resolve(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)
