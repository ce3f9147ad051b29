"""What operators and the sweeper ask: selections, totals, domains, what has expired.

Runs in a reading thread of its own, so that a question over a million rows
delays no claim.
"""

# ruff: noqa: S608 - statements are put together from constants of this package alone

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import apsw
import msgspec

from posthouse.mail.queueid import time_us_of
from posthouse.ports_spool import DomainTotals, QueuedMessage, Selection, State
from posthouse.storage.segments import Place
from posthouse.storage.spool_clock import DueClock
from posthouse.storage.spool_reader import OctetReader, Piece, Row, build_message

Key = tuple[int, int]
"""Queue id and seq: one recipient."""

_FROM: Final = """
FROM recipient r JOIN domain d ON d.id = r.domain LEFT JOIN message m ON m.queue_id = r.queue_id
"""
_DOMAINS: Final = """
SELECT json_group_array(json_array(name, due_us)) FROM (
    SELECT name, (SELECT min(due_us) FROM recipient INDEXED BY waiting
                  WHERE state = 0 AND recipient.domain = domain.id) AS due_us
    FROM domain) WHERE due_us IS NOT NULL
"""
_TOTALS: Final = """
SELECT json_group_array(json_array(name, queued, held, oldest, size, oldest_queued)) FROM (
    SELECT d.name AS name, sum(t.queued) AS queued, sum(t.held) AS held,
        min(t.queue_id) AS oldest, sum(t.size) AS size,
        min(CASE WHEN t.queued THEN t.queue_id END) AS oldest_queued
    FROM (SELECT r.queue_id AS queue_id, r.domain AS domain, sum(r.state = 0) AS queued,
              sum(r.state <> 0) AS held, max(coalesce(m.size, 0)) AS size
          FROM recipient r LEFT JOIN message m ON m.queue_id = r.queue_id
          GROUP BY r.queue_id, r.domain) t
    JOIN domain d ON d.id = t.domain GROUP BY t.domain ORDER BY d.name)
"""
_EXPIRED: Final = """
SELECT json_group_array(json_array(queue_id, seq)) FROM (
    SELECT queue_id, seq FROM recipient INDEXED BY waiting
    WHERE state = 0 AND domain = (SELECT id FROM domain WHERE name = ?)
        AND coalesce(kept_us, queue_id >> 8) < ? LIMIT ?)
"""
_LONGEST_KEPT: Final = """
SELECT min(coalesce(kept_us, queue_id >> 8)) FROM recipient INDEXED BY waiting
WHERE state = 0 AND domain = (SELECT id FROM domain WHERE name = ?)
"""


class Listing:
    """Answers over the rows of one shard."""

    def __init__(self, connection: apsw.Connection, octets: OctetReader, due: DueClock) -> None:
        self._connection = connection
        self._octets = octets
        self._due = due
        self._none_kept_before_us: dict[str, int] = {}
        connection.create_scalar_function("folded", _folded, 1, deterministic=True)

    def _json(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement that answers with one JSON text: one step however many rows."""
        return json.loads(self._connection.execute(statement, values).get)

    def queued_domains(self, now_us: int) -> dict[str, int]:
        """See `ports_spool.Spool`. What a claim would give is due now, wherever the clock is."""
        limit_us = self._due.limit(now_us)
        return {
            name: min(due_us, now_us) if due_us <= limit_us else due_us
            for name, due_us in self._json(_DOMAINS)
        }

    def totals(self) -> list[DomainTotals]:
        """See `ports_spool.Spool`."""
        return [
            DomainTotals(
                domain=name,
                queued=queued,
                held=held,
                oldest_us=time_us_of(oldest),
                size_bytes=size,
                oldest_queued_us=None if waiting is None else time_us_of(waiting),
            )
            for name, queued, held, oldest, size, waiting in self._json(_TOTALS)
        ]

    def find_expired(self, domain: str, kept_before_us: int, limit: int) -> list[Key]:
        """Queued rows kept since before that instant.

        Reads the domain's queue, but not again until something in it can have grown old.
        """
        if kept_before_us <= self._none_kept_before_us.get(domain, 0):
            return []
        keys = self._json(_EXPIRED, (domain, kept_before_us, limit))
        if not keys:
            # Rows that come later are kept since later: the bound holds while the queue changes.
            longest = self._connection.execute(_LONGEST_KEPT, (domain,)).get
            self._none_kept_before_us[domain] = kept_before_us if longest is None else longest
        return [(queue_id, seq) for queue_id, seq in keys]

    # ------------------------------------------------------------------ selections

    def find_keys(self, selection: Selection, after: Key, limit: int) -> list[Key]:
        """Recipients that are meant, ascending, behind `after`."""
        where, values = _conditions(selection)
        statement = (
            "SELECT json_group_array(json_array(queue_id, seq)) FROM (SELECT r.queue_id, r.seq "
            f"{_FROM} WHERE (r.queue_id, r.seq) > (?, ?) {where} "
            "ORDER BY r.queue_id, r.seq LIMIT ?)"
        )
        return [(q, seq) for q, seq in self._json(statement, (*after, *values, limit))]

    def list_messages(
        self, selection: Selection, after: int | None, limit: int
    ) -> list[QueuedMessage]:
        """See `ports_spool.Spool`."""
        where, values = _conditions(selection)
        statement = (
            "SELECT json_group_array(queue_id) FROM (SELECT DISTINCT r.queue_id "
            f"{_FROM} WHERE r.queue_id > ? {where} ORDER BY r.queue_id LIMIT ?)"
        )
        queue_ids = self._json(statement, (-1 if after is None else after, *values, limit))
        return self._show(queue_ids, where, values)

    def show_keys(self, keys: Sequence[Key]) -> list[QueuedMessage]:
        """The messages of these recipients, with these recipients only."""
        wanted = set(keys)
        found = self._show(sorted({key[0] for key in keys}), "", ())
        messages = []
        for message in found:
            own = tuple(r for r in message.recipients if (message.queue_id, r.seq) in wanted)
            if own:
                messages.append(_with_recipients(message, own))
        return messages

    def _show(
        self, queue_ids: Sequence[int], where: str, values: Sequence[Any]
    ) -> list[QueuedMessage]:
        statement = (
            "SELECT r.queue_id, r.seq, r.due_us, r.state, r.attempts, r.address, r.reason, "
            "r.reply, m.segment, m.at, m.size, m.tail, d.name, coalesce(m.sender, '') "
            f"{_FROM} WHERE r.queue_id IN (SELECT value FROM json_each(?)) {where} "
            "ORDER BY r.queue_id, r.seq"
        )
        values = (json.dumps(queue_ids), *values)
        found: list[Any] = self._connection.execute(statement, values).fetchall()
        grouped: dict[int, list[tuple[Any, ...]]] = {}
        places: list[Place] = []
        for columns in found:
            if columns[0] not in grouped:
                place = Row(*columns[:12]).place
                if place is not None:
                    places.append(place)
            grouped.setdefault(columns[0], []).append(columns)
        pieces = self._octets.read(places, bodies=set())
        sizes = {place.queue_id: place.size for place in places}
        return [
            build_message(
                queue_id,
                sizes.get(queue_id, 0),
                pieces.get(queue_id, Piece()).sealed,
                (Row(*columns[:12]) for columns in rows),
                domains={columns[1]: columns[12] for columns in rows},
                sender=rows[0][13],
            )
            for queue_id, rows in grouped.items()
        ]


def _with_recipients(message: QueuedMessage, recipients: tuple[Any, ...]) -> QueuedMessage:
    return msgspec.structs.replace(message, recipients=recipients)


def _conditions(selection: Selection) -> tuple[str, list[Any]]:
    """A selection as SQL conditions over r, d, m (each begins with AND) and their values."""
    parts: list[str] = []
    values: list[Any] = []

    def require(condition: str, *given: Any) -> None:
        parts.append(f"AND {condition}")
        values.extend(given)

    if selection.queue_ids:
        require("r.queue_id IN (SELECT value FROM json_each(?))", json.dumps(selection.queue_ids))
    if selection.domain:
        require("d.name = ?", selection.domain.lower())
    if selection.recipient:
        require(*_same("r.address", selection.recipient))
    if selection.sender is not None:
        require(*_same("m.sender", selection.sender))
    if selection.state is not None:
        require("r.state = ?", int(State(selection.state)))
    if selection.older_than_us is not None:
        require("r.queue_id < ?", selection.older_than_us << 8)
    if selection.since_us is not None:
        since_us = selection.since_us
        require("(r.queue_id >= ? OR (r.state = 1 AND r.due_us >= ?))", since_us << 8, since_us)
    if selection.reply_code:
        require("substr(r.reply, 1, 3) = ?", selection.reply_code)
    elif selection.reply:
        fold = "lower" if selection.reply.isascii() else "folded"
        wanted = _folded(selection.reply)
        require(f"(instr({fold}(r.reply), ?) OR instr({fold}(r.reason), ?))", wanted, wanted)
    return " ".join(parts), values


def _same(column: str, wanted: str) -> tuple[str, str]:
    """Compare without case. Only what is not ASCII costs a call of Python for each row."""
    if wanted.isascii():
        return f"{column} = ? COLLATE NOCASE", wanted
    return f"folded({column}) = ?", _folded(wanted)


def _folded(*text: Any) -> str:
    return (text[0] or "").casefold()
