"""Who was turned away (`standby = "defer"`): one small table shared by all workers.

A client's tries land on any worker, so what is known of it lies in one file
that all of them map. A slot holds 32 octets: 8 of a keyed digest, two
instants, a count. A key may lie in one of `WAYS` neighbouring slots; the one
that was touched longest ago makes room. No locks: two workers that write one
slot at the same instant lose a count, which costs a client one more try; the
table is a memory, not a promise, and is never flushed. It survives restarts.

Constant size whatever strangers do: they can only push each other out, and the
key of the digest is random, so nobody can aim.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import struct
from pathlib import Path
from typing import Final

from posthouse.domain.standby import Turned

SLOTS: Final = 1 << 16
WAYS: Final = 8
_SLOT: Final = struct.Struct("<8sqqHxxxxxx")
_KEY_BYTES: Final = 32
_SIZE: Final = _KEY_BYTES + SLOTS * _SLOT.size
_EMPTY: Final = b"\0" * 8


class TurnedAway:
    """The table in `path`, made when it is missing or not of our size. Raises OSError."""

    def __init__(self, path: Path) -> None:
        descriptor = _open(path)
        try:
            self._map = mmap.mmap(descriptor, _SIZE)
        finally:
            os.close(descriptor)
        self._key = self._map[:_KEY_BYTES]

    def find(self, *words: str) -> Turned | None:
        """What is remembered under these words."""
        name = self._name(words)
        for at in self._places(name):
            found, first_us, last_us, times = _SLOT.unpack_from(self._map, at)
            if found == name:
                return Turned(first_us, last_us, times)
        return None

    def put(self, turned: Turned, *words: str) -> None:
        """Remember; the oldest of the neighbours makes room."""
        name = self._name(words)
        oldest_us, oldest_at = 1 << 62, -1
        for at in self._places(name):
            found, _, last_us, _ = _SLOT.unpack_from(self._map, at)
            if found == name:
                oldest_at = at
                break
            if last_us < oldest_us:
                oldest_us, oldest_at = last_us, at
        _SLOT.pack_into(
            self._map, oldest_at, name, turned.first_us, turned.last_us, min(turned.times, 0xFFFF)
        )

    def close(self) -> None:
        """Unmap; nothing may be asked afterwards."""
        self._map.close()

    def _name(self, words: tuple[str, ...]) -> bytes:
        text = "\0".join(words).encode("utf-8", "surrogatepass")
        name = hashlib.blake2b(text, key=self._key, digest_size=8).digest()
        return name if name != _EMPTY else b"\0" * 7 + b"\1"

    @staticmethod
    def _places(name: bytes) -> range:
        first = int.from_bytes(name[:4], "little") % (SLOTS // WAYS) * WAYS
        start = _KEY_BYTES + first * _SLOT.size
        return range(start, start + WAYS * _SLOT.size, _SLOT.size)


def _open(path: Path) -> int:
    """A descriptor of a table that is whole. Workers that start together take turns."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            if _is_whole(descriptor):
                return descriptor
            os.close(descriptor)  # an earlier version's, or one that a power cut left empty
        draft = path.with_name(f"{path.name}.new")
        made = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(made, os.urandom(_KEY_BYTES))
            # Room is taken now: a write through a map into a hole of a full disk is SIGBUS.
            os.posix_fallocate(made, 0, _SIZE)
            os.replace(draft, path)
        except OSError:
            os.close(made)
            draft.unlink(missing_ok=True)
            raise
        return made
    finally:
        os.close(folder)


def _is_whole(descriptor: int) -> bool:
    """Of our size, with a key, without holes. Raises OSError when there is no room to fill them."""
    if os.fstat(descriptor).st_size != _SIZE or not any(os.pread(descriptor, _KEY_BYTES, 0)):
        return False
    try:
        os.posix_fallocate(descriptor, 0, _SIZE)
    except OSError:
        os.close(descriptor)
        raise
    return True
