"""Checks a roster that came in, to its last octet, before anything changes.

A delta is first turned into the whole file it stands for; from there on both
are judged alike. Constant memory, about 0.2 µs a digest, on the thread of the
caller; the GIL is never held for more than a millisecond at a time.
Spec: docs/protocol.md "The roster", order of checks.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from posthouse.domain.digests import make_digest, roster_key_id
from posthouse.domain.roster import (
    POSTMASTER,
    History,
    KnownRoster,
    Trust,
    canonical_text,
    check_header,
    fold_of,
    judge_serial,
)
from posthouse.errors import RosterRefused
from posthouse.mail.roster import RosterHeader
from posthouse.mail.wire_text import parse_time
from posthouse.ports_roster import RosterFacts, RosterKeys
from posthouse.proto import roster_delta, signing
from posthouse.proto.roster_file import MAX_HEAD_BYTES, BodyCheck, Head, parse_head
from posthouse.proto.roster_file import verify_signature as signed_by
from posthouse.storage.roster_body import Region, RosterBody, head_sha256, read_pieces
from posthouse.storage.roster_buckets import BucketCounter
from posthouse.storage.whole_files import storage_errors


class CheckedRoster(msgspec.Struct, kw_only=True):
    """A file that has passed every check but the guards; `buckets` is its index, not written."""

    head: Head
    known: KnownRoster
    buckets: BucketCounter

    def describe(self, now_us: int, why: str = "") -> RosterFacts:
        """What is to be remembered of it."""
        header = self.head.header
        return RosterFacts(
            known=self.known,
            issued_s=parse_time(header.issued_at),
            expires_s=parse_time(header.expires_at),
            refresh_seconds=header.refresh_seconds,
            file_bytes=self.head.file_bytes,
            taken_us=now_us,
            why=why,
        )


def is_delta(path: Path) -> bool:
    """Tell by the first line. Raises StorageError."""
    with storage_errors(path), path.open("rb") as file:
        return file.read(len(roster_delta.MAGIC)) == roster_delta.MAGIC


def check_whole(
    path: Path, keys: RosterKeys, history: History | None, *, now_s: int | None
) -> CheckedRoster:
    """Check a whole file, serial included, guards not.

    history None: its serial was judged before; now_s None: its times were.
    Raises RosterRefused, StorageError.
    """
    with storage_errors(path), path.open("rb") as file:
        head = parse_head(file.read(MAX_HEAD_BYTES))
        size = os.fstat(file.fileno()).st_size
        check_head(head, keys, now_s=now_s)
        if size != head.file_bytes:
            raise RosterRefused("length", f"{size} octets long instead of {head.file_bytes}")
        known = make_known(head)
        if history is not None:
            judge_serial(known, history)
        width = head.header.digest.length
        pieces = read_pieces(file.fileno(), head.body_offset, size, width)
        buckets = _check_body(head.header, pieces)
    _check_postmaster(path, head.header, keys)
    return CheckedRoster(head=head, known=known, buckets=buckets)


def check_head(head: Head, keys: RosterKeys, *, now_s: int | None) -> None:
    """Check header and signature. now_s None: the times were judged on arrival.

    Raises RosterRefused.
    """
    by_id = {signing.key_id(key): key for key in keys.public_keys}
    trust = Trust(
        domain=keys.domain,
        party=keys.party,
        publisher_key_ids=by_id.keys(),
        roster_key_ids=[roster_key_id(key) for key in keys.roster_keys],
    )
    issued = parse_time(head.header.issued_at)
    check_header(head.header, trust, now_s=issued if now_s is None else now_s)
    if not signed_by(head, by_id[head.header.publisher.key_id]):
        raise RosterRefused("signature", "the signature is not that of the publisher's key")


def make_known(head: Head) -> KnownRoster:
    """What a roster is judged and recognised by."""
    header = head.header
    return KnownRoster(
        serial=header.serial,
        key_id=header.digest.key_id,
        head_sha256=head_sha256(head),
        count=header.body.count,
        catch_all=header.catch_all,
    )


def find_roster_key(header: RosterHeader, keys: RosterKeys) -> bytes:
    """The key that the file was made with. Raises RosterRefused("key")."""
    for key in keys.roster_keys:
        if roster_key_id(key) == header.digest.key_id:
            return key
    raise RosterRefused("key", f"made with roster key {header.digest.key_id}: not ours")


def expand_delta(
    path: Path, target: Path, old: RosterBody, keys: RosterKeys, *, now_s: int
) -> None:
    """Write the whole file that a delta stands for, if all that can be known before is right.

    Raises RosterRefused, StorageError; what is in `target` is worth nothing then.
    """
    with storage_errors(path), path.open("rb") as file:
        delta = roster_delta.parse_delta_head(file.read(roster_delta.MAX_DELTA_HEAD_BYTES))
        size = os.fstat(file.fileno()).st_size
        check_head(delta.new, keys, now_s=now_s)
        roster_delta.check_delta(delta, old.head)
        if size != delta.file_bytes:
            raise RosterRefused("delta", f"{size} octets long instead of {delta.file_bytes}")
        width = delta.new.header.digest.length
        middle = delta.digests_offset + delta.removed * width
        with (
            mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as data,
            storage_errors(target),
            target.open("wb") as whole,
        ):
            removed = Region(data, delta.digests_offset, middle - delta.digests_offset)
            added = Region(data, middle, size - middle)
            whole.write(delta.new.octets)
            for piece in roster_delta.apply_changes(old.digests, removed, added, width):
                whole.write(piece)


def _check_body(header: RosterHeader, pieces: Iterator[bytes]) -> BucketCounter:
    check = BodyCheck(header)
    buckets = BucketCounter(header.body.count, header.digest.length)
    for piece in pieces:
        check.feed(piece)
        if len(piece) % header.digest.length == 0:
            buckets.feed(piece)
    check.finish()
    return buckets


def _check_postmaster(path: Path, header: RosterHeader, keys: RosterKeys) -> None:
    """Find postmaster: it proves key, scheme, salt and canonical text end to end."""
    digest = make_digest(header.digest, find_roster_key(header, keys))
    text = canonical_text(POSTMASTER, fold_of(header), cut=False, domain=header.domain)
    with storage_errors(path):
        body = RosterBody(path, None)
        try:
            if not body.holds(digest(text)):
                raise RosterRefused("postmaster", f"{text} is not in it: another key or text?")
        finally:
            body.close()
