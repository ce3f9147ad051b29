"""The system calls the spool makes, in one object, and what their failures mean.

Everything that makes mail durable goes through `Disk`, so that tests can hand
in one whose flushes fail, or one that remembers what a power cut would leave.
SQLite makes its own calls; the engine asks it for no flush outside a checkpoint.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import apsw

from posthouse.errors import StorageBroken, StorageError, StorageFull

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Disk:
    """Real files. Methods raise OSError as the calls beneath do."""

    def create(self, path: Path) -> int:
        """Make a new file for writing and reading; it must not exist."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open_to_read(self, path: Path) -> int:
        """Open an existing file."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def pwritev(self, fd: int, buffers: Sequence[bytes], at: int) -> int:
        """Write at a position; may write less than asked."""
        return os.pwritev(fd, buffers, at)

    def flush(self, fd: int) -> None:
        """Make what was written to a file durable."""
        os.fdatasync(fd)

    def flush_directory(self, path: Path) -> None:
        """Make names made in or removed from a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def truncate(self, fd: int, size: int) -> None:
        """Cut a file."""
        os.ftruncate(fd, size)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        os.unlink(path)

    def room(self, path: Path) -> os.statvfs_result:
        """How much space and how many inodes are left."""
        return os.statvfs(path)


def translate(error: BaseException, doing: str) -> StorageError:
    """Say what an OSError or SQLite error means to whoever waits for the disk."""
    if isinstance(error, StorageError):
        return error
    detail = f"{doing}: {error}"
    if isinstance(error, OSError) and error.errno in _FULL:
        return StorageFull(detail)
    if isinstance(error, apsw.FullError):
        return StorageFull(detail)
    return StorageBroken(detail)


def write_all(disk: Disk, fd: int, buffers: list[bytes], at: int) -> int:
    """Write every octet at `at`; returns where the next one goes. Raises OSError."""
    for first in range(0, len(buffers), 1000):  # IOV_MAX is 1024
        part = buffers[first : first + 1000]
        left = sum(map(len, part))
        while left:
            written = disk.pwritev(fd, part, at)
            at += written
            left -= written
            if left:
                part = _behind(part, written)
    return at


def _behind(buffers: list[bytes], written: int) -> list[bytes]:
    """What a short write left over."""
    for index, buffer in enumerate(buffers):
        if written < len(buffer):
            return [buffer[written:], *buffers[index + 1 :]]
        written -= len(buffer)
    return []
