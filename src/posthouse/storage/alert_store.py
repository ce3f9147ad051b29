"""Alerts, how far each way of telling is, and what the digest has told: one small database.

`alert` has a row for each time something was wrong; `news` a row for each
beginning and end that is to be told, in the order in which it is. A channel
remembers the last news it told, so nothing is told twice or forgotten over a
restart, and a channel that fails holds up no other.
"""

# ruff: noqa: S608 - statements are put together from constants of this module alone

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from posthouse.ports_alerts import Alert, ChannelRecord, HeldKey, StoredAlert
from posthouse.storage.small_database import guarded, open_small, open_small_to_read, writing

LAYOUT_VERSION: Final = 1
MOST_KEPT: Final = 20_000
"""Alerts that are over: at one a minute, two weeks of a node that nobody looks after."""

_TABLES: Final = """
CREATE TABLE alert (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    text TEXT NOT NULL,
    what_to_do TEXT NOT NULL,
    since_us INTEGER NOT NULL,
    raised_us INTEGER NOT NULL,
    over_us INTEGER,
    announced INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX standing ON alert (kind, subject) WHERE over_us IS NULL;
CREATE TABLE news (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    alert INTEGER NOT NULL
);
CREATE TABLE channel (name TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE told (
    queue_id INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    held_us INTEGER NOT NULL,
    PRIMARY KEY (queue_id, seq)
) WITHOUT ROWID;
CREATE TABLE digest (id INTEGER PRIMARY KEY CHECK (id = 1), told_us INTEGER NOT NULL);
"""
_SELECT: Final = """
SELECT number, kind, subject, text, what_to_do, since_us, raised_us, over_us FROM alert
"""
_INSERT: Final = """
INSERT INTO alert (kind, subject, text, what_to_do, since_us, raised_us) VALUES (?, ?, ?, ?, ?, ?)
"""
_NEWS_OF: Final = """
INSERT INTO news (alert) SELECT number FROM alert
WHERE announced AND number IN (SELECT value FROM json_each(?)) ORDER BY number
"""
_AMONG: Final = "number IN (SELECT value FROM json_each(?))"
_UNTOLD: Final = """
SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?) AS held
WHERE NOT EXISTS (SELECT 1 FROM told WHERE queue_id = held.value ->> 0
    AND seq = held.value ->> 1 AND held_us = held.value ->> 2)
"""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ChannelRecord).decode


class SqliteAlertStore:
    """See `ports_alerts.AlertStore`."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, path: Path) -> SqliteAlertStore:
        """For the one process that writes. Raises StorageError."""
        return cls(open_small(path, _TABLES, LAYOUT_VERSION, durable=True))

    @classmethod
    def open_to_read(cls, path: Path) -> SqliteAlertStore | None:
        """For an operator's command; None when no node has run here. Raises StorageError."""
        connection = open_small_to_read(path)
        return None if connection is None else cls(connection)

    def close(self) -> None:
        self._connection.close()

    # ------------------------------------------------------------------ alerts

    @guarded
    def load_standing(self) -> Sequence[tuple[StoredAlert, bool]]:
        statement = f"{_SELECT.replace(' FROM', ', announced FROM')} WHERE over_us IS NULL"
        return [(_make(row), bool(row[8])) for row in self._rows(f"{statement} ORDER BY number")]

    @guarded
    def begin(self, alerts: Sequence[Alert], *, now_us: int) -> Sequence[StoredAlert]:
        found = []
        with writing(self._connection):
            for alert in alerts:
                if not alert.since_us:
                    alert = msgspec.structs.replace(alert, since_us=now_us)
                values = (alert.kind, alert.subject, alert.text, alert.what_to_do)
                self._connection.execute(_INSERT, (*values, alert.since_us, now_us))
                number = self._connection.last_insert_rowid()
                found.append(StoredAlert(number=number, alert=alert, raised_us=now_us))
        return found

    @guarded
    def update(self, number: int, alert: Alert) -> None:
        statement = "UPDATE alert SET text = ?, what_to_do = ? WHERE number = ?"
        self._connection.execute(statement, (alert.text, alert.what_to_do, number))

    @guarded
    def announce(self, numbers: Sequence[int]) -> None:
        chosen = (json.dumps(list(numbers)),)
        with writing(self._connection):
            self._connection.execute(f"UPDATE alert SET announced = 1 WHERE {_AMONG}", chosen)
            self._connection.execute(_NEWS_OF, chosen)

    @guarded
    def end(self, numbers: Sequence[int], *, over_us: int) -> None:
        chosen = json.dumps(list(numbers))
        with writing(self._connection):
            statement = f"UPDATE alert SET over_us = ? WHERE {_AMONG} AND over_us IS NULL"
            self._connection.execute(statement, (over_us, chosen))
            self._connection.execute(_NEWS_OF, (chosen,))

    @guarded
    def list_alerts(self, *, everything: bool, limit: int) -> Sequence[StoredAlert]:
        where = "" if everything else "WHERE over_us IS NULL"
        statement = f"{_SELECT} {where} ORDER BY number DESC LIMIT ?"
        return [_make(row) for row in self._rows(statement, (limit,))]

    @guarded
    def prune(self, *, before_us: int) -> None:
        with writing(self._connection):
            self._connection.execute(
                "DELETE FROM alert WHERE over_us < ? OR (over_us IS NOT NULL AND number <= "
                "(SELECT max(number) FROM alert) - ?)",
                (before_us, MOST_KEPT),
            )
            self._connection.execute(
                "DELETE FROM news WHERE alert NOT IN (SELECT number FROM alert)"
            )

    # ------------------------------------------------------------------ telling

    @guarded
    def find_news(self, after: int, limit: int) -> tuple[Sequence[StoredAlert], int]:
        rows = self._rows(
            "SELECT id, alert FROM news WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
        )
        if not rows:
            return (), after
        numbers = list(dict.fromkeys(row[1] for row in rows))
        statement = f"{_SELECT} WHERE {_AMONG}"
        found = {row[0]: _make(row) for row in self._rows(statement, (json.dumps(numbers),))}
        return [found[number] for number in numbers if number in found], rows[-1][0]

    @guarded
    def get_channel(self, name: str) -> ChannelRecord:
        known = self._rows("SELECT record FROM channel WHERE name = ?", (name,))
        if known:
            return _decode(known[0][0])
        [[newest]] = self._rows("SELECT coalesce(max(id), 0) FROM news")
        record = ChannelRecord(told=newest)
        self.save_channel(name, record)
        return record

    @guarded
    def save_channel(self, name: str, record: ChannelRecord) -> None:
        statement = "INSERT OR REPLACE INTO channel VALUES (?, ?)"
        self._connection.execute(statement, (name, _encode(record).decode()))

    # ------------------------------------------------------------------ the digest

    @guarded
    def find_new_held(self, keys: Iterable[HeldKey]) -> Sequence[HeldKey]:
        rows = self._rows(_UNTOLD, (json.dumps(list(keys)),))
        return [(queue_id, seq, held_us) for queue_id, seq, held_us in rows]

    @guarded
    def save_digest(self, held: Iterable[HeldKey], *, now_us: int) -> None:
        with writing(self._connection):
            self._connection.execute("DELETE FROM told")
            self._connection.executemany("INSERT OR REPLACE INTO told VALUES (?, ?, ?)", held)
            self._connection.execute("INSERT OR REPLACE INTO digest VALUES (1, ?)", (now_us,))

    @guarded
    def last_digest_us(self) -> int:
        rows = self._rows("SELECT told_us FROM digest")
        return int(rows[0][0]) if rows else 0

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        found: list[Any] = self._connection.execute(statement, values).fetchall()
        return found


def _make(row: Sequence[Any]) -> StoredAlert:
    number, kind, subject, text, what_to_do, since_us, raised_us, over_us = row[:8]
    alert = Alert(kind=kind, subject=subject, text=text, what_to_do=what_to_do, since_us=since_us)
    return StoredAlert(number=number, alert=alert, raised_us=raised_us, over_us=over_us)
