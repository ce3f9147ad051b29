"""The start: take in what the segments have and the database not yet; remove what nobody names.

The newest row of table `segment` says how many octets of which segment the
database knows. Whatever lies behind, and in segments with higher numbers, was
appended by transactions that a power cut may have undone. Each such record whose
checksums hold was flushed, or at least written, whole: it is taken in again,
unless its message is there. Copies made by compaction are passed over: until the move
is durable the original counts. A record that rotted is told of and passed over, and
its segment kept under another name. What a full or damaged database does not take stays
with the writer, which tries again: the shard opens all the same, since sending what it
has may be what makes room. See docs/durability.md.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

import apsw

from posthouse import observe
from posthouse.errors import BodyDamaged, StorageError
from posthouse.mail.envelope import Client, Envelope
from posthouse.mail.queueid import parse_queue_id, time_us_of
from posthouse.storage.segments import (
    HEADER_BYTES,
    MAGICS,
    PRIVATE,
    Header,
    Layout,
    Sealed,
    decode_tail,
    parse_header,
)
from posthouse.storage.spool_batch import Batch
from posthouse.storage.spool_clock import DueClock
from posthouse.storage.spool_disk import translate

_BATCH = 64
_PIECE = 1 << 18
_ANY_MAGIC = re.compile(b"|".join(MAGICS))


class Found:
    """A record that the database did not know."""

    __slots__ = (
        "at",
        "client",
        "due_us",
        "end",
        "envelope",
        "queue_id",
        "segment",
        "size",
        "tail_size",
    )

    def __init__(
        self,
        header: Header,
        segment: int,
        at: int,
        end: int,
        envelope: Envelope,
        client: Client,
    ) -> None:
        self.end = end  # where the next record begins
        self.queue_id = header.queue_id
        self.size = header.size
        self.tail_size = header.tail
        self.segment = PRIVATE if header.private else segment
        self.at = 0 if header.private else at
        self.envelope = envelope
        self.client = client
        self.due_us = 0


class Left(NamedTuple):
    """Neighbours in a segment whose rows could not be written; end: where it ends behind them."""

    segment: int
    end: int
    records: list[Found]


def take_in_records(
    connection: apsw.Connection, batch: Batch, layout: Layout, due: DueClock
) -> tuple[int, list[Left], StorageError | None]:
    """Insert messages that the segments have and the database not; returns how many.

    And what it refused, with the reason. From the first refusal on nothing more is
    inserted: no mark may come to lie behind a record without a row. Raises apsw.Error, OSError.
    """
    row = connection.execute("SELECT id, size FROM segment ORDER BY id DESC LIMIT 1").fetchone()
    newest, known = row if row is not None else (0, 0)
    taken = 0
    left: list[Left] = []
    failure: StorageError | None = None
    for number in layout.segment_numbers():
        if number < newest:
            continue
        for found in _batches(_records(layout, number, known if number == newest else 0)):
            fresh = [record for record in found if _is_missing(connection, layout, record)]
            if not fresh:
                continue
            end = found[-1].end
            if failure is None:
                try:
                    _insert(connection, batch, due, fresh, number, end)
                    taken += len(fresh)
                    continue
                except apsw.Error as error:
                    failure = translate(error, "cannot take in what a crash left")
                    failure.__cause__ = error
                    batch.load_domains()
            left.append(Left(number, end, fresh))
            stamps = [time_us_of(record.queue_id) for record in fresh]
            batch.stamp_us = max(batch.stamp_us, *stamps)
    return taken, left, failure


def _batches(records: Iterator[Found]) -> Iterator[list[Found]]:
    while found := list(itertools.islice(records, _BATCH)):
        yield found


def _records(layout: Layout, number: int, at: int) -> Iterator[Found]:
    """Whole records of a segment from `at` on, also behind one that rotted."""
    fd = os.open(layout.segment_path(number), os.O_RDONLY | os.O_CLOEXEC)
    told = False
    try:
        end = os.fstat(fd).st_size
        while at < end:
            header, sealed, following = _read_at(fd, at)
            if following > end or end - at < HEADER_BYTES:
                return  # cut short while it was written: nothing was answered from here on
            if header is not None and sealed is not None:
                if not header.copied:
                    yield Found(header, number, at, following, sealed.envelope, sealed.client)
            elif not told:
                told = True
                _keep_spoilt(layout, number, at)
            at = following if header is not None else _next_record(fd, at + 1, end)
    finally:
        os.close(fd)


def _read_at(fd: int, at: int) -> tuple[Header | None, Sealed | None, int]:
    """The header and the envelope, None where not sound, and where the next record begins."""
    header = parse_header(os.pread(fd, HEADER_BYTES, at))
    if header is None:
        return None, None, at + 1
    body = 0 if header.private else header.size
    tail_at = at + HEADER_BYTES + body
    following = tail_at + header.tail
    try:
        sealed = decode_tail(header, os.pread(fd, header.tail, tail_at))
    except BodyDamaged:
        return header, None, following
    if body and _crc_of(fd, at + HEADER_BYTES, body) != header.body_crc:
        return header, None, following
    return header, sealed, following


def _next_record(fd: int, at: int, end: int) -> int:
    """Where records go on behind a header that cannot be read; `end` when nowhere.

    Anybody can write what looks like a record into a body, but not one from which
    sound records lead to the end of the file: the envelope behind a body is ours.
    """
    while piece := os.pread(fd, _PIECE, at):
        starts = sorted(m.start() for m in _ANY_MAGIC.finditer(piece))
        for start in starts:
            if _leads_to(fd, at + start, end):
                return at + start
        if len(piece) < _PIECE:
            break
        at += len(piece) - 3
    return end


def _leads_to(fd: int, at: int, end: int) -> bool:
    while at < end:
        _, sealed, at = _read_at(fd, at)
        if sealed is None:
            return False
    return at == end


def _keep_spoilt(layout: Layout, number: int, at: int) -> None:
    """Give the file a second name that nothing removes, and tell."""
    path = layout.segment_path(number)
    kept = path.with_suffix(".spoilt")
    try:
        os.link(path, kept)
    except FileExistsError:
        pass
    observe.alert(
        "spool",
        f"segment {number}, octet {at}: a message that the database does not know cannot be read; "
        f"what follows is taken in, and the octets are kept as {kept}",
    )


def _crc_of(fd: int, at: int, size: int) -> int:
    crc = 0
    while size > 0:
        piece = os.pread(fd, min(size, _PIECE), at)
        if not piece:
            return -1
        crc = crc32(piece, crc)
        at += len(piece)
        size -= len(piece)
    return crc


def _insert(
    connection: apsw.Connection,
    batch: Batch,
    due: DueClock,
    fresh: list[Found],
    number: int,
    end: int,
) -> None:
    for due_us, record in enumerate(fresh, due.open_batch(len(fresh))):
        record.due_us = due_us
    try:
        with connection:
            batch.insert(fresh, segment=number, end=end)
    finally:
        due.close_batch()  # readers may see them, without waiting for another transaction


def _is_missing(connection: apsw.Connection, layout: Layout, record: Found) -> bool:
    known = "SELECT 1 FROM message WHERE queue_id = ?"
    try:
        if connection.execute(known, (record.queue_id,)).fetchone() is not None:
            return False
    except apsw.CorruptError:
        pass  # if its row is on that page, it will not be inserted twice
    if record.segment != PRIVATE:
        return True
    try:
        size = os.stat(layout.private_path(record.queue_id)).st_size
    except FileNotFoundError:
        return False  # refused after all: the file was removed
    return size == HEADER_BYTES + record.size + record.tail_size


def _is_named(connection: apsw.Connection, queue_id: int) -> bool:
    """Whether a row points to a private file, or a damaged page may."""
    known = "SELECT 1 FROM message WHERE queue_id = ? AND segment = 0"
    try:
        return connection.execute(known, (queue_id,)).fetchone() is not None
    except apsw.CorruptError:
        return True


def remove_strays(connection: apsw.Connection, layout: Layout) -> int:
    """Remove files that no row names; returns how many. Raises apsw.Error, OSError."""
    removed = 0
    for number in layout.segment_numbers():
        known = "SELECT 1 FROM segment WHERE id = ? AND live > 0"
        if connection.execute(known, (number,)).fetchone() is None:
            os.unlink(layout.segment_path(number))
            removed += 1
    with os.scandir(layout.private) as entries:
        for entry in entries:
            queue_id = parse_queue_id(entry.name.removesuffix(".msg"))
            if queue_id is None or not _is_named(connection, queue_id):
                os.unlink(entry.path)
                removed += 1
    if removed:
        observe.note("spool", f"removed {removed} files without a message")
    return removed
