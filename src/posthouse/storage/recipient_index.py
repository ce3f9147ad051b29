"""A recipient list as a file of digests: built once, read by every worker.

A look-up hashes the address, picks a bucket by the leading bits of the digest
and lets `find` search its few dozen octets: one or two microseconds and no load
time, whether there are ten addresses or ten million. Large files are mapped, so
that all workers share one copy; small ones are read, which saves a file
descriptor for each of thousands of domains.

A file is written beside its place, flushed and renamed: a reader has the old or
the new, never a mix. A file that does not check out is as good as none; it is
built again from its source.

Layout (octet order of the machine, named in the header)::

    "posthouse-recipients 1\\n" · header length, 4 octets · header, JSON
    · BLAKE2b-128 of all before · zeros up to a multiple of 16
    · bucket offsets: 2^bits + 1 numbers of 4 octets, counted in digests
    · zeros up to a multiple of 16 · digests, ascending, 16 octets each
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import sys
from array import array
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from posthouse.domain.finding import Answer, Finding
from posthouse.domain.recipients import DIGEST_BYTES, Fold, fold_both, make_digester
from posthouse.errors import StorageBroken
from posthouse.ports_recipients import RecipientListFacts
from posthouse.storage.whole_files import replace_file

_MAGIC: Final = b"posthouse-recipients 1\n"
_LENGTH: Final = struct.Struct(">I")
_SUM_BYTES: Final = 16
_MAX_HEADER_BYTES: Final = 64 << 10
_KEY_BYTES: Final = 32
# Below this a copy in each worker costs less than a mapping and its descriptor.
_MAPPED_FROM_BYTES: Final = 256 << 10
_DIGESTS_PER_BUCKET: Final = 8
_MAX_BITS: Final = 24
_VOUCHED: Final = Answer(finding=Finding.VOUCHED)
_CATCH_ALL: Final = Answer(finding=Finding.CATCH_ALL)
_ABSENT: Final = Answer(finding=Finding.ABSENT)
_PARTITIONS: Final = 256


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    facts: RecipientListFacts
    fold: Fold
    order: str
    key: bytes
    bits: int
    digests: int
    body_sum: bytes  # BLAKE2b-128 of everything behind the header


class IndexDirectory:
    """One recipient list as built; a `RecipientDirectory`.

    It stays whole while anybody holds it, also when its file has been replaced.
    The file must not be cut short in place while it is mapped: nothing in this
    house does, files are only ever renamed over.
    """

    def __init__(self, path: Path) -> None:
        """Open an index. Raises StorageBroken when damaged, OSError when it cannot be read."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size >= _MAPPED_FROM_BYTES:
                self._data: mmap.mmap | bytes = mmap.mmap(
                    file.fileno(), size, access=mmap.ACCESS_READ
                )
            else:
                self._data = file.read(_MAPPED_FROM_BYTES)
        header, self._body = _read_header(self._data, path)
        offsets_bytes = 4 * ((1 << header.bits) + 1)
        self._first = _align(self._body + offsets_bytes)
        if len(self._data) != self._first + header.digests * DIGEST_BYTES:
            raise StorageBroken(f"{path}: its length does not match its header")
        self._offsets = memoryview(self._data)[self._body : self._body + offsets_bytes].cast("I")
        if self._offsets[0] != 0 or self._offsets[-1] != header.digests:
            raise StorageBroken(f"{path}: bucket offsets are damaged")
        self._header = header
        self._otherwise = _CATCH_ALL if header.facts.catch_all else _ABSENT
        self._digest = make_digester(header.key)
        self._search = self._data.find
        self._shift = 32 - header.bits

    @property
    def facts(self) -> RecipientListFacts:
        """What the index was built from."""
        return self._header.facts

    def find(self, local_part: str, network: str = "") -> Answer:  # noqa: ARG002 (the port's)
        """Look up the content of a local part. Total: never raises."""
        kept, cut = fold_both(local_part, self._header.fold)
        if kept and self._holds(kept):
            return _VOUCHED
        if cut and cut != kept and self._holds(cut):
            return _VOUCHED
        return self._otherwise

    def _holds(self, text: str) -> bool:
        digest = self._digest(text)
        bucket = int.from_bytes(digest[:4], "big") >> self._shift
        first = self._first
        end = first + self._offsets[bucket + 1] * DIGEST_BYTES
        at = self._search(digest, first + self._offsets[bucket] * DIGEST_BYTES, end)
        while at >= 0:
            if at % DIGEST_BYTES == 0:  # else the tail of one digest and the head of the next
                return True
            at = self._search(digest, at + 1, end)
        return False

    def describe(self) -> Mapping[str, str | int | bool]:
        """For `status`."""
        facts = self._header.facts
        built_at = datetime.fromtimestamp(facts.built_us // 1_000_000, UTC)
        return {
            "source": facts.source,
            "entries": facts.entries,
            "skipped": facts.skipped,
            "catch_all": facts.catch_all,
            "loaded_at": built_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "problem": "",
        }

    def verify(self) -> bool:
        """Read all of it and compare the checksum: for the one who decides to keep an old index."""
        with memoryview(self._data) as whole, whole[self._body :] as body:
            found = hashlib.blake2b(body, digest_size=_SUM_BYTES).digest()
        return found == self._header.body_sum


class IndexBuilder:
    """Gathers canonical texts, then writes the index. 16 octets of memory for each, no more.

    Digests are spread evenly, so they are gathered by their first octet and
    each of the 256 parts is sorted by itself.
    """

    def __init__(self) -> None:
        self._key = os.urandom(_KEY_BYTES)
        self._parts: list[bytearray] = [bytearray() for _ in range(_PARTITIONS)]
        self._count = 0

    def add_all(self, texts: Iterator[str], limit: int) -> bool:
        """Take canonical texts, repeats included. False when there are more than `limit`."""
        digest_of, parts, count = make_digester(self._key), self._parts, 0
        for text in texts:
            digest = digest_of(text)
            parts[digest[0]] += digest
            count += 1
            if count > limit:
                return False
        self._count += count
        return True

    def write(self, path: Path, facts: RecipientListFacts, how: Fold) -> RecipientListFacts:
        """Sort and put the index in place of `path`, durably. Returns the facts, `entries` counted.

        Ends the builder. Raises StorageError.
        """
        bits = min((self._count // _DIGESTS_PER_BUCKET).bit_length(), _MAX_BITS)
        offsets = self._sort(bits)
        facts = msgspec.structs.replace(facts, entries=offsets[-1])
        offsets_octets = offsets.tobytes()
        offsets_octets += bytes(_align(len(offsets_octets)) - len(offsets_octets))
        checksum = hashlib.blake2b(offsets_octets, digest_size=_SUM_BYTES)
        for part in self._parts:
            checksum.update(part)
        header = _Header(
            facts=facts,
            fold=how,
            order=sys.byteorder,
            key=self._key,
            bits=bits,
            digests=offsets[-1],
            body_sum=checksum.digest(),
        )
        replace_file(path, [_write_header(header), offsets_octets, *self._parts])
        return facts

    def _sort(self, bits: int) -> array[int]:
        """Sort each part in place, without repeats, and count what falls into each bucket."""
        offsets = array("I", bytes(4 * ((1 << bits) + 1)))
        shift = 32 - bits
        for number, part in enumerate(self._parts):
            digests = sorted({digest for (digest,) in struct.iter_unpack("16s", part)})
            self._parts[number] = bytearray(b"".join(digests))
            for digest in digests:
                offsets[(int.from_bytes(digest[:4], "big") >> shift) + 1] += 1
        total = 0
        for bucket, count in enumerate(offsets):
            total += count
            offsets[bucket] = total
        return offsets


def _align(position: int) -> int:
    return -(-position // DIGEST_BYTES) * DIGEST_BYTES


def _write_header(header: _Header) -> bytes:
    text = msgspec.json.encode(header)
    head = _MAGIC + _LENGTH.pack(len(text)) + text
    head += hashlib.blake2b(head, digest_size=_SUM_BYTES).digest()
    return head + bytes(_align(len(head)) - len(head))


def _read_header(data: mmap.mmap | bytes, path: Path) -> tuple[_Header, int]:
    """The header and where the body begins. Raises StorageBroken."""
    start = len(_MAGIC) + _LENGTH.size
    if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
        raise StorageBroken(f"{path}: not a recipient index")
    (length,) = _LENGTH.unpack(data[len(_MAGIC) : start])
    end = start + length
    if length > _MAX_HEADER_BYTES or len(data) < end + _SUM_BYTES:
        raise StorageBroken(f"{path}: cut short")
    if hashlib.blake2b(data[:end], digest_size=_SUM_BYTES).digest() != data[end : end + _SUM_BYTES]:
        raise StorageBroken(f"{path}: its header is damaged")
    try:
        header = msgspec.json.decode(data[start:end], type=_Header)
    except msgspec.MsgspecError as error:
        raise StorageBroken(f"{path}: made by another version: {error}") from error
    if header.order != sys.byteorder or not 0 <= header.bits <= _MAX_BITS:
        raise StorageBroken(f"{path}: made by another machine or version")
    return header, _align(end + _SUM_BYTES)
