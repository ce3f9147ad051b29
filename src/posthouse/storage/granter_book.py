"""The granter book in SQLite: `ports_agreements.GranterBook`.

Each grant is one row: its document as JSON, and beside it what is searched for.
Passwords are kept as hashes only; the recipe_key is kept as it is, since it is
what the granter shows to the forwarder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from posthouse.ports_agreements import Grant, GrantState
from posthouse.storage.book_file import BookFile

LAYOUT_VERSION: Final = 1

TABLES: Final = """
CREATE TABLE agreement (
    agreement_id TEXT PRIMARY KEY,
    forwarder_id TEXT NOT NULL,
    recipe_id TEXT NOT NULL,
    domain TEXT NOT NULL,
    mailbox TEXT NOT NULL,
    state INTEGER NOT NULL,
    document BLOB NOT NULL,
    UNIQUE (forwarder_id, recipe_id)
);
CREATE INDEX mailbox ON agreement (mailbox);
CREATE INDEX domain ON agreement (domain, state);
"""

_WRITE: Final = """
INSERT INTO agreement VALUES (?,?,?,?,?,?,?) ON CONFLICT (agreement_id) DO UPDATE SET
    mailbox = excluded.mailbox, state = excluded.state, document = excluded.document
"""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Grant).decode


class SqliteGranterBook:
    """See the port."""

    def __init__(self, file: BookFile) -> None:
        self._file = file

    @classmethod
    async def open(cls, directory: Path) -> SqliteGranterBook:
        """Open or make the book in its directory. Raises StorageError."""
        return cls(
            await BookFile.open(granter_book_path(directory), tables=TABLES, layout=LAYOUT_VERSION)
        )

    async def close(self) -> None:
        """Finish what was handed over and close. Harmless when repeated."""
        await self._file.close()

    async def settle(
        self,
        forwarder_id: str,
        recipe_ids: Sequence[str],
        decide: Callable[[str, Grant | None], Grant | None],
    ) -> Sequence[Grant]:
        """Apply `decide` to each recipe, all in one step."""

        def work(connection: apsw.Connection) -> list[Grant]:
            given: list[Grant] = []
            for recipe_id in recipe_ids:
                row = connection.execute(
                    "SELECT document FROM agreement WHERE forwarder_id = ? AND recipe_id = ?",
                    (forwarder_id, recipe_id),
                ).fetchone()
                grant = decide(recipe_id, None if row is None else _decode(row[0]))
                if grant is not None:
                    _write(connection, grant)
                    given.append(grant)
            return given

        return await self._file.write(work)

    async def change(
        self, agreement_id: str, decide: Callable[[Grant], Grant | None]
    ) -> Grant | None:
        """Apply `decide` to one agreement."""

        def work(connection: apsw.Connection) -> Grant | None:
            known = _find(connection, agreement_id)
            grant = None if known is None else decide(known)
            if grant is not None:
                _write(connection, grant)
            return grant

        return await self._file.write(work)

    async def find(self, agreement_id: str) -> Grant | None:
        """By agreement-ID."""
        return await self._file.read(lambda connection: _find(connection, agreement_id))

    async def list(
        self,
        *,
        mailbox: str = "",
        domain: str = "",
        forwarder_id: str = "",
        state: GrantState | None = None,
        after: str = "",
        limit: int = 1000,
    ) -> Sequence[Grant]:
        """Grants by ascending agreement-ID behind `after`; every given condition must hold."""
        where = ["agreement_id > ?"]
        values: list[Any] = [after]
        for column, value in (
            ("mailbox", mailbox),
            ("domain", domain),
            ("forwarder_id", forwarder_id),
            ("state", state),
        ):
            if value:
                where.append(f"{column} = ?")
                values.append(value)
        sql = (
            f"SELECT document FROM agreement WHERE {' AND '.join(where)} "  # noqa: S608
            "ORDER BY agreement_id LIMIT ?"
        )

        def work(connection: apsw.Connection) -> list[Grant]:
            return [_decode(row[0]) for row in connection.execute(sql, (*values, limit))]

        return await self._file.read(work)

    async def forget_ended(self, before_us: int) -> int:
        """Remove what ended long ago."""

        def work(connection: apsw.Connection) -> int:
            connection.execute(
                "DELETE FROM agreement WHERE state = ? AND document ->> '$.changed_us' < ?",
                (int(GrantState.ENDED), before_us),
            )
            return int(connection.changes())

        return await self._file.write(work)

    async def counts(self) -> Mapping[str, Mapping[GrantState, int]]:
        """By domain and state."""

        def work(connection: apsw.Connection) -> dict[str, dict[GrantState, int]]:
            found: dict[str, dict[GrantState, int]] = {}
            for domain, state, count in connection.execute(
                "SELECT domain, state, count(*) FROM agreement GROUP BY domain, state"
            ):
                found.setdefault(domain, {})[GrantState(state)] = count
            return found

        return await self._file.read(work)


def granter_book_path(directory: Path) -> Path:
    """The book in its directory."""
    return directory / "granter.db"


def _find(connection: apsw.Connection, agreement_id: str) -> Grant | None:
    row = connection.execute(
        "SELECT document FROM agreement WHERE agreement_id = ?", (agreement_id,)
    ).fetchone()
    return None if row is None else _decode(row[0])


def _write(connection: apsw.Connection, grant: Grant) -> None:
    connection.execute(
        _WRITE,
        (
            grant.agreement_id,
            grant.forwarder_id,
            grant.recipe_id,
            grant.domain,
            grant.mailbox,
            int(grant.state),
            _encode(grant),
        ),
    )
