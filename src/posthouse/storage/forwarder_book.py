"""The forwarder book in SQLite: `ports_agreements.ForwarderBook`.

Each entry is one row: its document as JSON, and beside it what is searched for.
`view` is what the door needs of it, packed for the snapshot
(`storage/agreement_snapshot`); a trigger counts its changes, so that counting
messages does not make the workers load anything anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from posthouse.domain.agreement import State
from posthouse.domain.recipients import Fold
from posthouse.ports_agreements import (
    AgreementQuery,
    ForwarderChange,
    ForwarderEntry,
    Report,
    Sighting,
)
from posthouse.storage.agreement_snapshot import SnapshotWriter, digest_of, pack_view
from posthouse.storage.book_file import BookFile

LAYOUT_VERSION: Final = 1
# Reports whose names are remembered, so that one left behind by a crash is not counted twice.
_NAMES_KEPT: Final = 10_000

TABLES: Final = """
CREATE TABLE entry (
    canonical TEXT PRIMARY KEY,
    domain TEXT NOT NULL,
    state INTEGER NOT NULL,
    due_us INTEGER,
    recipe_id TEXT NOT NULL,
    agreement_id TEXT NOT NULL,
    asked_serial INTEGER NOT NULL,   -- the last roster that was asked about it
    digest BLOB NOT NULL,
    view BLOB NOT NULL,
    document BLOB NOT NULL
);
CREATE INDEX due ON entry (domain, due_us) WHERE due_us IS NOT NULL AND state <> 6;
CREATE INDEX ended ON entry (due_us) WHERE due_us IS NOT NULL AND state = 6;
CREATE INDEX state ON entry (domain, state);
CREATE INDEX behind ON entry (domain, asked_serial);
CREATE UNIQUE INDEX recipe ON entry (recipe_id) WHERE recipe_id <> '';
CREATE INDEX agreement ON entry (agreement_id) WHERE agreement_id <> '';
CREATE UNIQUE INDEX snapshot ON entry (digest, view);
CREATE TABLE fold (domain TEXT PRIMARY KEY, how BLOB NOT NULL);
CREATE TABLE taken (number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
CREATE TABLE revision (of TEXT PRIMARY KEY, number INTEGER NOT NULL);
INSERT INTO revision VALUES ('views', 1);
CREATE TRIGGER view_added AFTER INSERT ON entry BEGIN
    UPDATE revision SET number = number + 1; END;
CREATE TRIGGER view_changed AFTER UPDATE OF view ON entry WHEN old.view IS NOT new.view BEGIN
    UPDATE revision SET number = number + 1; END;
CREATE TRIGGER view_gone AFTER DELETE ON entry BEGIN
    UPDATE revision SET number = number + 1; END;
CREATE TRIGGER fold_added AFTER INSERT ON fold BEGIN
    UPDATE revision SET number = number + 1; END;
CREATE TRIGGER fold_gone AFTER DELETE ON fold BEGIN
    UPDATE revision SET number = number + 1; END;
"""

_WRITE: Final = """
INSERT INTO entry VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT (canonical) DO UPDATE SET
    domain = excluded.domain, state = excluded.state, due_us = excluded.due_us,
    recipe_id = excluded.recipe_id, agreement_id = excluded.agreement_id,
    asked_serial = max(asked_serial, excluded.asked_serial),
    view = excluded.view, document = excluded.document
"""

_NEXT_DUE: Final = """
SELECT domain, due_us FROM entry WHERE due_us IS NOT NULL AND state <> 6 AND domain > ?
ORDER BY domain, due_us LIMIT 1
"""

_FORGET: Final = """
DELETE FROM entry WHERE state = 6 AND due_us IS NULL AND CASE
    WHEN document ->> '$.end.until_us' > 0 THEN document ->> '$.end.until_us' <= :now
        OR document ->> '$.end.at_us' > :now
    ELSE document ->> '$.end.at_us' < :before END
"""

_FAR: Final = "SELECT canonical FROM entry WHERE due_us > ?"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ForwarderEntry).decode
_encode_fold = msgspec.json.Encoder().encode
_decode_fold = msgspec.json.Decoder(Fold).decode

TakeSighting = Callable[[Sighting, ForwarderEntry | None], ForwarderEntry | None]


class SqliteForwarderBook:
    """See the port. `snapshot`: where the workers look."""

    def __init__(self, file: BookFile, snapshot: SnapshotWriter) -> None:
        self._file = file
        self._snapshot = snapshot
        self._publishing = asyncio.Lock()

    @classmethod
    async def open(cls, directory: Path) -> SqliteForwarderBook:
        """Open or make the book in its directory. Raises StorageError."""
        path = book_path(directory)
        file = await BookFile.open(path, tables=TABLES, layout=LAYOUT_VERSION)
        return cls(file, SnapshotWriter(path, snapshot_path(directory)))

    async def close(self) -> None:
        """Finish what was handed over and close. Harmless when repeated."""
        await self._file.close()
        await asyncio.to_thread(self._snapshot.close)

    async def publish(self) -> None:
        """Swap the workers' snapshot when anything they see has changed. Raises StorageError."""
        async with self._publishing:
            await asyncio.to_thread(self._snapshot.publish)

    # ------------------------------------------------------------------ changes

    async def change(
        self, canonicals: Sequence[str], decide: ForwarderChange
    ) -> Sequence[ForwarderEntry]:
        """Apply `decide` to each key, all in one step."""

        def work(connection: apsw.Connection) -> list[ForwarderEntry]:
            given: list[ForwarderEntry] = []
            for canonical in canonicals:
                entry = decide(canonical, _find(connection, canonical))
                if entry is not None:
                    _write(connection, entry)
                    given.append(entry)
            return given

        return await self._file.write(work)

    async def take(
        self, reports: Sequence[Report], decide: TakeSighting
    ) -> Sequence[ForwarderEntry]:
        """As `change`, for sightings; what was taken before changes nothing again."""

        def work(connection: apsw.Connection) -> list[ForwarderEntry]:
            given: dict[str, ForwarderEntry] = {}
            for report in reports:
                connection.execute("INSERT OR IGNORE INTO taken (name) VALUES (?)", (report.name,))
                if not connection.changes():
                    continue
                for sighting in report.sightings:
                    entry = decide(sighting, _find(connection, sighting.canonical))
                    if entry is not None:
                        _write(connection, entry)
                        given[entry.canonical] = entry
            connection.execute(
                "DELETE FROM taken WHERE number <= (SELECT max(number) FROM taken) - ?",
                (_NAMES_KEPT,),
            )
            return list(given.values())

        return await self._file.write(work)

    async def note_asked(self, canonicals: Iterable[str], serial: int) -> None:
        """The roster with this serial has been asked about them."""
        rows = [(serial, canonical) for canonical in canonicals]

        def work(connection: apsw.Connection) -> None:
            connection.executemany(
                "UPDATE entry SET asked_serial = max(asked_serial, ?) WHERE canonical = ?", rows
            )

        await self._file.write(work)

    async def set_folds(self, folds: Mapping[str, Fold]) -> None:
        """How each domain's primary reads a local part."""
        wanted = {domain: _encode_fold(how) for domain, how in folds.items()}

        def work(connection: apsw.Connection) -> None:
            known = dict(connection.execute("SELECT domain, how FROM fold"))
            for domain, how in wanted.items():
                if known.get(domain) != how:
                    connection.execute("INSERT OR REPLACE INTO fold VALUES (?, ?)", (domain, how))
            for domain in known.keys() - wanted.keys():
                connection.execute("DELETE FROM fold WHERE domain = ?", (domain,))

        await self._file.write(work)

    # ------------------------------------------------------------------ look-ups

    async def find(self, canonical: str) -> ForwarderEntry | None:
        """By key."""
        return await self._file.read(lambda connection: _find(connection, canonical))

    async def find_recipe(self, recipe_id: str) -> ForwarderEntry | None:
        """By recipe_id."""
        return await self._one("recipe_id = ? AND recipe_id <> ''", recipe_id)

    async def find_agreement(self, agreement_id: str) -> ForwarderEntry | None:
        """By agreement_id."""
        return await self._one("agreement_id = ? AND agreement_id <> ''", agreement_id)

    async def due(self, domain: str, now_us: int, limit: int) -> Sequence[ForwarderEntry]:
        """Entries of the domain whose due_us has come, oldest first."""
        return await self._many(
            "domain = ? AND due_us <= ? AND due_us IS NOT NULL AND state <> 6 "
            "ORDER BY due_us LIMIT ?",
            (domain, now_us, limit),
        )

    async def next_due(self) -> Mapping[str, int]:
        """Every domain with something `due` → the earliest, by skipping through the index."""

        def work(connection: apsw.Connection) -> dict[str, int]:
            found: dict[str, int] = {}
            after = ""
            while row := connection.execute(_NEXT_DUE, (after,)).fetchone():
                after = row[0]
                found[after] = row[1]
            return found

        return await self._file.read(work)

    async def ended(self, limit: int) -> Sequence[ForwarderEntry]:
        """Entries that ended and whose queued mail is still to be held."""
        return await self._many(
            "due_us IS NOT NULL AND state = 6 ORDER BY due_us LIMIT ?", (limit,)
        )

    async def forget_ended(self, now_us: int, before_us: int) -> int:
        """Remove what ended: long ago, or until an instant that has come."""

        def work(connection: apsw.Connection) -> int:
            connection.execute(_FORGET, {"now": now_us, "before": before_us})
            return int(connection.changes())

        return await self._file.write(work)

    async def bring_forward(self, now_us: int, behind_us: int) -> int:
        """What is due behind `behind_us` is due now."""

        def work(connection: apsw.Connection) -> int:
            found = [str(row[0]) for row in connection.execute(_FAR, (behind_us,))]
            for canonical in found:
                entry = _find(connection, canonical)
                if entry is not None:
                    _write(connection, msgspec.structs.replace(entry, due_us=now_us))
            return len(found)

        return await self._file.write(work)

    async def list(
        self, query: AgreementQuery, *, after: str, limit: int
    ) -> Sequence[ForwarderEntry]:
        """Entries by ascending canonical text behind `after`."""
        where = ["canonical > ?"]
        values: list[Any] = [after]
        for column, value in (
            ("domain", query.domain),
            ("canonical", query.canonical),
            ("state", query.state),
        ):
            if value:
                where.append(f"{column} = ?")
                values.append(value)
        return await self._many(
            f"{' AND '.join(where)} ORDER BY canonical LIMIT ?", (*values, limit)
        )

    async def behind(self, domain: str, serial: int, limit: int) -> Sequence[ForwarderEntry]:
        """Entries that no roster up to `serial` has been asked about yet."""
        return await self._many(
            "domain = ? AND asked_serial < ? ORDER BY asked_serial LIMIT ?",
            (domain, serial, limit),
        )

    async def counts(self) -> Mapping[str, Mapping[State, int]]:
        """By domain and state."""

        def work(connection: apsw.Connection) -> dict[str, dict[State, int]]:
            found: dict[str, dict[State, int]] = {}
            for domain, state, count in connection.execute(
                "SELECT domain, state, count(*) FROM entry GROUP BY domain, state"
            ):
                found.setdefault(domain, {})[State(state)] = count
            return found

        return await self._file.read(work)

    async def _one(self, where: str, value: str) -> ForwarderEntry | None:
        found = await self._many(f"{where} LIMIT 1", (value,))
        return found[0] if found else None

    async def _many(self, where: str, values: tuple[Any, ...]) -> Sequence[ForwarderEntry]:
        def work(connection: apsw.Connection) -> list[ForwarderEntry]:
            rows = connection.execute(f"SELECT document FROM entry WHERE {where}", values)  # noqa: S608
            return [_decode(document) for (document,) in rows]

        return await self._file.read(work)


def book_path(directory: Path) -> Path:
    """The book in its directory."""
    return directory / "forwarder.db"


def snapshot_path(directory: Path) -> Path:
    """What workers read, in the same directory."""
    return directory / "forwarder.snapshot"


def find_by_canonical(connection: apsw.Connection, canonical: str) -> ForwarderEntry | None:
    """For readers of other processes. Raises apsw.Error."""
    return _find(connection, canonical)


def _find(connection: apsw.Connection, canonical: str) -> ForwarderEntry | None:
    row = connection.execute(
        "SELECT document FROM entry WHERE canonical = ?", (canonical,)
    ).fetchone()
    return None if row is None else _decode(row[0])


def _write(connection: apsw.Connection, entry: ForwarderEntry) -> None:
    connection.execute(
        _WRITE,
        (
            entry.canonical,
            entry.domain,
            int(entry.standing.state),
            entry.due_us,
            entry.recipe_id,
            entry.agreement_id,
            entry.serial,
            digest_of(entry.canonical),
            pack_view(entry.standing, entry.serial, entry.end),
            _encode(entry),
        ),
    )
