"""Findings of live verification in SQLite (`posthouse.ports_live.LiveCache`).

One file for all workers of a node. An address is stored as 16 octets of a
BLAKE2b keyed with a secret of this file: enough to find it again, no list to
read. It is a cache: a file that is damaged is made anew, and what cannot be
written is forgotten.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from posthouse import observe
from posthouse.domain.live_check import NEGATIVE_US, POSITIVE_US, Entry
from posthouse.errors import StorageBroken, StorageError
from posthouse.storage.book_file import BookFile

MAX_ENTRIES: Final = 500_000  # about 30 MB
MAX_WAITING: Final = 10_000
PRUNE_EVERY: Final = 1000  # entries written
WRITE_SECONDS: Final = 1.0

_LAYOUT: Final = 1
_TABLES: Final = """
CREATE TABLE secret (only INTEGER PRIMARY KEY CHECK (only = 1), value BLOB NOT NULL) STRICT;
CREATE TABLE found (
    name BLOB PRIMARY KEY, exists_here INTEGER NOT NULL, checked_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX found_by_age ON found (exists_here, checked_us);
"""


class EmbeddedLiveCache:
    """See the module. Made by `open`."""

    def __init__(
        self, book: BookFile, secret: bytes, clock_us: Callable[[], int], max_entries: int
    ) -> None:
        self._book = book
        self._secret = secret
        self._clock_us = clock_us
        self._max_entries = max_entries
        self._waiting: dict[bytes, Entry] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._writing: set[asyncio.Task[None]] = set()
        self._since_pruned = PRUNE_EVERY  # once soon after the start

    @classmethod
    async def open(
        cls, path: Path, clock_us: Callable[[], int], *, max_entries: int = MAX_ENTRIES
    ) -> EmbeddedLiveCache:
        """Open or make the file; one that cannot be read is replaced. Raises StorageError."""
        try:
            return cls(*await _open(path), clock_us, max_entries)
        except StorageBroken as error:
            observe.trouble("live", "the cache is made anew", error)
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                with contextlib.suppress(OSError):
                    path.with_name(name).unlink()
            return cls(*await _open(path), clock_us, max_entries)

    async def find(self, address: str) -> Entry | None:
        """See `ports_live.LiveCache`."""
        name = self._name(address)
        waiting = self._waiting.get(name)
        if waiting is not None:
            return waiting
        return await self._book.read(lambda connection: _find(connection, name))

    def put(self, address: str, entry: Entry) -> None:
        """See `ports_live.LiveCache`."""
        if len(self._waiting) < MAX_WAITING:
            self._waiting[self._name(address)] = entry
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(WRITE_SECONDS, self._start_writing)

    async def close(self) -> None:
        """See `ports_live.LiveCache`."""
        if self._timer is not None:
            self._timer.cancel()
        if self._waiting:
            self._start_writing()
        if self._writing:
            await asyncio.wait(self._writing)
        await self._book.close()

    def _name(self, address: str) -> bytes:
        text = address.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, key=self._secret, digest_size=16).digest()

    def _start_writing(self) -> None:
        self._timer = None
        task = asyncio.get_running_loop().create_task(self._write())
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write(self) -> None:
        entries, self._waiting = self._waiting, {}
        rows = [(name, entry.exists, entry.checked_us) for name, entry in entries.items()]
        self._since_pruned += len(rows)
        prune = self._since_pruned >= PRUNE_EVERY
        if prune:
            self._since_pruned = 0
        now_us = self._clock_us()

        def work(connection: apsw.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?)", rows)
            if prune:
                _prune(connection, now_us, self._max_entries)

        try:
            await self._book.write(work)
        except StorageError as error:
            observe.trouble("live", f"{len(rows)} findings are forgotten", error)


async def _open(path: Path) -> tuple[BookFile, bytes]:
    book = await BookFile.open(path, tables=_TABLES, layout=_LAYOUT)
    try:
        return book, await book.write(_get_secret)
    except BaseException:
        await book.close()
        raise


def _get_secret(connection: apsw.Connection) -> bytes:
    connection.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (os.urandom(32),))
    ((secret,),) = connection.execute("SELECT value FROM secret")
    assert isinstance(secret, bytes)
    return secret


def _find(connection: apsw.Connection, name: bytes) -> Entry | None:
    for exists, checked_us in connection.execute(
        "SELECT exists_here, checked_us FROM found WHERE name = ?", (name,)
    ):
        assert isinstance(checked_us, int)
        return Entry(bool(exists), checked_us)
    return None


def _prune(connection: apsw.Connection, now_us: int, max_entries: int) -> None:
    """Forget what is expired; where there are too many, negative ones first, then the oldest.

    Strangers make negative findings: they must not push out whom we know to exist.
    """
    for exists, age_us in ((0, NEGATIVE_US), (1, POSITIVE_US)):
        connection.execute(
            "DELETE FROM found WHERE exists_here = ? AND checked_us <= ?", (exists, now_us - age_us)
        )
    ((count,),) = connection.execute("SELECT count(*) FROM found")
    assert isinstance(count, int)
    if count > max_entries:
        connection.execute(
            "DELETE FROM found WHERE name IN"
            " (SELECT name FROM found ORDER BY exists_here, checked_us LIMIT ?)",
            (count - max_entries,),
        )
