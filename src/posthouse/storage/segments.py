"""Segment files: where the octets of messages live.

A segment is a run of records, each ::

    header (40 octets) | body | envelope

The envelope (who sent it, to whom, from where) stands behind the body because a
large body is on disk before its envelope is complete. A record says all about its
message, so that a start can take in again what the disk has and the database not
yet (`spool_recovery`). Checksums cover the header, the body and the envelope apart.

Names: `segments/<number>.seg` holds many small messages, `private/<queue id>.msg`
one large one, written as it arrives. A message's row says where it is by `segment`
(0: its private file), `at`, `size` and `tail` (octets of body and envelope).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from posthouse.errors import BodyDamaged
from posthouse.mail.envelope import Client, Envelope
from posthouse.mail.queueid import format_queue_id
from posthouse.storage.spool_disk import Disk, write_all

HEADER: Final = struct.Struct("<4sIQQIII4x")
"""magic, octets of envelope, queue id, octets of body, CRC of body, of envelope, of header."""
HEADER_BYTES: Final = HEADER.size
_CHECKED: Final = struct.Struct("<4sIQQII")
_MAGIC_SMALL: Final = b"PHm1"
_MAGIC_PRIVATE: Final = b"PHp1"
_MAGIC_COPY: Final = b"PHc1"
MAGICS: Final = (_MAGIC_SMALL, _MAGIC_PRIVATE, _MAGIC_COPY)
PRIVATE: Final = 0


class Sealed(msgspec.Struct, frozen=True, array_like=True):
    """What a record keeps of a message beside its body. Encoded as MessagePack."""

    envelope: Envelope
    client: Client


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Sealed)


class Header(NamedTuple):
    """A header that passed its checksum.

    private: the body is in the message's own file. copied: made by compaction; it counts
    only where a row points to it, since its message may be gone.
    """

    private: bool
    tail: int
    queue_id: int
    size: int
    body_crc: int
    tail_crc: int
    copied: bool = False


class Place(NamedTuple):
    """Where a message lies, as its row says."""

    queue_id: int
    segment: int
    at: int
    size: int
    tail: int

    @property
    def length(self) -> int:
        """Octets of the whole record."""
        return HEADER_BYTES + self.size + self.tail


def encode_tail(envelope: Envelope, client: Client) -> bytes:
    """The envelope part of a record."""
    return _encoder.encode(Sealed(envelope, client))


def pack_header(
    queue_id: int, size: int, body_crc: int, tail: bytes, *, private: bool = False
) -> bytes:
    """The header of a record."""
    magic = _MAGIC_PRIVATE if private else _MAGIC_SMALL
    tail_crc = crc32(tail)
    checked = _CHECKED.pack(magic, len(tail), queue_id, size, body_crc, tail_crc)
    return HEADER.pack(magic, len(tail), queue_id, size, body_crc, tail_crc, crc32(checked))


def mark_as_copy(record: bytes) -> bytes:
    """The same record with a header that no start takes in. The header must be sound."""
    _, *fields, _ = HEADER.unpack_from(record)
    checked = _CHECKED.pack(_MAGIC_COPY, *fields)
    return HEADER.pack(_MAGIC_COPY, *fields, crc32(checked)) + record[HEADER_BYTES:]


def parse_header(data: bytes) -> Header | None:
    """Read a header; None when it is none or damaged."""
    if len(data) < HEADER_BYTES:
        return None
    magic, tail, queue_id, size, body_crc, tail_crc, crc = HEADER.unpack_from(data)
    if magic not in MAGICS:
        return None
    if crc32(memoryview(data)[: _CHECKED.size]) != crc:
        return None
    private, copied = magic == _MAGIC_PRIVATE, magic == _MAGIC_COPY
    return Header(private, tail, queue_id, size, body_crc, tail_crc, copied)


def decode_tail(header: Header, tail: bytes) -> Sealed:
    """Read the envelope part. Raises BodyDamaged."""
    if len(tail) != header.tail or crc32(tail) != header.tail_crc:
        raise BodyDamaged(f"{format_queue_id(header.queue_id)}: checksum of the envelope")
    try:
        return _decoder.decode(tail)
    except msgspec.MsgspecError as error:  # a checksum that holds over nonsense: our own fault
        raise BodyDamaged(f"{format_queue_id(header.queue_id)}: envelope: {error}") from None


def check_header(place: Place, data: bytes) -> Header:
    """Read the header of the record that is meant to lie at `place`. Raises BodyDamaged."""
    header = parse_header(data)
    if header is None:
        raise BodyDamaged(f"{format_queue_id(place.queue_id)}: header of the record")
    if (header.queue_id, header.size, header.tail) != (place.queue_id, place.size, place.tail):
        raise BodyDamaged(f"{format_queue_id(place.queue_id)}: another record in its place")
    return header


class Layout(NamedTuple):
    """The files of one shard."""

    directory: Path

    @property
    def database(self) -> Path:
        return self.directory / "spool.db"

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    @property
    def unsettled(self) -> Path:
        return self.directory / "unsettled"

    @property
    def segments(self) -> Path:
        return self.directory / "segments"

    @property
    def private(self) -> Path:
        return self.directory / "private"

    def segment_path(self, number: int) -> Path:
        return self.segments / f"{number:010d}.seg"

    def private_path(self, queue_id: int) -> Path:
        return self.private / f"{format_queue_id(queue_id)}.msg"

    def path_of(self, place: Place) -> Path:
        """The file that holds the body."""
        if place.segment == PRIVATE:
            return self.private_path(place.queue_id)
        return self.segment_path(place.segment)

    def segment_numbers(self) -> list[int]:
        """Numbers of the segment files there are, ascending."""
        return sorted(
            int(name[:-4])
            for name in os.listdir(self.segments)
            if name.endswith(".seg") and name[:-4].isdigit()
        )


class SegmentWriter:
    """Appends to the segment of the day. Used by the writer thread alone.

    After any failure the segment is closed for good: what a failed flush left in
    the page cache and on the disk is unknown, and a later flush that succeeds
    would prove nothing about it.
    """

    def __init__(self, layout: Layout, disk: Disk, *, last_number: int, limit: int) -> None:
        self._layout = layout
        self._disk = disk
        self._limit = limit
        self._fd: int | None = None
        self.number = last_number
        self.end = 0

    @property
    def is_open(self) -> bool:
        """True while the segment `number` takes more records."""
        return self._fd is not None

    @property
    def worth_giving_back(self) -> bool:
        """True when the open segment is so large that it should be given back once empty."""
        return self.end * 8 >= self._limit

    def append(self, buffers: list[bytes]) -> int:
        """Write and flush one batch; returns where it begins. Raises OSError: nothing stands."""
        if self._fd is None or self.end >= self._limit:
            self._start_next()
        assert self._fd is not None
        begin = self.end
        try:
            end = write_all(self._disk, self._fd, buffers, begin)
            self._disk.flush(self._fd)
        except OSError:
            self.take_back(begin)
            raise
        self.end = end
        return begin

    def take_back(self, end: int) -> None:
        """Cut what must not stand as well as the disk allows, and close the segment for good."""
        if self._fd is None:
            return
        try:
            self._disk.truncate(self._fd, end)
        except OSError:
            pass  # no row will point there; a start after the next commit does not look there
        self.end = end
        self.seal()

    def seal(self) -> None:
        """Close the segment; the next batch begins another."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            try:
                os.close(fd)
            except OSError:
                pass  # everything that counts was flushed before

    def _start_next(self) -> None:
        self.seal()
        self.number += 1  # also when what follows fails: no number is used twice
        self.end = 0
        path = self._layout.segment_path(self.number)
        fd = self._disk.create(path)
        try:
            self._disk.flush_directory(self._layout.segments)
        except OSError:
            os.close(fd)
            self._disk.unlink(path)
            raise
        self._fd = fd
