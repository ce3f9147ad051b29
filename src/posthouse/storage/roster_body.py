"""A roster file on disk: its head, and its body searched where it lies.

The body is mapped, so that all workers share one copy and ten million entries
need no loading. Files are never written to in place: a mapping stays whole
while anybody holds it, also when its file is long gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from posthouse.errors import RosterRefused, StorageBroken
from posthouse.proto.roster_file import MAX_HEAD_BYTES, Head, parse_head
from posthouse.storage.roster_buckets import CROWDED, Buckets

_PIECE_DIGESTS: Final = 65_536
_LEAD: Final = struct.Struct(">I")
# Below this a copy in each worker costs less than a mapping and its descriptor.
_MAPPED_FROM_BYTES: Final = 256 << 10


def head_sha256(head: Head) -> str:
    """What a roster is recognised by: hex SHA-256 of its three lines."""
    return hashlib.sha256(head.octets).hexdigest()


def read_pieces(descriptor: int, offset: int, end: int, width: int) -> Iterator[bytes]:
    """The octets from `offset` to `end` of an open file, in pieces of whole digests.

    Gives less than asked for when the file is shorter. Raises OSError.
    """
    size = _PIECE_DIGESTS * width
    while offset < end:
        piece = os.pread(descriptor, min(size, end - offset), offset)
        if not piece:
            return
        if len(piece) % width and offset + len(piece) < end:  # a short read within a digest
            piece = piece[: len(piece) - len(piece) % width]
            if not piece:
                return
        yield piece
        offset += len(piece)


class Region:
    """Part of a mapping that reads like bytes of its own (see roster_file.Buffer)."""

    __slots__ = ("_data", "_length", "_start")

    def __init__(self, data: mmap.mmap | bytes, start: int, length: int) -> None:
        self._data = data
        self._start = start
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, where: slice) -> bytes:
        first, last, step = where.indices(self._length)
        assert step == 1
        return self._data[self._start + first : self._start + last]


class RosterBody:
    """One roster file, open for look-ups."""

    def __init__(self, path: Path, buckets_path: Path | None) -> None:
        """Open a file that was checked before. buckets_path: its index; None: do without.

        An index that is damaged or missing is done without: some 5 µs a look-up.

        Raises StorageBroken when it is damaged, OSError when it cannot be read.
        """
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size >= _MAPPED_FROM_BYTES:
                self._data: mmap.mmap | bytes = mmap.mmap(
                    file.fileno(), size, access=mmap.ACCESS_READ
                )
                self._data.madvise(mmap.MADV_WILLNEED)
            else:
                self._data = file.read(_MAPPED_FROM_BYTES)
        try:
            self.head = parse_head(self._data[:MAX_HEAD_BYTES])
        except RosterRefused as error:
            raise StorageBroken(f"{path}: {error.detail}") from error
        if len(self._data) != self.head.file_bytes:
            raise StorageBroken(f"{path}: its length does not match its header")
        self.head_sha256 = head_sha256(self.head)
        self._first = self.head.body_offset
        self._width = self.head.header.digest.length
        self._count = self.head.header.body.count
        self._buckets: Buckets | None = None
        if buckets_path is not None:
            with contextlib.suppress(OSError, StorageBroken):
                self._buckets = Buckets(buckets_path, self.head_sha256, self._count)
        # Tells whether a digest (of the roster's width) is in the body. One µs.
        self.holds = self._make_search()

    @property
    def digests(self) -> Region:
        """The body alone."""
        return Region(self._data, self._first, self._count * self._width)

    def _make_search(self) -> Callable[[bytes], bool]:
        """Make `holds`. Hot: one call for each RCPT, so everything it needs is at hand."""
        buckets = self._buckets
        if buckets is None:
            return lambda digest: self._holds_by_halves(digest, 0, self._count)
        offsets, shift = buckets.offsets, buckets.shift
        search, base, width = self._data.find, self._first, self._width
        by_halves, read_lead = self._holds_by_halves, _LEAD.unpack_from

        def holds(digest: bytes) -> bool:
            bucket = read_lead(digest)[0] >> shift
            low, high = offsets[bucket], offsets[bucket + 1]
            if high - low > CROWDED:
                return by_halves(digest, low, high)
            first = base + low * width
            at = search(digest, first, base + high * width)
            while at >= 0:
                if (at - first) % width == 0:  # else the tail of one and the head of the next
                    return True
                at = search(digest, at + 1, base + high * width)
            return False

        return holds

    def _holds_by_halves(self, digest: bytes, low: int, high: int) -> bool:
        data, first, width = self._data, self._first, self._width
        end = high
        while low < high:
            middle = (low + high) // 2
            at = first + middle * width
            if data[at : at + width] < digest:
                low = middle + 1
            else:
                high = middle
        at = first + low * width
        return low < end and data[at : at + width] == digest

    def close(self) -> None:
        """Give the mappings back. No look-up may follow."""
        if self._buckets is not None:
            self._buckets.close()
        if isinstance(self._data, mmap.mmap):
            self._data.close()
