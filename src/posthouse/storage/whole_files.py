"""Files that are whole or unchanged, and errors of the disk in this house's words."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from posthouse.errors import StorageBroken, StorageFull
from posthouse.ports_recipients import Fingerprint

_MAX_NAME: Final = 200  # of the 255 octets that a file name may have


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into StorageFull or StorageBroken."""
    try:
        yield
    except OSError as error:
        kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageBroken
        raise kind(f"{path}: {error.strerror or error}") from error


def replace_file(path: Path, pieces: Iterable[bytes | bytearray]) -> None:
    """Write `path` anew, so that it is whole or unchanged after a crash. Raises StorageError."""
    with storage_errors(path):
        descriptor, fresh = tempfile.mkstemp(prefix=".new-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(fresh)
            raise
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames in a directory durable. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def domain_file_name(domain: str) -> str:
    """The domain; of one too long for a file name with its suffix, its beginning and a digest."""
    if len(domain) <= _MAX_NAME:
        return domain
    return f"{domain[:100]}-{hashlib.blake2b(domain.encode(), digest_size=16).hexdigest()}"


def look_at(path: str | Path) -> Fingerprint | None:
    """The state of a file; None when it cannot be had."""
    try:
        return make_fingerprint(os.stat(path))
    except OSError:
        return None


def make_fingerprint(status: os.stat_result) -> Fingerprint:
    """What tells one state of a file from another."""
    return Fingerprint(
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        inode=status.st_ino,
    )
