"""The transactions of the writer thread: rows of accepted messages, and what became of recipients.

A transaction takes the rows to come (`spool_late`) and the settlements of many callers. Where it
fails, what can be done is done in parts: rows without settlements, settlements without rows, and,
where a page of the database is damaged, each settlement that has its row on a sound page. What was
delivered and cannot be written into its row is remembered beside the database (`spool_unsettled`).

Works in the writer thread (`spool_writer`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

import apsw

from posthouse import observe
from posthouse.errors import StorageError
from posthouse.mail.queueid import format_queue_id
from posthouse.ports_spool import Outcome, Settlement
from posthouse.storage import schema
from posthouse.storage.segments import Layout
from posthouse.storage.spool_accept import Accept
from posthouse.storage.spool_batch import Batch
from posthouse.storage.spool_clock import DueClock
from posthouse.storage.spool_disk import Disk, translate
from posthouse.storage.spool_late import LateRows
from posthouse.storage.spool_unsettled import Unsettled
from posthouse.storage.spool_upkeep import Upkeep

Settle = tuple[Sequence[Settlement], "asyncio.Future[None]"]
Done = Callable[[list[Accept], list[Settle], StorageError | None], None]


class Rows:
    """Writes what lies in `late`, and settlements. tell, failed: callable in the writer thread."""

    def __init__(
        self,
        *,
        connection: apsw.Connection,
        batch: Batch,
        layout: Layout,
        disk: Disk,
        due: DueClock,
        unsettled: Unsettled,
        late: LateRows,
        upkeep: Upkeep,
        tell: Done,
        failed: Callable[[StorageError], None],
    ) -> None:
        self._connection = connection
        self._batch = batch
        self._layout = layout
        self._disk = disk
        self._due = due
        self._unsettled = unsettled
        self._late = late
        self._upkeep = upkeep
        self._tell = tell
        self._failed = failed
        self._nobody: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rebuilt = False
        self._wal_fd: int | None = None

    def write(self) -> StorageError | None:
        """Write the rows that are to come; returns why not. They stay to come then."""
        error = self._transact([])
        if error is not None and _is_damage(error) and not self._rebuilt:
            self._repair_index()
            error = self._transact([])
        return error

    def settle(self, settles: list[Settle]) -> None:
        """Apply what became of recipients, with the rows that are to come, and tell of each."""
        error = self._transact(settles)
        if error is not None and self._late.count:  # one may be fine without the other
            rowless = self.write()
            if rowless is not None:
                settles = self._settle_without(settles, rowless)
            error = self._transact(settles, rows=False)
        if error is not None and (len(settles) > 1 or _is_damage(error)):
            for settle in settles:  # a damaged page must not stop the rest
                self._tell([], [settle], self._settle_apart(settle[0]))
            settles = []
        if error is None and settles:
            self._upkeep.removed = True
            error = self.flush_wal()
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
                self.flush_wal()
            self._tell([], [settle], error)
        return whole

    def _note_delivered(self, settlements: Sequence[Settlement]) -> bool:
        """Remember what was delivered of messages whose rows a damaged page refuses; durable."""
        delivered = self._late.find_delivered(settlements)
        try:
            if delivered:
                self._unsettled.remember([(s.queue_id, s.seq) for s in delivered])
        except OSError as error:
            self._failed(translate(error, "cannot remember what was delivered"))
            return False
        self._late.noted += delivered
        return True

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
                self._failed(error)
        self._upkeep.removed = True
        return error or self.flush_wal()

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
            self.roll_back()
            failure = translate(error, "cannot commit")
            failure.__cause__ = error
            if rows:
                late.failure = failure
            if not (settles and _is_damage(failure)):  # which is tried again in parts
                self._failed(failure)
            return failure
        if rows:
            late.written()
        self._due.close_batch()
        return None

    def _repair_index(self) -> None:
        """Write the index of the queues afresh, once: it may be all that is damaged."""
        self._rebuilt = True
        try:
            schema.rebuild_queues(self._connection)
        except apsw.Error as error:
            observe.trouble("spool", "the index of the queues cannot be written afresh", error)

    def roll_back(self) -> None:
        """Forget the open transaction, if there is one."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._batch.load_domains()
        except apsw.Error as error:
            observe.trouble("spool", "cannot roll back", error)
        self._due.close_batch()

    def flush_wal(self) -> StorageError | None:
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
            self._failed(failure)
            return failure
        return None

    def close(self) -> None:
        """Let go of the WAL."""
        if self._wal_fd is not None:
            os.close(self._wal_fd)


def _is_damage(error: StorageError) -> bool:
    """Whether a page of the database is damaged, which waiting does not mend."""
    return isinstance(error.__cause__, apsw.CorruptError)
