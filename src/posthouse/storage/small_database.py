"""Small databases beside the spool (alerts, availability): how they are opened and fail.

They hold what people are told, never mail. One that cannot be read is put aside
under another name and begun afresh: no alert is worth a node that does not start.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import apsw
import msgspec

from posthouse import observe
from posthouse.errors import StorageBroken
from posthouse.storage.schema import check_library
from posthouse.storage.spool_disk import translate

P = ParamSpec("P")
T = TypeVar("T")

_BUSY_MS: Final = 5000
_BUSY_STEP_SECONDS: Final = 0.005
_SPOILT: Final = (apsw.CorruptError, apsw.NotADBError)


def open_small(
    path: Path,
    tables: str,
    version: int,
    *,
    durable: bool,
    upgrades: Mapping[int, str] = MappingProxyType({}),
) -> apsw.Connection:
    """Open a database, make its tables where there are none; a spoilt one is put aside.

    upgrades: what brings a layout to the next one. durable: every transaction is flushed, not
    only at checkpoints. Several processes may open it. Raises StorageError.
    """
    check_library()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return _open(path, tables, version, durable, upgrades)
        except _SPOILT as error:
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns() // 1_000_000}")
            os.replace(path, aside)
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            observe.alert("storage", f"{path} is damaged ({error}); kept as {aside}, begun afresh")
            return _open(path, tables, version, durable, upgrades)
    except (apsw.Error, OSError) as error:
        raise translate(error, f"{path} cannot be opened") from error


def _open(
    path: Path, tables: str, version: int, durable: bool, upgrades: Mapping[int, str]
) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    try:
        if connection.readonly("main"):  # it would stay so when the disk is mended
            raise StorageBroken(f"{path}: it cannot be written, nor can what is beside it")
        connection.set_busy_timeout(_BUSY_MS)
        _write_ahead(connection)
        connection.pragma("synchronous", "FULL" if durable else "NORMAL")
        connection.pragma("journal_size_limit", 4 << 20)
        with writing(connection):
            found = connection.pragma("user_version")
            if found == 0:
                connection.execute(tables)
                connection.pragma("user_version", version)
                found = version
            while found in upgrades:
                connection.execute(upgrades[found])
                found += 1
                connection.pragma("user_version", found)
            if found != version:
                raise StorageBroken(f"{path}: layout {found}, this Posthouse reads {version}")
    except BaseException:
        connection.close()
        raise
    return connection


def _write_ahead(connection: apsw.Connection) -> None:
    """Switch to WAL. SQLite does not wait here when two do it at once, as at a first start."""
    until = time.monotonic() + _BUSY_MS / 1000
    while True:
        try:
            connection.pragma("journal_mode", "wal")
        except apsw.BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(_BUSY_STEP_SECONDS)
        else:
            return


def open_small_to_read(path: Path) -> apsw.Connection | None:
    """Open a database that is there, for questions only; None when it is not.

    Raises StorageError.
    """
    if not path.exists():
        return None
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.set_busy_timeout(_BUSY_MS)
        connection.pragma("query_only", True)
    except apsw.Error as error:
        raise translate(error, f"{path} cannot be opened") from error
    return connection


@contextmanager
def writing(connection: apsw.Connection) -> Iterator[None]:
    """A transaction that takes the lock at once: two writers wait for each other, never fail."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def guarded(work: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Turn what goes wrong with the database into StorageError."""

    @functools.wraps(work)
    def guarded_work(self: Any, /, *args: P.args, **named: P.kwargs) -> T:
        try:
            return work(self, *args, **named)
        except (apsw.Error, OSError, msgspec.MsgspecError) as error:
            raise translate(error, work.__name__.replace("_", " ")) from error

    return guarded_work
