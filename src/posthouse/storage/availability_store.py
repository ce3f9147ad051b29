"""The log of availability: outages of next hops, and what became of each domain's mail.

Compact: a row for each outage however long, a row for each hour in which a
domain had mail and each worker that saw it. `total` is the sum since ever, so
that what came during an outage is a difference of two sums: `meanwhile` holds
the sum at its beginning while it lasts, and the difference afterwards. An outage
is stored some seconds after it began: `recent` tells what came since.

Several processes write: the control process outages, every worker its tallies.
Each row has one writer; SQLite's lock puts their short transactions in a row.
A power cut may take the last moments; a crash takes nothing.
"""

# ruff: noqa: S608 - statements are put together from constants of this module alone

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import apsw

from posthouse.ports_alerts import DomainHistory, Outage, Reason
from posthouse.storage.small_database import guarded, open_small, open_small_to_read, writing
from posthouse.tally import Tally

LAYOUT_VERSION: Final = 2
HOUR_US: Final = 3_600_000_000
RECENT_US: Final = 120_000_000
MAX_WHY: Final = 500
_SLACK_US: Final = 2 * 24 * HOUR_US
"""`follow` is said once a day while it is so."""
MAX_DOMAINS_AT_ONCE: Final = 500

_FIELDS: Final = (
    "accepted",
    "accepted_bytes",
    "delivered",
    "delivered_bytes",
    "held",
    "unknown",
    "longest_us",
    "proxied",
    "proxied_bytes",
)
"""In the order of the columns: a new one goes to the end, and into `_UPGRADES`."""
_COUNTS: Final = tuple(name for name in _FIELDS if name != "longest_us")
_COLUMNS: Final = ", ".join(f"{name} INTEGER NOT NULL DEFAULT 0" for name in _FIELDS)
_TABLES: Final = f"""
CREATE TABLE outage (
    id INTEGER PRIMARY KEY,
    next_hop TEXT NOT NULL,
    reasons TEXT NOT NULL,
    why TEXT NOT NULL,
    from_us INTEGER NOT NULL,
    to_us INTEGER
);
CREATE UNIQUE INDEX lasting ON outage (next_hop) WHERE to_us IS NULL;
CREATE INDEX by_hop ON outage (next_hop, from_us);
CREATE TABLE route (
    domain TEXT NOT NULL,
    next_hop TEXT NOT NULL,
    first_us INTEGER NOT NULL,
    last_us INTEGER NOT NULL,
    PRIMARY KEY (domain, next_hop)
) WITHOUT ROWID;
CREATE TABLE watch (id INTEGER PRIMARY KEY, from_us INTEGER NOT NULL, to_us INTEGER NOT NULL);
CREATE TABLE tally (
    domain TEXT NOT NULL, hour INTEGER NOT NULL, worker INTEGER NOT NULL, {_COLUMNS},
    PRIMARY KEY (domain, hour, worker)
) WITHOUT ROWID;
CREATE TABLE total (
    domain TEXT NOT NULL, worker INTEGER NOT NULL, {_COLUMNS},
    PRIMARY KEY (domain, worker)
) WITHOUT ROWID;
CREATE TABLE recent (domain TEXT NOT NULL, at_us INTEGER NOT NULL, {_COLUMNS});
CREATE INDEX recently ON recent (domain, at_us);
CREATE INDEX recent_first ON recent (at_us);
CREATE TABLE meanwhile (
    outage INTEGER NOT NULL, domain TEXT NOT NULL, {_COLUMNS},
    PRIMARY KEY (outage, domain)
) WITHOUT ROWID;
"""
_UPGRADES: Final = {
    1: "".join(
        f"ALTER TABLE {table} ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0;\n"
        for table in ("tally", "total", "recent", "meanwhile")
        for name in ("proxied", "proxied_bytes")
    )
}
_ADD: Final = ", ".join(f"{name} = {name} + excluded.{name}" for name in _COUNTS)
_PUT: Final = f"""
ON CONFLICT DO UPDATE SET {_ADD}, longest_us = max(longest_us, excluded.longest_us)
"""
_MARKS: Final = ", ".join("?" * len(_FIELDS))
_INTO_TALLY: Final = f"INSERT INTO tally VALUES (?, ?, ?, {_MARKS}) {_PUT}"
_INTO_RECENT: Final = f"INSERT INTO recent VALUES (?, ?, {_MARKS})"
_INTO_TOTAL: Final = f"INSERT INTO total VALUES (?, ?, {_MARKS}) {_PUT}"
_SUM: Final = ", ".join(
    f"coalesce({'max' if name == 'longest_us' else 'sum'}({name}), 0)" for name in _FIELDS
)
_ROUTED: Final = "domain IN (SELECT domain FROM route WHERE next_hop = ?2)"
_SUMS: Final = ", ".join(f"sum({name}) AS {name}" for name in _COUNTS)
_NEGATED: Final = ", ".join(f"-{name}" for name in _COUNTS)
_THEN: Final = f"""
SELECT domain, {_SUMS} FROM (
    SELECT domain, {", ".join(_COUNTS)} FROM total WHERE {_ROUTED}
    UNION ALL
    SELECT domain, {_NEGATED} FROM recent WHERE {_ROUTED} AND at_us >= ?3)
GROUP BY domain
"""
"""The sums since ever of a next hop's domains, as they were at a moment not long ago."""
_MARK: Final = f"""
INSERT OR REPLACE INTO meanwhile (outage, domain, {", ".join(_COUNTS)})
SELECT ?1, domain, {", ".join(_COUNTS)} FROM ({_THEN})
"""
_DIFFERENCE: Final = ", ".join(f"t.{n} - coalesce(m.{n}, 0)" for n in _COUNTS)
_CLOSE: Final = f"""
INSERT OR REPLACE INTO meanwhile (outage, domain, {", ".join(_COUNTS)})
SELECT ?1, t.domain, {_DIFFERENCE}
FROM ({_THEN}) t LEFT JOIN meanwhile m ON m.outage = ?1 AND m.domain = t.domain
"""
_NOTHING: Final = " AND ".join(f"{name} = 0" for name in _COUNTS)
_MEANWHILE: Final = ", ".join(f"coalesce(m.{name}, 0)" for name in _FIELDS)
_FOLLOW: Final = """
INSERT INTO route SELECT value, ?, ?, ? FROM json_each(?) WHERE true
ON CONFLICT DO UPDATE SET last_us = excluded.last_us
"""


class SqliteAvailability:
    """See `ports_alerts.AvailabilityStore`."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._watch = 0

    @classmethod
    def open(cls, path: Path) -> SqliteAvailability:
        """For one of the processes that write. Raises StorageError."""
        return cls(open_small(path, _TABLES, LAYOUT_VERSION, durable=False, upgrades=_UPGRADES))

    @classmethod
    def open_to_read(cls, path: Path) -> SqliteAvailability | None:
        """For an operator's command; None when no node has run here. Raises StorageError."""
        connection = open_small_to_read(path)
        return None if connection is None else cls(connection)

    def close(self) -> None:
        self._connection.close()

    # ------------------------------------------------------------------ tallies

    @guarded
    def add(self, worker: int, counts: Mapping[str, Tally], *, now_us: int) -> None:
        hour = now_us // HOUR_US
        rows = [
            (domain, tuple(getattr(tally, name) for name in _FIELDS))
            for domain, tally in counts.items()
        ]
        with writing(self._connection):
            self._connection.executemany(
                _INTO_TALLY, [(domain, hour, worker, *values) for domain, values in rows]
            )
            self._connection.executemany(
                _INTO_TOTAL, [(domain, worker, *values) for domain, values in rows]
            )
            self._connection.executemany(
                _INTO_RECENT, [(domain, now_us, *values) for domain, values in rows]
            )
            self._connection.execute("DELETE FROM recent WHERE at_us < ?", (now_us - RECENT_US,))

    # ------------------------------------------------------------------ the node and its hops

    @guarded
    def watched(self, *, now_us: int, fresh: bool) -> None:
        if fresh or not self._watch:
            self._connection.execute(
                "INSERT INTO watch (from_us, to_us) VALUES (?, ?)", (now_us,) * 2
            )
            self._watch = self._connection.last_insert_rowid()
            return
        statement = "UPDATE watch SET to_us = max(to_us, ?) WHERE id = ?"
        self._connection.execute(statement, (now_us, self._watch))

    @guarded
    def follow(self, next_hop: str, domains: Sequence[str], *, now_us: int) -> None:
        with writing(self._connection):
            for at in range(0, len(domains), MAX_DOMAINS_AT_ONCE):
                some = json.dumps(domains[at : at + MAX_DOMAINS_AT_ONCE])
                self._connection.execute(_FOLLOW, (next_hop, now_us, now_us, some))

    @guarded
    def open_outages(self) -> Sequence[Outage]:
        statement = "SELECT next_hop, reasons, why, from_us, to_us FROM outage WHERE to_us IS NULL"
        return [_make_outage(row, Tally()) for row in self._rows(statement)]

    @guarded
    def begin_outage(self, next_hop: str, reason: Reason, why: str, *, from_us: int) -> None:
        if self._find_open(next_hop) is not None:
            return
        with writing(self._connection):
            self._connection.execute(
                "INSERT INTO outage (next_hop, reasons, why, from_us) VALUES (?, ?, ?, ?)",
                (next_hop, json.dumps([reason]), why[:MAX_WHY], from_us),
            )
            number = self._connection.last_insert_rowid()
            self._connection.execute(_MARK, (number, next_hop, from_us))

    @guarded
    def explain_outage(self, next_hop: str, reason: Reason, why: str) -> None:
        found = self._find_open(next_hop)
        if found is None:
            return
        number, reasons, _ = found
        if reason not in reasons:
            reasons.append(reason)
        statement = "UPDATE outage SET reasons = ?, why = ? WHERE id = ?"
        self._connection.execute(statement, (json.dumps(reasons), why[:MAX_WHY], number))

    @guarded
    def end_outage(self, next_hop: str, *, to_us: int) -> None:
        found = self._find_open(next_hop)
        if found is None:
            return
        number, _, from_us = found
        to_us = max(from_us, to_us)
        with writing(self._connection):
            statement = "UPDATE outage SET to_us = ? WHERE id = ?"
            self._connection.execute(statement, (to_us, number))
            self._connection.execute(_CLOSE, (number, next_hop, to_us))
            self._connection.execute(
                f"DELETE FROM meanwhile WHERE outage = ? AND {_NOTHING}", (number,)
            )

    def _find_open(self, next_hop: str) -> tuple[int, list[str], int] | None:
        rows = self._rows(
            "SELECT id, reasons, from_us FROM outage WHERE next_hop = ? AND to_us IS NULL",
            (next_hop,),
        )
        return (rows[0][0], json.loads(rows[0][1]), rows[0][2]) if rows else None

    @guarded
    def prune(self, *, before_us: int) -> None:
        with writing(self._connection):
            self._connection.execute("DELETE FROM outage WHERE to_us < ?", (before_us,))
            self._connection.execute(
                "DELETE FROM meanwhile WHERE outage NOT IN (SELECT id FROM outage)"
            )
            self._connection.execute("DELETE FROM tally WHERE hour < ?", (before_us // HOUR_US,))
            self._connection.execute("DELETE FROM watch WHERE to_us < ?", (before_us,))
            self._connection.execute("DELETE FROM route WHERE last_us < ?", (before_us,))

    # ------------------------------------------------------------------ reading

    @guarded
    def read(self, domain: str, *, from_us: int, to_us: int) -> DomainHistory:
        [values] = self._rows(
            f"SELECT {_SUM} FROM tally WHERE domain = ? AND hour >= ? AND hour < ?",
            (domain, from_us // HOUR_US, -(-to_us // HOUR_US)),
        )
        hops = self._rows(
            "SELECT next_hop FROM route WHERE domain = ? AND first_us < ? "
            f"AND last_us + {_SLACK_US} >= ? ORDER BY first_us",
            (domain, to_us, from_us),
        )
        [[watched_us]] = self._rows(
            "SELECT coalesce(sum(min(to_us, ?2) - max(from_us, ?1)), 0) FROM watch "
            "WHERE to_us > ?1 AND from_us < ?2",
            (from_us, to_us),
        )
        return DomainHistory(
            outages=tuple(self._read_outages(domain, from_us, to_us)),
            tally=_make_tally(values),
            next_hops=tuple(hop for (hop,) in hops),
            watched_us=watched_us,
        )

    def _read_outages(self, domain: str, from_us: int, to_us: int) -> list[Outage]:
        rows = self._rows(
            f"SELECT o.next_hop, o.reasons, o.why, o.from_us, o.to_us, o.id, {_MEANWHILE} "
            "FROM outage o JOIN route r ON r.next_hop = o.next_hop AND r.domain = ?1 "
            "AND r.first_us <= coalesce(o.to_us, r.first_us) "
            f"AND r.last_us + {_SLACK_US} >= o.from_us "
            "LEFT JOIN meanwhile m ON m.outage = o.id AND m.domain = ?1 "
            "WHERE o.from_us < ?3 AND coalesce(o.to_us, ?3) > ?2 ORDER BY o.from_us",
            (domain, from_us, to_us),
        )
        found = []
        for row in rows:
            meanwhile = _make_tally(row[6:])
            if row[4] is None:  # it lasts: what stands there is the sum at its beginning
                [values] = self._rows(f"SELECT {_SUM} FROM total WHERE domain = ?", (domain,))
                now = _make_tally(values)
                for name in _COUNTS:
                    setattr(meanwhile, name, getattr(now, name) - getattr(meanwhile, name))
                meanwhile.longest_us = 0
            found.append(_make_outage(row, meanwhile))
        return found

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        found: list[Any] = self._connection.execute(statement, values).fetchall()
        return found


def _make_tally(values: Sequence[Any]) -> Tally:
    return Tally(**dict(zip(_FIELDS, values, strict=True)))


def _make_outage(row: Sequence[Any], meanwhile: Tally) -> Outage:
    next_hop, reasons, why, from_us, to_us = row[:5]
    return Outage(
        next_hop=next_hop,
        reasons=tuple(_read_reason(text) for text in json.loads(reasons)),
        why=why,
        from_us=from_us,
        to_us=to_us,
        meanwhile=meanwhile,
    )


def _read_reason(text: str) -> Reason:
    try:
        return Reason(text)
    except ValueError:  # of a newer Posthouse
        return Reason.OTHER
