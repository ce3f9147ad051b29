"""What the writer does inside its transactions. Hot: every accepted and settled message is here.

Rows travel many to a statement (see `schema`); nothing in here flushes or answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Any, Protocol

import apsw

from posthouse.mail.envelope import Client, Envelope
from posthouse.mail.queueid import time_us_of
from posthouse.ports_spool import Outcome, Settlement, State
from posthouse.storage import schema
from posthouse.storage.segments import HEADER_BYTES
from posthouse.storage.spool_clock import DueClock


class Placed(Protocol):
    """A message whose octets are durable at a known place."""

    queue_id: int
    size: int
    tail_size: int
    segment: int
    at: int
    envelope: Envelope
    client: Client
    due_us: int


def widths(count: int) -> Iterator[tuple[int, int]]:
    """Cut `count` rows into statements: (first, rows)."""
    for first in range(0, count, schema.WIDEST):
        yield first, min(schema.WIDEST, count - first)


class Batch:
    """The statements of one connection, and the domains it knows by number."""

    def __init__(self, connection: apsw.Connection, due: DueClock) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._due = due
        self._domains: dict[str, int] = {}
        self.load_domains()
        self.stamp_us = self._last_stamp_us()

    def _last_stamp_us(self) -> int:
        """The time of the last queue id ever stored: ids ascend over restarts."""
        found: int = self._execute("SELECT coalesce(max(stamp_us), 0) FROM segment").get
        try:
            newest: int = self._execute("SELECT coalesce(max(queue_id), 0) FROM message").get
        except apsw.CorruptError:
            return found
        return max(found, time_us_of(newest))

    def load_domains(self) -> None:
        """Read the numbers of domains afresh: at the start, and after a rollback."""
        rows: Any = self._execute("SELECT name, id FROM domain").fetchall()
        self._domains = dict(rows)

    def _domain(self, name: str) -> int:
        number = self._domains.get(name)
        if number is None:
            self._execute("INSERT INTO domain (name) VALUES (?)", (name,))
            number = self._domains[name] = self._connection.last_insert_rowid()
        return number

    def insert(
        self,
        placed: Sequence[Placed],
        *,
        segment: int,
        end: int,
        without: Set[int] = frozenset(),
    ) -> None:
        """Move a: messages and their recipients; and say that `segment` is as long as `end`.

        without: queue ids of messages that get no rows, as they are gone already.
        """
        messages: list[Any] = []
        recipients: list[Any] = []
        held: list[Any] = []
        live = live_bytes = rows = 0
        first = last = placed[0].queue_id
        for message in placed:
            queue_id = message.queue_id
            first, last = min(first, queue_id), max(last, queue_id)
            if queue_id in without:
                continue
            messages += (
                queue_id,
                message.segment,
                message.at,
                message.size,
                message.tail_size,
                message.envelope.sender,
            )
            due_us = message.due_us
            for seq, recipient in enumerate(message.envelope.recipients):
                domain = self._domains.get(recipient.domain) or self._domain(recipient.domain)
                recipients += (queue_id, seq, domain, recipient.address, due_us)
                rows += 1
                if recipient.hold:
                    held += (queue_id, seq, int(State.HELD), due_us, recipient.hold, "")
            if message.segment:
                live += 1
                live_bytes += HEADER_BYTES + message.size + message.tail_size
        if rows:
            self._wide(schema.insert_messages, 6, messages, len(messages) // 6)
            self._wide(schema.insert_recipients, 5, recipients, rows)
        if held:
            self._wide(schema.update_recipients, 6, held, len(held) // 6)
        self.stamp_us = max(self.stamp_us, time_us_of(last))
        self._execute(
            schema.ADD_TO_SEGMENT, (segment, end, live, live_bytes, first, last, self.stamp_us)
        )

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Moves d, r, h. What was delivered goes though it was held meanwhile: it is a fact."""
        gone: list[int] = []
        touched: list[Any] = []
        now_us = self._due.now_us()
        for settlement in settlements:
            if settlement.outcome is Outcome.DELIVERED:
                gone += (settlement.queue_id, settlement.seq)
            else:
                held = settlement.outcome is Outcome.HELD
                touched += (
                    settlement.queue_id,
                    settlement.seq,
                    int(held),
                    now_us if held else settlement.due_us,
                    settlement.reason,
                    settlement.reply,
                )
        if gone:
            self._wide(schema.delete_recipients, 2, gone, len(gone) // 2)
            self.delete_messages(gone[::2])
        if touched:
            self._wide(schema.update_recipients, 6, touched, len(touched) // 6)

    def delete_recipients(self, keys: Sequence[tuple[int, int]]) -> int:
        """Move x. Returns how many there were."""
        flat = [part for key in keys for part in key]
        before = self._connection.total_changes()
        self._wide(schema.delete_recipients, 2, flat, len(keys))
        deleted = self._connection.total_changes() - before
        self.delete_messages(flat[::2])
        return deleted

    def delete_messages(self, queue_ids: Sequence[int]) -> None:
        """Remove those of these messages that have no recipient left."""
        distinct = list(dict.fromkeys(queue_ids))
        self._wide(schema.delete_settled_messages, 1, distinct, len(distinct))

    def move(self, moves: Sequence[tuple[int, int, int, int]], *, segment: int, end: int) -> None:
        """Point rows to copies: (queue id, segment, at, segment before)."""
        flat = [part for move in moves for part in move]
        first, last = min(flat[::4]), max(flat[::4])
        self._execute(schema.ADD_TO_SEGMENT, (segment, end, 0, 0, first, last, self.stamp_us))
        self._wide(schema.move_messages, 4, flat, len(moves))

    def _wide(self, text: Any, columns: int, values: list[Any], rows: int) -> None:
        if rows <= schema.WIDEST:
            self._execute(text(rows), values)
            return
        for first, count in widths(rows):
            self._execute(text(count), values[first * columns : (first + count) * columns])
