"""A message on its way in: small ones in memory, large ones to their own file as they come.

A large message never has more than about a mebibyte in memory: `write` says False
when that much waits for the disk, `drain` waits until it is written.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

from posthouse.errors import StorageError
from posthouse.storage.segments import HEADER_BYTES, Layout, pack_header
from posthouse.storage.spool_disk import Disk, translate, write_all

ENOUGH_WAITING = 1 << 20


class Memory:
    """Octets of unfinished messages in memory, and how many there may be; open: such messages."""

    __slots__ = ("limit", "open", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.open = 0


class Spill:
    """One private file being written. `_write`, `_finish`, `_remove` run in threads."""

    def __init__(self, path: Path, layout: Layout, disk: Disk, threads: ThreadPoolExecutor) -> None:
        self._path = path
        self._layout = layout
        self._disk = disk
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._job: asyncio.Future[None] | None = None
        self._fd: int | None = None
        self._at = HEADER_BYTES
        self._crc = 0
        self._gone = False
        self.error: StorageError | None = None

    def put(self, pieces: list[bytes]) -> bool:
        """Take more; False when enough waits."""
        if self.error is not None or self._gone:
            return False
        self._waiting += pieces
        self._waiting_bytes += sum(map(len, pieces))
        if self._job is None:
            self._job = asyncio.ensure_future(self._write_waiting())
        return self._waiting_bytes < ENOUGH_WAITING

    async def _write_waiting(self) -> None:
        while self._waiting and not self._gone:
            pieces, self._waiting, self._waiting_bytes = self._waiting, [], 0
            try:
                await self._loop.run_in_executor(self._threads, self._write, pieces)
            except OSError as error:
                self.error = translate(error, f"cannot write {self._path.name}")
                self._waiting, self._waiting_bytes = [], 0
                break
        self._job = None

    def _write(self, pieces: list[bytes]) -> None:
        if self._fd is None:
            self._fd = self._disk.create(self._path)
        for piece in pieces:
            self._crc = crc32(piece, self._crc)
        self._at = write_all(self._disk, self._fd, pieces, self._at)

    async def drain(self) -> None:
        """Wait until all is written that was put. Raises StorageError."""
        while self._job is not None:
            await asyncio.shield(self._job)
        if self.error is not None:
            raise self.error

    async def finish(self, queue_id: int, size: int, tail: bytes) -> int:
        """Complete and flush the file; returns the checksum of the body. Raises StorageError."""
        await self.drain()
        try:
            await self._loop.run_in_executor(self._threads, self._finish, queue_id, size, tail)
        except OSError as error:
            self.error = translate(error, f"cannot flush {self._path.name}")
            raise self.error from error
        return self._crc

    def _finish(self, queue_id: int, size: int, tail: bytes) -> None:
        if self._fd is None or self._at != HEADER_BYTES + size:
            raise OSError(f"{self._path.name}: octets are missing")
        header = pack_header(queue_id, size, self._crc, tail)
        write_all(self._disk, self._fd, [tail], self._at)
        write_all(self._disk, self._fd, [header], 0)
        self._disk.flush(self._fd)
        self._disk.flush_directory(self._layout.private)
        fd, self._fd = self._fd, None
        os.close(fd)

    def remove(self) -> None:
        """Forget the file once nothing writes to it."""
        if self._gone:
            return
        self._gone = True
        self._waiting, self._waiting_bytes = [], 0
        if self._job is None:
            self._threads.submit(self._remove)
        else:
            self._job.add_done_callback(lambda _: self._threads.submit(self._remove))

    def _remove(self) -> None:
        fd, self._fd = self._fd, None
        try:
            if fd is not None:
                os.close(fd)
            self._disk.unlink(self._path)
        except OSError:
            pass  # a start removes what no row names


class EmbeddedIncoming:
    """See `ports_spool.Incoming`."""

    __slots__ = (
        "_disk",
        "_layout",
        "_limit",
        "_memory",
        "_remembered",
        "_threads",
        "chunks",
        "queue_id",
        "size_bytes",
        "spill",
        "taken",
    )

    def __init__(
        self,
        queue_id: int,
        limit: int,
        layout: Layout,
        disk: Disk,
        threads: ThreadPoolExecutor,
        memory: Memory,
    ) -> None:
        self._memory = memory
        memory.open += 1
        self._remembered = 0  # how much of `memory` is used by this message
        self.queue_id = queue_id
        self.size_bytes = 0
        self.chunks: list[bytes] = []
        self.spill: Spill | None = None
        self.taken = False  # commit or discard was called
        self._limit = limit
        self._layout = layout
        self._disk = disk
        self._threads = threads

    def write(self, data: bytes) -> bool:
        self.size_bytes += len(data)
        if self.spill is not None:
            return self.spill.put([data])
        self.chunks.append(data)
        memory = self._memory
        memory.used += len(data)
        self._remembered += len(data)
        if self.size_bytes <= self._limit and memory.used <= memory.limit:
            return True
        self.forget()
        path = self._layout.private_path(self.queue_id)
        self.spill = Spill(path, self._layout, self._disk, self._threads)
        chunks, self.chunks = self.chunks, []
        return self.spill.put(chunks)

    async def drain(self) -> None:
        if self.spill is not None:
            await self.spill.drain()

    def discard(self) -> None:
        if self.taken:
            return
        self.take()
        self.chunks = []
        if self.spill is not None:
            self.spill.remove()

    def take(self) -> None:
        """It is complete, or given up."""
        self.taken = True
        self._memory.open -= 1
        self.forget()

    def forget(self) -> None:
        """Count its octets no longer: they are committed, gone, or on their way to the disk."""
        self._memory.used -= self._remembered
        self._remembered = 0

    def __del__(self) -> None:
        if not self.taken:  # by whoever neither commits nor discards
            self.take()
