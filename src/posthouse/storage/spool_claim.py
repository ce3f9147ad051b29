"""Claims: what is due in a domain's queue, read for the relay. Runs in the reading thread.

Hot: a drained backlog passes through here.
"""

from __future__ import annotations

import errno
from collections.abc import Set
from typing import Any

import apsw

from posthouse import observe
from posthouse.errors import StorageBroken
from posthouse.mail.queueid import format_queue_id
from posthouse.ports_spool import Claim, Cursor, QueuedMessage
from posthouse.storage.segments import Place
from posthouse.storage.spool_clock import DueClock
from posthouse.storage.spool_reader import (
    DUE,
    FAILURES,
    MOST_ROWS,
    NEXT_DUE,
    OctetReader,
    Piece,
    Row,
    build_message,
    cursor_behind,
    decode_rows,
)

_KEYS_DUE = """
SELECT due_us, queue_id, seq FROM recipient INDEXED BY waiting
WHERE state = 0 AND domain = (SELECT id FROM domain WHERE name = ?)
    AND (due_us, queue_id, seq) > (?, ?, ?) AND due_us <= ?
ORDER BY due_us, queue_id, seq LIMIT ?
"""
_ONE = """
SELECT r.queue_id, r.seq, r.due_us, r.state, r.attempts, r.address, r.reason, r.reply,
    m.segment, m.at, m.size, m.tail
FROM recipient r LEFT JOIN message m ON m.queue_id = r.queue_id
WHERE r.queue_id = ? AND r.seq = ?
"""
_CAREFUL_ROWS = 256
_TRIES_TO_READ = 3
_MOST_UNREADABLE = 10_000
Damaged = tuple[int, int, str]
"""Queue id, seq (-1: every recipient of it), why."""


class Claimer:
    """Reads the queues of one shard."""

    def __init__(
        self,
        connection: apsw.Connection,
        octets: OctetReader,
        due: DueClock,
        *,
        left_out: Set[tuple[int, int]],
    ) -> None:
        """left_out: queue id and seq of rows that are there by mistake; it may grow meanwhile."""
        self._connection = connection
        self._left_out = left_out
        self._octets = octets
        self._unreadable: dict[int, int] = {}  # queue id → times in a row that the disk failed
        self._due = due

    def claim(
        self, domain: str, after: Cursor | None, now_us: int, max_messages: int, max_bytes: int
    ) -> tuple[Claim, list[Damaged]]:
        """See `Spool.claim`; what is damaged is left out and named. Raises StorageBroken."""
        limit_us = self._due.limit(now_us)
        behind = (-1, -1, -1) if after is None else (after.due_us, after.queue_id, after.seq)
        damaged: list[Damaged] = []
        try:
            rows, whole = self._read_due(domain, behind, limit_us, max_messages)
        except FAILURES:
            rows, whole = self._read_carefully(domain, behind, limit_us, max_messages, damaged)
        rows, exhausted = _cut_to(rows, max_messages, whole)
        cursor = cursor_behind(rows[-1]) if rows else after
        if rows:
            self._due.reached(rows[-1].due_us)
        messages = self._build(domain, rows, max_bytes, damaged)
        next_due_us = self._next_due(domain, limit_us) if exhausted else None
        return Claim(tuple(messages), cursor, exhausted, next_due_us), damaged

    def _read_due(
        self, domain: str, behind: tuple[int, int, int], limit_us: int, max_messages: int
    ) -> tuple[list[Row], bool]:
        """Rows due, and whether these are all. Enough rows for `max_messages` messages."""
        wanted = max_messages + 1
        while True:
            answer: Any = self._connection.execute(DUE, (domain, *behind, limit_us, wanted)).get
            rows = decode_rows(answer)
            if len(rows) < wanted:
                return rows, True
            messages = len({row.queue_id for row in rows})
            if messages > max_messages or wanted >= MOST_ROWS:
                return rows, False
            if messages > 1 and messages * 4 > max_messages:
                return rows, False  # some with many recipients: good enough a claim
            wanted = min(wanted * 8, MOST_ROWS)

    def _read_carefully(
        self,
        domain: str,
        behind: tuple[int, int, int],
        limit_us: int,
        max_messages: int,
        damaged: list[Damaged],
    ) -> tuple[list[Row], bool]:
        """The same row by row, naming the rows that cannot be read."""
        wanted = max(max_messages + 1, _CAREFUL_ROWS)
        keys: list[tuple[int, int, int]] = []
        try:
            for key in self._connection.execute(_KEYS_DUE, (domain, *behind, limit_us, wanted)):
                keys.append(key)  # noqa: PERF402 - keeps what came before a damaged page
        except FAILURES as error:
            observe.alert("spool", f"queue of {domain} is damaged: {error}")
            if not keys:
                raise StorageBroken(f"queue of {domain}: {error}") from error
        rows = []
        for due_us, queue_id, seq in keys:
            try:
                found = self._connection.execute(_ONE, (queue_id, seq)).fetchone()
                if found is None:  # settled meanwhile, or an entry of the index without a row
                    rows.append(_nothing(due_us, queue_id, seq))
                    continue
                row = Row(*found)
                if not isinstance(row.address, str) or not isinstance(row.reply, str):
                    raise UnicodeError("text column holds something else")
                rows.append(row)
            except FAILURES as error:
                damaged.append((queue_id, seq, f"row: {error}"))
                rows.append(_nothing(due_us, queue_id, seq))
        return rows, len(keys) < wanted

    def _build(
        self, domain: str, rows: list[Row], max_bytes: int, damaged: list[Damaged]
    ) -> list[QueuedMessage]:
        if self._left_out:
            rows = [row for row in rows if (row.queue_id, row.seq) not in self._left_out]
            damaged[:] = [key for key in damaged if (key[0], key[1]) not in self._left_out]
        grouped: dict[int, list[Row]] = {}
        places: dict[int, Place] = {}
        bodies: set[int] = set()
        for row in rows:
            queue_id = row.queue_id
            if row.state < 0:
                continue
            known = grouped.get(queue_id)
            if known is not None:
                known.append(row)
                continue
            place = row.place
            if place is None:
                damaged.append((queue_id, -1, "row of the message is missing"))
                continue
            grouped[queue_id] = [row]
            places[queue_id] = place
            if place.size <= max_bytes:
                max_bytes -= place.size
                bodies.add(queue_id)
        pieces = self._octets.read(places.values(), bodies=bodies)
        messages = []
        for queue_id, own in grouped.items():
            piece = pieces.get(queue_id)
            if piece is None:
                continue  # deleted meanwhile
            if piece.sealed is None:
                if piece.errno and not self._is_given_up(queue_id, piece.errno):
                    raise StorageBroken(f"{format_queue_id(queue_id)}: {piece.damage}")
                damaged.append((queue_id, -1, piece.damage))
                continue
            sound = [row for row in own if _agrees(row, piece, domain, damaged)]
            if sound:
                messages.append(
                    build_message(
                        queue_id,
                        places[queue_id].size,
                        piece.sealed,
                        sound,
                        domains={},
                        body=piece.body,
                    )
                )
        return messages

    def _is_given_up(self, queue_id: int, code: int) -> bool:
        """Whether a file that cannot be read is damaged: only when the disk said so repeatedly."""
        if code != errno.EIO:
            return False  # no descriptors, no memory …: says nothing about the octets
        tries = self._unreadable.get(queue_id, 0) + 1
        if tries >= _TRIES_TO_READ:
            self._unreadable.pop(queue_id, None)
            return True
        if len(self._unreadable) < _MOST_UNREADABLE:
            self._unreadable[queue_id] = tries
        return False

    def _next_due(self, domain: str, limit_us: int) -> int | None:
        try:
            due_us: int | None = self._connection.execute(NEXT_DUE, (domain, limit_us)).get
        except apsw.Error as error:
            observe.alert("spool", f"queue of {domain} is damaged: {error}")
            return None
        return due_us


def _nothing(due_us: int, queue_id: int, seq: int) -> Row:
    """Stands where a row cannot be had (state -1), so that the cursor moves on behind it."""
    return Row(queue_id, seq, due_us, -1, 0, "", "", "", None, None, None, None)


def _cut_to(rows: list[Row], max_messages: int, whole: bool) -> tuple[list[Row], bool]:
    """Keep rows of at most `max_messages` messages, the rows of each together."""
    seen: set[int] = set()
    for index, row in enumerate(rows):
        if row.queue_id not in seen:
            if len(seen) >= max_messages:
                return rows[:index], False
            seen.add(row.queue_id)
    if whole or len(seen) <= 1:
        return rows, whole
    last = rows[-1].queue_id  # may go on behind what was read: leave it to the next claim
    index = len(rows)
    while rows[index - 1].queue_id == last:
        index -= 1
    return rows[:index], False


def _agrees(row: Row, piece: Piece, domain: str, damaged: list[Damaged]) -> bool:
    """Whether the record vouches for what the row says: a damaged address must not get mail."""
    assert piece.sealed is not None
    given = piece.sealed.envelope.recipients
    if row.seq < len(given):
        sound = given[row.seq]
        if sound.address == row.address and sound.domain == domain:
            return True
    name = format_queue_id(row.queue_id)
    damaged.append((row.queue_id, row.seq, f"row: recipient {row.seq} of {name} differs"))
    return False
