"""Files with secrets of pairings, and which tokens and offers have been used.

A pairing file is small, mode 0600, and replaced whole: a reader sees the old
or the new one. What it means is read elsewhere (`proto.pairing`); here are octets.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from posthouse.errors import StorageBroken

MAX_FILE_BYTES: Final = 1024 * 1024
_HASH_BYTES: Final = 32
# Two a year for a thousand parties, for ten years.
_MAX_HASHES: Final = 20_000


def read_private(path: Path) -> bytes:
    """The octets of a small regular file. Raises OSError; ValueError when it is too large."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as stream:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("not a regular file")
        data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES} octets")
    return data


def is_open_to_others(path: Path) -> bool:
    """Tell whether anybody on this machine may read the file. Raises OSError."""
    return bool(os.stat(path).st_mode & stat.S_IROTH)


def write_private(path: Path, data: bytes, *, replace: bool) -> None:
    """Put a file in place, whole and durable, mode 0600 (that of a replaced file is kept).

    A replaced file keeps its owner and group where we may give them.
    Raises FileExistsError when it is there and replace is False, OSError.
    """
    fd, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(fd, "wb") as stream:
            if replace:
                _take_after(fd, path)
            stream.write(data)
            stream.flush()
            os.fsync(fd)
        if replace:
            os.replace(draft, path)
        else:
            os.link(draft, path)  # unlike rename it refuses to replace
            os.unlink(draft)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise
    _flush_directory(path.parent)


def _take_after(fd: int, path: Path) -> None:
    """Owner, group and mode as the file had that is replaced; nobody but its group is added."""
    try:
        before = os.stat(path)
    except FileNotFoundError:
        return
    if os.geteuid() == 0:
        os.fchown(fd, before.st_uid, before.st_gid)
    os.fchmod(fd, before.st_mode & (stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP))


def _flush_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class UsedHashes:
    """A set of SHA-256 hashes in a file of hex lines; only ever grows. One process writes.

    It remembers what was used once: offers that were accepted, tokens that were shown.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there. Raises StorageBroken when it cannot be read or is damaged."""
        self._path = path
        self._known: set[bytes] = set()
        try:
            lines = read_private(path).decode("ascii").split()
            self._known = {bytes.fromhex(line) for line in lines}
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise StorageBroken(f"{path}: {error}") from error
        if any(len(known) != _HASH_BYTES for known in self._known):
            raise StorageBroken(f"{path}: damaged: a line is no SHA-256")

    def __contains__(self, digest: object, /) -> bool:
        return digest in self._known

    def add(self, digest: bytes) -> None:
        """Remember one; durable when it returns. Known already: costs nothing.

        Raises StorageBroken; it then still counts for this process.
        """
        if digest in self._known:
            return
        if len(self._known) >= _MAX_HASHES:
            raise StorageBroken(f"{self._path}: {_MAX_HASHES} entries; remove the file's oldest")
        self._known.add(digest)
        text = "".join(f"{known.hex()}\n" for known in sorted(self._known))
        try:
            write_private(self._path, text.encode("ascii"), replace=True)
        except OSError as error:
            raise StorageBroken(f"{self._path}: {error}") from error
