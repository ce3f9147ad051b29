"""What workers see of the forwarder book: a file of digests and states, swapped whole.

`SnapshotWriter` (control process) makes it from the book when anything in it
has changed; `AgreementSnapshot` is one as read, `SnapshotReader` follows the
swaps. A look-up hashes the canonical text and lets `find` search one bucket: one
or two microseconds, whether there are ten agreements or a million. Large files
are mapped, so that all workers share one copy.

Layout (octet order of the machine, named in the header)::

    "posthouse-agreements 1\\n" · header length, 4 octets · header, JSON
    · BLAKE2b-128 of the header and of the body · zeros up to a multiple of 16
    · bucket offsets: 2^bits + 1 numbers of 4 octets · zeros up to a multiple of 16
    · digests, ascending, 16 octets each · views, 40 octets each, in the same order
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import sys
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import apsw
import msgspec

from posthouse import observe
from posthouse.domain.agreement import AgreementView, End, EndedBy, Standing, State
from posthouse.domain.recipients import Fold, fold_both
from posthouse.errors import StorageBroken
from posthouse.ports_agreements import FoundAgreement
from posthouse.ports_recipients import Fingerprint
from posthouse.storage.book_file import open_book_to_read, translate
from posthouse.storage.whole_files import replace_file

_MAGIC: Final = b"posthouse-agreements 1\n"
_LENGTH: Final = struct.Struct(">I")
_VIEW: Final = struct.Struct("<BBBxxxxxqqqq")
_DIGEST_BYTES: Final = 16
_SUM_BYTES: Final = 16
_MAX_HEADER_BYTES: Final = 64 << 20  # a thousand domains have 100 KiB
_MAPPED_FROM_BYTES: Final = 256 << 10
_DIGESTS_PER_BUCKET: Final = 8
_MAX_BITS: Final = 24

# Without a roster nobody has said what a delimiter means: nothing is cut.
UNTOLD: Final = Fold(delimiters="")


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    revision: int
    order: str
    bits: int
    digests: int
    domains: dict[str, Fold]  # those with agreements, and how each is read


def digest_of(canonical: str) -> bytes:
    """The key of one agreement in the snapshot."""
    octets = canonical.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(octets, digest_size=_DIGEST_BYTES).digest()


def pack_view(standing: Standing, serial: int, end: End | None) -> bytes:
    """What the door needs of one agreement, as 40 octets."""
    return _VIEW.pack(
        standing.state,
        standing.former or 0,
        0 if end is None else end.by,
        serial,
        0 if end is None else end.serial,
        0 if end is None else end.at_us,
        0 if end is None else end.until_us,
    )


# Making an enum member of a number costs more than the look-up: all there are, made once.
_STANDINGS: Final = {
    (state, former): Standing(State(state), State(former) if former else None)
    for state in State
    for former in (0, *State)
}


def _unpack_view(data: mmap.mmap | bytes, at: int) -> AgreementView:
    state, former, by, serial, end_serial, at_us, until_us = _VIEW.unpack_from(data, at)
    return AgreementView(
        _STANDINGS[state, former],
        serial,
        End(EndedBy(by), at_us, end_serial, until_us) if by else None,
    )


class AgreementSnapshot:
    """All agreements at one moment; `ports_agreements.AgreementBook`. Stays whole while held."""

    def __init__(self, path: Path) -> None:
        """Open a snapshot. Raises StorageBroken when damaged, OSError when it cannot be read."""
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size >= _MAPPED_FROM_BYTES:
                self._data: mmap.mmap | bytes = mmap.mmap(
                    file.fileno(), size, access=mmap.ACCESS_READ
                )
            else:
                self._data = file.read(_MAPPED_FROM_BYTES)
        header, body = _read_header(self._data, path)
        offsets_bytes = 4 * ((1 << header.bits) + 1)
        self._first = body + _padded(offsets_bytes)
        self._views = self._first + header.digests * _DIGEST_BYTES
        if len(self._data) != self._views + header.digests * _VIEW.size:
            raise StorageBroken(f"{path}: its length does not match its header")
        self._offsets = memoryview(self._data)[body : body + offsets_bytes].cast("I")
        self._shift = 32 - header.bits
        self._search = self._data.find
        self.revision = header.revision
        self.domains: Mapping[str, Fold] = header.domains
        self.size = header.digests

    def covers(self, domain: str) -> bool:
        """Tell whether the domain has any agreement."""
        return domain in self.domains

    def find(self, canonical: str) -> AgreementView | None:
        """The agreement kept under a canonical text."""
        digest = digest_of(canonical)
        bucket = int.from_bytes(digest[:4], "big") >> self._shift
        first, offsets = self._first, self._offsets
        end = first + offsets[bucket + 1] * _DIGEST_BYTES
        at = self._search(digest, first + offsets[bucket] * _DIGEST_BYTES, end)
        while at >= 0:
            place, rest = divmod(at - first, _DIGEST_BYTES)
            if not rest:  # else the tail of one digest and the head of the next
                return _unpack_view(self._data, self._views + place * _VIEW.size)
            at = self._search(digest, at + 1, end)
        return None

    def look_up(self, domain: str, local: str) -> FoundAgreement | None:
        """The agreement that covers the content of a local part: whole, then cut."""
        how = self.domains.get(domain)
        if how is None:
            return None
        kept, cut = fold_both(local, how)
        canonical = f"{kept}@{domain}"
        view = self.find(canonical) if kept else None
        if view is None and cut and cut != kept:
            canonical = f"{cut}@{domain}"
            view = self.find(canonical)
        return None if view is None else FoundAgreement(canonical, view)


class SnapshotReader:
    """The snapshot in force, as one worker follows it; `ports_agreements.AgreementBook`."""

    def __init__(self, path: Path) -> None:
        """Take up what there is; none is as good as an empty one."""
        self._path = path
        self._version: Fingerprint | None = None
        self._now: AgreementSnapshot | None = None
        self.refresh()

    def refresh(self) -> bool:
        """Take up a swapped snapshot; True when there was one. One stat when there was none.

        One that is damaged leaves the loaded one in force.
        """
        version = _look_at(self._path)
        if version is None or version == self._version:
            return False
        self._version = version
        try:
            self._now = AgreementSnapshot(self._path)
        except (OSError, StorageBroken) as error:
            observe.alert("agreements", f"the snapshot of agreements cannot be read: {error}")
            return False
        return True

    def covers(self, domain: str) -> bool:
        """See the port."""
        return self._now is not None and domain in self._now.domains

    def find(self, canonical: str) -> AgreementView | None:
        """See the port."""
        return None if self._now is None else self._now.find(canonical)

    def look_up(self, domain: str, local: str) -> FoundAgreement | None:
        """See the port."""
        return None if self._now is None else self._now.look_up(domain, local)


class SnapshotWriter:
    """Makes the snapshot from the book. Methods block and are called one at a time."""

    def __init__(self, book: Path, snapshot: Path) -> None:
        self._book = book
        self._path = snapshot
        self._connection: apsw.Connection | None = None
        self._data_version = -1
        self._published = -1

    def publish(self) -> bool:
        """Swap the snapshot if the book has changed; True when it did. Raises StorageError."""
        if self._connection is None:
            self._connection = open_book_to_read(self._book)
        try:
            data_version = self._connection.pragma("data_version")
            if data_version == self._data_version:
                return False
            with self._connection:  # one state of the book, whatever is written meanwhile
                revision: int = self._connection.execute(
                    "SELECT number FROM revision WHERE of = 'views'"
                ).get
                if revision != self._published:
                    pieces = _make_pieces(self._connection, revision)
                    replace_file(self._path, pieces)
        except apsw.Error as error:
            raise translate(error, self._book) from error
        changed, self._published = revision != self._published, revision
        self._data_version = data_version
        return changed

    def close(self) -> None:
        """Give back the connection. Harmless when repeated."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _make_pieces(connection: apsw.Connection, revision: int) -> list[bytes]:
    digests, views = bytearray(), bytearray()
    for digest, view in connection.execute("SELECT digest, view FROM entry ORDER BY digest"):
        digests += digest
        views += view
    count = len(digests) // _DIGEST_BYTES
    bits = min((count // _DIGESTS_PER_BUCKET).bit_length(), _MAX_BITS)
    offsets = array("I", bytes(4 * ((1 << bits) + 1)))
    shift = 32 - bits
    for (head,) in struct.iter_unpack(">I12x", digests):
        offsets[(head >> shift) + 1] += 1
    total = 0
    for bucket, entries in enumerate(offsets):
        total += entries
        offsets[bucket] = total
    buckets = offsets.tobytes()
    body = [buckets + bytes(_padded(len(buckets)) - len(buckets)), bytes(digests), bytes(views)]
    header = _Header(
        revision=revision,
        order=sys.byteorder,
        bits=bits,
        digests=count,
        domains=_read_domains(connection),
    )
    text = msgspec.json.encode(header)
    head = _MAGIC + _LENGTH.pack(len(text)) + text
    total_sum = hashlib.blake2b(head, digest_size=_SUM_BYTES)
    for piece in body:
        total_sum.update(piece)
    head += total_sum.digest()
    return [head + bytes(_padded(len(head)) - len(head)), *body]


def _read_domains(connection: apsw.Connection) -> dict[str, Fold]:
    """The domains with agreements, found by skipping through the index."""
    folds = {
        domain: msgspec.json.decode(how, type=Fold)
        for domain, how in connection.execute("SELECT domain, how FROM fold")
    }
    found: dict[str, Fold] = {}
    after = ""
    while True:
        row = connection.execute("SELECT min(domain) FROM entry WHERE domain > ?", (after,)).get
        if row is None:
            return found
        after = str(row)
        found[after] = folds.get(after, UNTOLD)


def _read_header(data: mmap.mmap | bytes, path: Path) -> tuple[_Header, int]:
    """The header and where the body begins; all of it is checked. Raises StorageBroken."""
    start = len(_MAGIC) + _LENGTH.size
    if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
        raise StorageBroken(f"{path}: not a snapshot of agreements")
    (length,) = _LENGTH.unpack(data[len(_MAGIC) : start])
    end = start + length
    body = _padded(end + _SUM_BYTES)
    if length > _MAX_HEADER_BYTES or len(data) < body:
        raise StorageBroken(f"{path}: cut short")
    total = hashlib.blake2b(data[:end], digest_size=_SUM_BYTES)
    with memoryview(data) as whole, whole[body:] as rest:
        total.update(rest)
    if total.digest() != data[end : end + _SUM_BYTES] or any(data[end + _SUM_BYTES : body]):
        raise StorageBroken(f"{path}: damaged")
    try:
        header = msgspec.json.decode(data[start:end], type=_Header)
    except msgspec.MsgspecError as error:
        raise StorageBroken(f"{path}: made by another version: {error}") from error
    if header.order != sys.byteorder or not 0 <= header.bits <= _MAX_BITS:
        raise StorageBroken(f"{path}: made by another machine or version")
    return header, body


def _padded(position: int) -> int:
    return -(-position // _DIGEST_BYTES) * _DIGEST_BYTES


def _look_at(path: Path) -> Fingerprint | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return Fingerprint(
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        inode=status.st_ino,
    )
