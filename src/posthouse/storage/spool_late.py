"""Messages that are durable and answered 250 while their rows are still to be written.

The record in its segment is what makes a message durable, and a start takes in every
record behind the mark (`spool_recovery`). So the rows may follow a little later, those
of many batches in one transaction: a transaction costs more than the rows in it.
Whoever reads rows has them written first (`Writer.put_rows`), and what the relay
settles goes into the transaction that writes them. A message that is delivered to all
its recipients by then gets no row at all: only the mark moves past its record.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from posthouse.errors import StorageError
from posthouse.ports_spool import Outcome, Settlement
from posthouse.storage.spool_accept import Accept
from posthouse.storage.spool_batch import Batch, Placed
from posthouse.storage.spool_clock import DueClock
from posthouse.storage.spool_recovery import Left


class _Run:
    """Neighbours in one segment. end: where the segment ends behind them."""

    __slots__ = ("accepts", "end", "segment")

    def __init__(self, segment: int, end: int, accepts: list[Placed]) -> None:
        self.segment = segment
        self.end = end
        self.accepts = accepts


class LateRows:
    """Used by the writer thread alone, but for `lags`.

    lags: messages are there whose rows are to come; the event loop may read it.
    count: recipients' rows to come; failure: why their transaction failed last, or None;
    noted: what was delivered of them meanwhile and is remembered elsewhere.
    """

    def __init__(self, due: DueClock) -> None:
        self._due = due
        self._runs: list[_Run] = []
        self.lags = False
        self.count = 0
        self.failure: StorageError | None = None
        self.noted: list[Settlement] = []

    def take_over(
        self, left: Sequence[Left], failure: StorageError, *, delivered: Set[tuple[int, int]]
    ) -> None:
        """Begin with what a start could not take in."""
        for segment, end, records in left:
            self._runs.append(_Run(segment, end, [*records]))
            self.count += sum(len(record.envelope.recipients) for record in records)
            self.noted += [
                Settlement(record.queue_id, seq, Outcome.DELIVERED)
                for record in records
                for seq in range(len(record.envelope.recipients))
                if (record.queue_id, seq) in delivered
            ]
        self.failure = failure
        self.lags = bool(left)

    @property
    def segments(self) -> Set[int]:
        """Where the records lie."""
        return {run.segment for run in self._runs}

    def add(self, placed: list[Accept], *, segment: int, end: int) -> None:
        """Remember flushed messages, and give them their due times."""
        self._stamp(placed)
        self.count += sum(len(accept.envelope.recipients) for accept in placed)
        last = self._runs[-1] if self._runs else None
        if last is not None and last.segment == segment:
            last.accepts += placed
            last.end = end
        else:
            self._runs.append(_Run(segment, end, [*placed]))
        self.lags = True

    def _stamp(self, accepts: Sequence[Placed]) -> None:
        due_us = self._due.open_batch(len(accepts))
        for accept in accepts:
            accept.due_us = due_us
            due_us += 1

    def insert(self, batch: Batch, settlements: list[Settlement]) -> list[Settlement]:
        """Write the rows inside a transaction, and with each run its segment's mark.

        Returns the settlements that are left to do: not those of messages that need no row.
        """
        settlements = [*self.noted, *settlements] if self.noted else settlements
        through = self._find_through(settlements) if settlements else frozenset()
        for run in self._runs:
            if self.failure is not None:  # readers may have come past the times of before
                self._stamp(run.accepts)
            batch.insert(run.accepts, segment=run.segment, end=run.end, without=through)
        return [s for s in settlements if s.queue_id not in through] if through else settlements

    def _find_through(self, settlements: list[Settlement]) -> Set[int]:
        delivered = {(s.queue_id, s.seq) for s in settlements if s.outcome is Outcome.DELIVERED}
        through: set[int] = set()
        for run in self._runs:
            for accept in run.accepts:
                queue_id = accept.queue_id
                if accept.segment and all(  # a private file is removed by way of its row
                    (queue_id, seq) in delivered for seq in range(len(accept.envelope.recipients))
                ):
                    through.add(queue_id)
        return through

    def written(self) -> None:
        """The transaction stands."""
        self._runs = []
        self.count = 0
        self.failure = None
        self.noted = []
        self.lags = False

    def find_delivered(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        """What of these was delivered of messages that have no row yet."""
        late = self._queue_ids()
        return [s for s in settlements if s.outcome is Outcome.DELIVERED and s.queue_id in late]

    def _queue_ids(self) -> Set[int]:
        return {accept.queue_id for run in self._runs for accept in run.accepts}

    def without(self, settlements: list[Settlement]) -> list[Settlement]:
        """Leave out settlements of messages that have no row yet: they would change nothing."""
        late = self._queue_ids()
        return [s for s in settlements if s.queue_id not in late]
