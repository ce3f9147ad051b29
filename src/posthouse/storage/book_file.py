"""A small SQLite file with one writing thread: what both books of agreements stand on.

Everything is done by jobs. Those that wait when the thread is free share one
transaction and one flush (group commit), each in a savepoint of its own: a job
that fails leaves no trace and does not harm the others. WAL, synchronous=FULL:
what a job did is on disk when its awaitable returns. The file and its helpers
have mode 0600, since passwords are in it.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw

from posthouse.errors import StorageBroken, StorageError, StorageFull
from posthouse.storage.schema import check_library

T = TypeVar("T")

# Jobs that share one flush. More would only make the first one wait longer.
MAX_TOGETHER: Final = 256
BUSY_MS: Final = 10_000


class _Job:
    __slots__ = ("error", "future", "result", "work", "writes")

    def __init__(
        self, work: Callable[[apsw.Connection], Any], future: asyncio.Future[Any], *, writes: bool
    ) -> None:
        self.work = work
        self.future = future
        self.writes = writes
        self.result: Any = None
        self.error: BaseException | None = None


class BookFile:
    """Open with `open`; every method is called from one event loop."""

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        self.path = path
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"book {path.name}", daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, path: Path, *, tables: str, layout: int) -> BookFile:
        """Open or make the file; its directory is made too. Raises StorageError."""
        return cls(path, await asyncio.to_thread(open_book, path, tables=tables, layout=layout))

    async def read(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work` in the thread; it sees all that was written before. Raises StorageError."""
        return await self._submit(work, writes=False)

    async def write(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work` in a transaction; durable when this returns. Raises StorageError.

        `work` must not begin or end transactions. When it raises, nothing it did stays.
        """
        return await self._submit(work, writes=True)

    async def close(self) -> None:
        """Finish what was handed over, close the file. Harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _submit(self, work: Callable[[apsw.Connection], T], *, writes: bool) -> T:
        if self._closed:
            raise StorageBroken(f"{self.path}: closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(work, future, writes=writes))
        return await future

    # ------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        ending = False
        while not ending:
            jobs: list[_Job] = []
            job = self._jobs.get()
            while True:
                if job is None:
                    ending = True
                    break
                jobs.append(job)
                if len(jobs) >= MAX_TOGETHER:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            self._do(jobs)
        self._connection.close()

    def _do(self, jobs: list[_Job]) -> None:
        try:
            if any(job.writes for job in jobs):
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    for job in jobs:
                        self._attempt(job)
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            else:
                for job in jobs:
                    self._attempt(job)
        except BaseException as error:
            for job in jobs:
                job.error = job.error or error
        self._loop.call_soon_threadsafe(self._settle, jobs)

    def _attempt(self, job: _Job) -> None:
        if not job.writes:
            try:
                job.result = job.work(self._connection)
            except Exception as error:
                job.error = error
            return
        self._connection.execute("SAVEPOINT job")
        try:
            job.result = job.work(self._connection)
        except Exception as error:
            job.error = error
            if self._connection.in_transaction:  # SQLite itself ends it on FULL and IOERR
                self._connection.execute("ROLLBACK TO job; RELEASE job")
            else:
                raise
        else:
            self._connection.execute("RELEASE job")

    def _settle(self, jobs: list[_Job]) -> None:
        for job in jobs:
            if job.future.cancelled():
                continue
            if job.error is None:
                job.future.set_result(job.result)
            else:
                job.future.set_exception(translate(job.error, self.path))


def open_book(path: Path, *, tables: str, layout: int) -> apsw.Connection:
    """Open the file for writing; make or check its tables. Blocks. Raises StorageError."""
    check_library()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(path, 0o600)  # SQLite gives -wal and -shm the mode of the database
        connection = apsw.Connection(str(path))
    except (OSError, apsw.Error) as error:
        raise translate(error, path) from error
    try:
        connection.set_busy_timeout(BUSY_MS)
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "FULL")
        connection.pragma("journal_size_limit", 4 << 20)
        with connection:
            found = connection.pragma("user_version")
            if found == 0:
                connection.execute(tables)
                connection.pragma("user_version", layout)
        if found not in (0, layout):
            raise StorageBroken(f"{path}: layout {found}, this Posthouse reads {layout}")
    except (apsw.Error, StorageError) as error:
        connection.close()
        raise translate(error, path) from error
    return connection


def open_book_to_read(path: Path) -> apsw.Connection:
    """Open the file for one reading thread. Raises StorageError, also when there is none."""
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.set_busy_timeout(BUSY_MS)
        connection.pragma("query_only", True)
    except apsw.Error as error:
        raise translate(error, path) from error
    return connection


def translate(error: BaseException, path: Path) -> BaseException:
    """What the engine raised, as one of ours; other exceptions stay what they are."""
    if isinstance(error, apsw.FullError):
        return StorageFull(f"{path}: {error}")
    if isinstance(error, (apsw.Error, OSError)):
        return StorageBroken(f"{path}: {error}")
    return error
