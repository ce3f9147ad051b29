"""A source that is a query of a SQLite file, opened for reading only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

import apsw

from posthouse.domain.source_entries import EntryReader
from posthouse.domain.source_kinds import SqlSpec, describe_source, sqlite_path
from posthouse.domain.source_rows import bind_domain, read_row
from posthouse.errors import SourceFailed
from posthouse.ports_sources import Harvest
from posthouse.storage.source_files import look_at_files

_BUSY_MS: Final = 10_000


class SqliteSource:
    """The rows of one query: an address, or a local part and a domain."""

    def __init__(self, spec: SqlSpec) -> None:
        self._spec = spec
        self._path = sqlite_path(spec.url)
        self.name = describe_source(spec)
        self.may_be_empty = spec.may_be_empty

    def get_version(self) -> str:
        """The state of the database and of its write-ahead log."""
        return look_at_files(self._path, self._path + "-wal")

    def read(self, domain: str, harvest: Harvest) -> Iterator[str]:
        """Give what every row names. Raises SourceFailed."""
        entries = EntryReader(domain)
        query, values = bind_domain(self._spec.query, domain, "?")
        try:
            connection = apsw.Connection(
                f"file:{quote(self._path)}?mode=ro",
                flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
            )
            try:
                connection.set_busy_timeout(_BUSY_MS)
                for row in connection.execute(query, values):
                    content = read_row(row, entries)
                    if content is not None:
                        yield content
            finally:
                connection.close()
        except (apsw.Error, ValueError) as error:
            raise SourceFailed(f"{self.name}: {error}") from error
        harvest.take(entries)
