"""The roster delta: what to take out of and put into the body in force to get the next one.

::

    posthouse-roster-delta 1 LF
    {"from_serial": s, "removed": n, "added": m} LF
    <header line of the new roster> LF
    <signature line of the new roster> LF
    <n removed digests, ascending><m added digests, ascending>

The new header's signature and hash judge the result, so a delta needs no trust of
its own. Bodies are buffers (bytes, mmap): fifty million digests are neither copied
nor turned into objects. Spec: docs/protocol.md "Fetch".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from posthouse.errors import DocumentError, RosterRefused
from posthouse.mail.roster import MAX_COUNT
from posthouse.proto import ijson
from posthouse.proto.roster_file import MAX_HEAD_BYTES, Buffer, Head, parse_signed_lines

MAGIC: Final = b"posthouse-roster-delta 1\n"
MEDIA_TYPE: Final = "application/vnd.posthouse.roster-delta"
_MAX_COUNTS_BYTES: Final = 1024
MAX_DELTA_HEAD_BYTES: Final = len(MAGIC) + _MAX_COUNTS_BYTES + 1 + MAX_HEAD_BYTES

_CHUNK: Final = 1024  # digests compared at once when looking for changes
_PIECE_BYTES: Final = 4 << 20


class _Counts(msgspec.Struct, frozen=True, kw_only=True):
    from_serial: Annotated[int, Meta(ge=1)]
    removed: Annotated[int, Meta(ge=0, le=MAX_COUNT)]
    added: Annotated[int, Meta(ge=0, le=MAX_COUNT)]


class DeltaHead(msgspec.Struct, frozen=True, kw_only=True):
    """All before the digests. new: the head of the roster that results (its body_offset is
    that of the whole file); digests_offset: where the removed digests begin.
    """

    from_serial: int
    removed: int
    added: int
    new: Head
    digests_offset: int

    @property
    def file_bytes(self) -> int:
        """How long the whole delta must be."""
        return self.digests_offset + (self.removed + self.added) * self.new.header.digest.length


def encode_delta(from_serial: int, new_head: bytes, removed: bytes, added: bytes) -> bytes:
    """Write a delta.

    new_head: the three lines of the new roster, of which the first is left out;
    removed, added: digests, ascending (see `find_changes`).
    """
    _, _, signed_lines = new_head.partition(b"\n")
    header_line = signed_lines.partition(b"\n")[0]
    width = ijson.decode(header_line, _WidthOnly).digest.length
    counts = _Counts(
        from_serial=from_serial, removed=len(removed) // width, added=len(added) // width
    )
    return b"".join((MAGIC, ijson.encode(counts), b"\n", signed_lines, removed, added))


class _Width(msgspec.Struct, frozen=True):
    length: int = msgspec.field(name="bytes")


class _WidthOnly(msgspec.Struct, frozen=True):
    digest: _Width


def parse_delta_head(data: bytes) -> DeltaHead:
    """Read what stands before the digests; MAX_DELTA_HEAD_BYTES of the file are enough.

    Raises RosterRefused("form" or "header").
    """
    if not data.startswith(MAGIC):
        raise RosterRefused("form", "does not begin with 'posthouse-roster-delta 1'")
    end = data.find(b"\n", len(MAGIC), len(MAGIC) + _MAX_COUNTS_BYTES + 1)
    if end < 0:
        raise RosterRefused("form", "delta: second line too long or cut short")
    line = data[len(MAGIC) : end]
    if b"\r" in line:
        raise RosterRefused("form", "a carriage return in the second line")
    try:
        counts = ijson.decode(line, _Counts)
    except DocumentError as error:
        raise RosterRefused("form", f"delta: {error.detail}") from error
    new = parse_signed_lines(data, end + 1)
    offset = new.body_offset
    return DeltaHead(
        from_serial=counts.from_serial,
        removed=counts.removed,
        added=counts.added,
        new=msgspec.structs.replace(new, body_offset=len(new.octets)),
        digests_offset=offset,
    )


def check_delta(delta: DeltaHead, old: Head) -> None:
    """Tell whether the delta can be applied to the roster in force at all.

    Raises RosterRefused("delta"): fetch the whole file then.
    """
    new, before = delta.new.header, old.header
    if delta.from_serial != before.serial:
        raise RosterRefused("delta", f"from serial {delta.from_serial}, not {before.serial}")
    if new.digest != before.digest:
        raise RosterRefused("delta", "digest scheme, length, salt or key changed")
    if before.body.count - delta.removed + delta.added != new.body.count:
        raise RosterRefused("delta", "its counts do not give the count of the new roster")


def apply_changes(old: Buffer, removed: Buffer, added: Buffer, width: int) -> Iterator[bytes]:
    """Give the new body in pieces: `old` without `removed`, with `added`; all ascending.

    Raises RosterRefused("delta") for a removed digest that is not in `old`, an added
    one that is, or lists out of order. Costs some microseconds a change.
    """
    if len(removed) % width or len(added) % width:
        raise RosterRefused("delta", "cut short within a digest")
    at = 0  # octets of `old` that are dealt with
    for digest, is_added in _merge(removed, added, width):
        place = _find_place(old, digest, width, at)
        present = old[place : place + width] == digest
        if is_added == present:
            raise RosterRefused("delta", "adds what is there or removes what is not")
        for start in range(at, place, _PIECE_BYTES):
            yield old[start : min(start + _PIECE_BYTES, place)]
        if is_added:
            yield digest
            at = place
        else:
            at = place + width
    for start in range(at, len(old), _PIECE_BYTES):
        yield old[start : start + _PIECE_BYTES]


def _merge(removed: Buffer, added: Buffer, width: int) -> Iterator[tuple[bytes, bool]]:
    """Both lists as one ascending sequence. Raises RosterRefused("delta")."""
    i = j = 0
    last = b""
    while i < len(removed) or j < len(added):
        gone, fresh = removed[i : i + width], added[j : j + width]
        if not fresh or (gone and gone < fresh):
            digest, is_added, i = gone, False, i + width
        else:
            digest, is_added, j = fresh, True, j + width
        if digest <= last:
            raise RosterRefused("delta", "its digests are not ascending, or one is there twice")
        last = digest
        yield digest, is_added


def _find_place(body: Buffer, digest: bytes, width: int, start: int) -> int:
    """Offset of the first digest at or behind `start` that is not below `digest`."""
    low, high = start // width, len(body) // width
    while low < high:
        middle = (low + high) // 2
        if body[middle * width : (middle + 1) * width] < digest:
            low = middle + 1
        else:
            high = middle
    return low * width


def find_changes(old: Buffer, new: Buffer, width: int) -> tuple[bytes, bytes]:
    """What must be removed from and added to `old` to get `new`; both lists ascending.

    Runs of equal digests are skipped in blocks, so ten million with a thousand
    changes take well under a second.
    """
    removed: list[bytes] = []
    added: list[bytes] = []
    at = 0  # in new
    step = _CHUNK * width
    for start in range(0, len(old), step):
        block = old[start : start + step]
        if new[at : at + len(block)] == block:
            at += len(block)
            continue
        end = (
            len(new)
            if start + step >= len(old)
            else _find_place(new, old[start + step : start + step + width], width, at)
        )
        before, after = _split(block, width), _split(new[at:end], width)
        removed += sorted(before - after)
        added += sorted(after - before)
        at = end
    added += sorted(_split(new[at:], width))
    return b"".join(removed), b"".join(added)


def _split(digests: bytes, width: int) -> set[bytes]:
    return {digests[start : start + width] for start in range(0, len(digests), width)}
