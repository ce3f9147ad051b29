"""Reading stored messages: rows from a snapshot of the database, octets from segments.

Runs in one thread with its own connection. One claim is one SQL step, which
returns JSON, and a few large reads in the order of the disk. When a step meets a
damaged page or row, the same is done again row by row (`spool_damage`).
"""

# ruff: noqa: S608 - statements are put together from constants of this package alone

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final
from zlib import crc32

import apsw
import msgspec

from posthouse.errors import BodyDamaged, StorageBroken
from posthouse.mail.envelope import Client
from posthouse.mail.queueid import format_queue_id, time_us_of
from posthouse.ports_spool import Cursor, QueuedMessage, QueuedRecipient, State
from posthouse.storage.segments import (
    HEADER_BYTES,
    PRIVATE,
    Layout,
    Place,
    Sealed,
    check_header,
    decode_tail,
)
from posthouse.storage.spool_disk import Disk

_FILES_KEPT = 16
_GAP_BYTES = 16 << 10
_RUN_BYTES = 1 << 20
MOST_ROWS: Final = 20_000


class Row(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A recipient's row and where its message lies; segment None: its message has no row."""

    queue_id: int
    seq: int
    due_us: int
    state: int
    attempts: int
    address: str
    reason: str
    reply: str
    segment: int | None
    at: int | None
    size: int | None
    tail: int | None

    @property
    def place(self) -> Place | None:
        """Where the octets are."""
        if self.segment is None or self.at is None or self.size is None or self.tail is None:
            return None
        return Place(self.queue_id, self.segment, self.at, self.size, self.tail)


decode_rows = msgspec.json.Decoder(list[Row]).decode

ROW: Final = (
    "json_array(r.queue_id, r.seq, r.due_us, r.state, r.attempts, r.address, r.reason, r.reply, "
    "m.segment, m.at, m.size, m.tail)"
)
DUE: Final = f"""
SELECT json_group_array(json(row)) FROM (
    SELECT {ROW} AS row
    FROM recipient r INDEXED BY waiting LEFT JOIN message m ON m.queue_id = r.queue_id
    WHERE r.state = 0 AND r.domain = (SELECT id FROM domain WHERE name = ?)
        AND (r.due_us, r.queue_id, r.seq) > (?, ?, ?) AND r.due_us <= ?
    ORDER BY r.due_us, r.queue_id, r.seq LIMIT ?)
"""
NEXT_DUE: Final = """
SELECT min(due_us) FROM recipient INDEXED BY waiting
WHERE state = 0 AND domain = (SELECT id FROM domain WHERE name = ?) AND due_us > ?
"""
PLACE: Final = "SELECT queue_id, segment, at, size, tail FROM message WHERE queue_id = ?"

FAILURES: Final = (apsw.Error, UnicodeError, msgspec.MsgspecError)
"""What a damaged page or row looks like from here."""


class Piece(msgspec.Struct, gc=False):
    """What was read of one message. body None: not wanted along; damage: why it cannot be had.

    errno: not 0 when that is for trouble with the system or the disk, not the octets.
    """

    sealed: Sealed | None = None
    body: bytes | None = None
    damage: str = ""
    errno: int = 0


class OctetReader:
    """Reads records. One per thread."""

    def __init__(self, connection: apsw.Connection, layout: Layout, disk: Disk) -> None:
        self._connection = connection
        self._layout = layout
        self._disk = disk
        self._files: OrderedDict[int, int] = OrderedDict()

    def close(self) -> None:
        """Give back the files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def drop_unlinked(self) -> None:
        """Give back files that have no name any more: they still took up the disk."""
        for number, fd in list(self._files.items()):
            if not os.fstat(fd).st_nlink:
                del self._files[number]
                os.close(fd)

    def find_place(self, queue_id: int) -> Place | None:
        """Where a message lies now; None when it is gone. Raises apsw.Error."""
        row = self._connection.execute(PLACE, (queue_id,)).fetchone()
        return None if row is None else Place(*row)

    def open_file(self, place: Place) -> int:
        """A new descriptor on the file that holds `place`. Raises OSError."""
        return self._disk.open_to_read(self._layout.path_of(place))

    def read(self, places: Iterable[Place], *, bodies: set[int]) -> dict[int, Piece]:
        """Read records, in the order of the disk; bodies only of those queue ids.

        Messages that are gone meanwhile have no entry.
        Raises StorageBroken when not one of several could be read for trouble with the disk.
        """
        pieces: dict[int, Piece] = {}
        odd: list[Place] = []
        together: list[Place] = []
        for place in sorted(places, key=lambda p: (p.segment, p.at)):
            if place.segment == PRIVATE or place.queue_id not in bodies:
                odd.append(place)
            else:
                together.append(place)
        for run in _runs(together):
            self._read_run(run, pieces, odd)
        troubles = 0
        for place in odd:
            piece = self._read_alone(place, with_body=place.queue_id in bodies)
            if piece is not None:
                troubles += piece.errno != 0
                pieces[place.queue_id] = piece
        if troubles > 1 and troubles == len(odd) and not any(p.sealed for p in pieces.values()):
            raise StorageBroken(next(iter(pieces.values())).damage)
        return pieces

    def _read_run(self, run: list[Place], pieces: dict[int, Piece], odd: list[Place]) -> None:
        """Read neighbours with one call; what is not as it should be goes to `odd`."""
        first, last = run[0], run[-1]
        try:
            fd = self._file(first)
            data = os.pread(fd, last.at + last.length - first.at, first.at)
        except OSError:
            odd += run
            return
        for place in run:
            at = place.at - first.at
            try:
                pieces[place.queue_id] = _cut(place, data[at : at + place.length])
            except BodyDamaged:
                odd.append(place)

    def _read_alone(self, place: Place, *, with_body: bool) -> Piece | None:
        """Read one record with care: it may have been moved, removed or damaged.

        None: gone.
        """
        damage, code = "", 0
        for _ in range(3):
            try:
                return self._read_record(place, with_body=with_body)
            except FileNotFoundError:
                damage, code = "file is missing", 0
            except BodyDamaged as error:
                damage, code = error.detail.partition(": ")[2], 0
            except OSError as error:
                damage, code = f"cannot be read: {error}", error.errno or errno.EIO
            try:
                now = self.find_place(place.queue_id)
            except apsw.Error as error:
                return Piece(damage=f"row: {error}")
            if now is None:
                return None
            if now == place:
                break
            place = now
        return Piece(damage=damage, errno=code)

    def _read_record(self, place: Place, *, with_body: bool) -> Piece:
        fd = self.open_file(place)
        try:
            if with_body:
                return _cut(place, os.pread(fd, place.length, place.at))
            header = check_header(place, os.pread(fd, HEADER_BYTES, place.at))
            tail = os.pread(fd, place.tail, place.at + HEADER_BYTES + place.size)
            return Piece(decode_tail(header, tail))
        finally:
            os.close(fd)

    def _file(self, place: Place) -> int:
        """A descriptor kept open for a segment."""
        fd = self._files.get(place.segment)
        if fd is None:
            fd = self.open_file(place)
            self._files[place.segment] = fd
            if len(self._files) > _FILES_KEPT:
                os.close(self._files.popitem(last=False)[1])
        else:
            self._files.move_to_end(place.segment)
        return fd


def _runs(places: list[Place]) -> Iterable[list[Place]]:
    """Group sorted places that are worth reading with one call."""
    run: list[Place] = []
    for place in places:
        if run:
            last = run[-1]
            near = place.segment == last.segment and place.at - last.at - last.length <= _GAP_BYTES
            if not near or place.at + place.length - run[0].at > _RUN_BYTES:
                yield run
                run = []
        run.append(place)
    if run:
        yield run


def _cut(place: Place, data: bytes) -> Piece:
    """Check a record read whole. Raises BodyDamaged."""
    header = check_header(place, data)
    body = data[HEADER_BYTES : HEADER_BYTES + place.size]
    if len(body) != place.size or crc32(body) != header.body_crc:
        raise BodyDamaged(f"{format_queue_id(place.queue_id)}: checksum of the body")
    return Piece(decode_tail(header, data[HEADER_BYTES + place.size :]), body)


_NOBODY: Final = Client(address="", port=0)


def build_message(
    queue_id: int,
    size: int,
    sealed: Sealed | None,
    rows: Iterable[Row],
    *,
    domains: dict[int, str],
    sender: str = "",
    body: bytes | None = None,
) -> QueuedMessage:
    """Put together what the row, the record and the recipients' rows say.

    domains: names by seq, for recipients the record does not vouch for.
    """
    envelope = None if sealed is None else sealed.envelope
    recipients = []
    for row in rows:
        given = None
        if envelope is not None and row.seq < len(envelope.recipients):
            given = envelope.recipients[row.seq]
        recipients.append(
            QueuedRecipient(
                seq=row.seq,
                address=row.address,
                domain=domains[row.seq] if given is None else given.domain,
                notify="" if given is None else given.notify,
                orcpt="" if given is None else given.orcpt,
                state=State(row.state),
                attempts=row.attempts,
                due_us=row.due_us,
                reason=row.reason,
                reply=row.reply,
            )
        )
    return QueuedMessage(
        queue_id=queue_id,
        received_us=time_us_of(queue_id),
        size_bytes=size,
        envelope_sender=sender if envelope is None else envelope.sender,
        body_type="" if envelope is None else envelope.body,
        smtputf8=envelope is not None and envelope.smtputf8,
        ret="" if envelope is None else envelope.ret,
        envid="" if envelope is None else envelope.envid,
        client=_NOBODY if sealed is None else sealed.client,
        recipients=tuple(recipients),
        body=body,
        recipients_in_all=0 if envelope is None else len(envelope.recipients),
    )


def cursor_behind(row: Row) -> Cursor:
    """The cursor that stands on a row."""
    return Cursor(row.due_us, row.queue_id, row.seq)
