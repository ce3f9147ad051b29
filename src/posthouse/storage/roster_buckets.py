"""Where in a sorted body to look: an index beside the roster file, made once.

Digests are spread evenly, so the leading bits of one say nearly where it
stands. The control process counts, while it checks a body, how many digests
begin with each value of those bits; a worker maps the counts and searches a few
dozen octets. A body whose digests crowd into few buckets (no honest hash does)
is searched by halves there, so that nobody can make a look-up slow.

Layout (octet order of the machine, named in it)::

    "posthouse-buckets 1 little\\n" · SHA-256 of the roster's head, 32 octets
    · count, 4 octets · bits, 4 octets (68 octets so far, the first text padded with zeros)
    · 2^bits + 1 offsets of 4 octets, counted in digests
    · BLAKE2b-128 of all before
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import sys
from array import array
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Final

from posthouse.errors import StorageBroken
from posthouse.storage.whole_files import replace_file

_MAGIC: Final = f"posthouse-buckets 1 {sys.byteorder}\n".encode("ascii")
_HEAD: Final = struct.Struct("=28s32sII")
_HEAD_BYTES: Final = _HEAD.size
_SUM_BYTES: Final = 16
_DIGESTS_PER_BUCKET: Final = 8
_MAX_BITS: Final = 24
# Digests handled at once: the GIL is held for half a millisecond.
_SLICE: Final = 4096
# Below this a copy in each worker costs less than a mapping and its descriptor.
_MAPPED_FROM_BYTES: Final = 256 << 10
# Beyond so many digests in one bucket halving beats searching.
CROWDED: Final = 64


class BucketCounter:
    """Watches a sorted body go by, in pieces of whole digests, and counts."""

    def __init__(self, count: int, width: int) -> None:
        """count: digests to come, at most 2^32 - 1; width: octets of each, at least 3."""
        self.bits = min((count // _DIGESTS_PER_BUCKET).bit_length(), _MAX_BITS)
        self._count = count
        self._width = width
        self._counts = array("I", bytes(4 * ((1 << self.bits) + 1)))
        # The three leading octets as one number, of which only the leading bits are kept.
        keep = ~((1 << (24 - self.bits)) - 1) & 0xFFFFFF
        self._masks = [
            bytes(octet & (keep >> shift) & 0xFF for octet in range(256)) for shift in (16, 8, 0)
        ]

    def feed(self, piece: bytes) -> None:
        """Take the next digests."""
        step = _SLICE * self._width
        for start in range(0, len(piece), step):
            self._take(piece[start : start + step])

    def _take(self, data: bytes) -> None:
        width, masks = self._width, self._masks
        keys = bytearray(4 * (len(data) // width))
        for column, mask in enumerate(masks):
            place = 2 - column if sys.byteorder == "little" else 1 + column
            keys[place::4] = data[column::width].translate(mask)
        shift = 24 - self.bits
        counts = self._counts
        for key, many in Counter(memoryview(keys).cast("I")).items():
            counts[(key >> shift) + 1] += many

    def write(self, path: Path, head_sha256: str) -> None:
        """Put the index in place of `path`, durably. Raises StorageError."""
        octets = self._offsets()
        head = _HEAD.pack(_MAGIC, bytes.fromhex(head_sha256), self._count, self.bits)
        checksum = hashlib.blake2b(head, digest_size=_SUM_BYTES)
        checksum.update(octets)
        replace_file(path, [head, octets, checksum.digest()])

    def agrees_with(self, path: Path, head_sha256: str) -> bool:
        """Tell whether `path` is what `write` would write."""
        try:
            written = Buckets(path, head_sha256, self._count)
        except (OSError, StorageBroken):
            return False
        try:
            return written.offsets.tobytes() == self._offsets()
        finally:
            written.close()

    def _offsets(self) -> bytes:
        offsets = array("I", accumulate(self._counts))
        assert offsets[-1] == self._count
        return offsets.tobytes()


class Buckets:
    """An index in use. `offsets[bucket]` … `offsets[bucket + 1]` is where to look."""

    __slots__ = ("_data", "offsets", "shift")

    def __init__(self, path: Path, head_sha256: str, count: int) -> None:
        """Map an index and check it. Raises StorageBroken when it is not the one for this head,
        OSError when it cannot be read.
        """
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < _HEAD_BYTES + _SUM_BYTES:
                raise StorageBroken(f"{path}: cut short")
            if size >= _MAPPED_FROM_BYTES:
                self._data: mmap.mmap | bytes = mmap.mmap(
                    file.fileno(), size, access=mmap.ACCESS_READ
                )
            else:
                self._data = file.read(size)
        data = self._data
        magic, head, counted, bits = _HEAD.unpack_from(data)
        if magic.rstrip(b"\0") != _MAGIC or head.hex() != head_sha256 or counted != count:
            raise StorageBroken(f"{path}: not the index of this roster")
        end = _HEAD_BYTES + 4 * ((1 << bits) + 1) if bits <= _MAX_BITS else -1
        if len(data) != end + _SUM_BYTES:
            raise StorageBroken(f"{path}: its length is wrong")
        with memoryview(data) as whole, whole[:end] as summed:
            checksum = hashlib.blake2b(summed, digest_size=_SUM_BYTES).digest()
        if checksum != data[end:]:
            raise StorageBroken(f"{path}: damaged")
        self.offsets = memoryview(data)[_HEAD_BYTES:end].cast("I")
        self.shift = 32 - bits

    def close(self) -> None:
        """Give the mapping back."""
        self.offsets.release()
        if isinstance(self._data, mmap.mmap):
            self._data.close()
