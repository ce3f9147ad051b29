"""The roster file: three lines and a body of sorted digests.

::

    posthouse-roster 1 LF
    <header: one line of JSON, at most 1 MiB> LF
    <signature: 86 octets, base64url of Ed25519 over both lines above, LFs included> LF
    <body: count x digest.bytes octets, ascending, no duplicates; nothing after it>

`parse_head` reads what stands before the body, `BodyCheck` watches the body go by
in pieces, so that fifty million digests need no memory. Exactly these octets;
anything else raises RosterRefused. Spec: docs/protocol.md "The roster".
"""

from __future__ import annotations

import hashlib
import operator
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Final, Protocol

import msgspec

from posthouse.errors import DocumentError, RosterRefused
from posthouse.mail.roster import RosterHeader
from posthouse.mail.wire_text import decode_base64url, encode_base64url, parse_time
from posthouse.proto import ijson, signing

MAGIC: Final = b"posthouse-roster 1\n"
MEDIA_TYPE: Final = "application/vnd.posthouse.roster"
MAX_HEADER_BYTES: Final = 1 << 20
SIGNATURE_LINE_BYTES: Final = 87
# As much of a file as may be needed to find where its body begins.
MAX_HEAD_BYTES: Final = len(MAGIC) + MAX_HEADER_BYTES + 1 + SIGNATURE_LINE_BYTES

_SLICE: Final = 4096  # digests compared at once, some 0.3 ms


class Buffer(Protocol):
    """Octets that may be mapped: what bytes and mmap.mmap have in common. Slices are bytes."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> bytes: ...


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """All before the body.

    signed: the first two lines, LFs included; signature: 64 octets, not verified yet;
    body_offset: where the body begins.
    """

    header: RosterHeader
    header_line: bytes
    signed: bytes
    signature: bytes
    body_offset: int

    @property
    def octets(self) -> bytes:
        """The three lines as they stand in the file."""
        return self.signed + encode_base64url(self.signature).encode("ascii") + b"\n"

    @property
    def file_bytes(self) -> int:
        """How long the whole file must be."""
        return self.body_offset + self.header.body.count * self.header.digest.length


def encode_signed(header: RosterHeader, sign: Callable[[bytes], bytes]) -> bytes:
    """Write the three lines; the body follows them. sign: gives 64 octets for what is signed."""
    signed = MAGIC + ijson.encode(header) + b"\n"
    if len(signed) - len(MAGIC) - 1 > MAX_HEADER_BYTES:
        raise RosterRefused("form", "header over 1 MiB")
    return signed + encode_base64url(sign(signed)).encode("ascii") + b"\n"


def parse_head(data: bytes) -> Head:
    """Read the three lines at the start of `data`, of which MAX_HEAD_BYTES are enough.

    The signature is read, not verified. Raises RosterRefused("form" or "header").
    """
    if not data.startswith(MAGIC):
        raise RosterRefused("form", "does not begin with 'posthouse-roster 1'")
    return parse_signed_lines(data, len(MAGIC))


def parse_signed_lines(data: bytes, start: int) -> Head:
    """Read header line and signature line at `start`; body_offset counts from 0 of `data`."""
    end = data.find(b"\n", start, start + MAX_HEADER_BYTES + 1)
    if end < 0:
        raise RosterRefused("form", "header line over 1 MiB or cut short")
    line = data[start:end]
    if b"\r" in line:
        raise RosterRefused("form", "a carriage return in the header line")
    signature_line = data[end + 1 : end + 1 + SIGNATURE_LINE_BYTES]
    if len(signature_line) != SIGNATURE_LINE_BYTES or signature_line[-1:] != b"\n":
        raise RosterRefused("form", "signature line is not 86 octets long")
    try:
        signature = decode_base64url(signature_line[:-1].decode("latin-1"), signing.SIGNATURE_BYTES)
    except ValueError as error:
        raise RosterRefused("form", f"signature line: {error}") from error
    return Head(
        header=parse_header(line),
        header_line=line,
        signed=MAGIC + line + b"\n",
        signature=signature,
        body_offset=end + 1 + SIGNATURE_LINE_BYTES,
    )


def parse_header(line: bytes) -> RosterHeader:
    """Read the header alone. Raises RosterRefused("header")."""
    try:
        header = ijson.decode(line, RosterHeader)
    except DocumentError as error:
        raise RosterRefused("header", f"header: {error.detail}") from error
    for name, text in (("issued_at", header.issued_at), ("expires_at", header.expires_at)):
        try:
            parse_time(text)
        except ValueError as error:
            raise RosterRefused("header", f"header: {name}: {error}") from error
    return header


def verify_signature(head: Head, public_key: bytes) -> bool:
    """Tell whether the owner of `public_key` signed this head."""
    return signing.verify(public_key, head.signature, head.signed)


class BodyCheck:
    """Checks a body in pieces: order, repeats, SHA-256. Constant memory.

    Give it every octet with `feed`, in order, then call `finish`. Pieces may be of
    any size; large ones (some MiB) are fastest. Hashing releases the GIL; comparing
    neighbours holds it, in C, for slices of less than a millisecond.
    """

    def __init__(self, header: RosterHeader) -> None:
        self._width = header.digest.length
        self._expected = header.body
        self._sha256 = hashlib.sha256()
        self._rest = b""
        self._last = b""
        self._octets = 0

    def feed(self, piece: bytes) -> None:
        """Take the next octets. Raises RosterRefused("length", "order")."""
        self._octets += len(piece)
        if self._octets > self._expected.count * self._width:
            raise RosterRefused("length", "body longer than its count says")
        self._sha256.update(piece)
        data = self._rest + piece if self._rest else piece
        whole = len(data) - len(data) % self._width
        self._rest = data[whole:]
        step = _SLICE * self._width
        for start in range(0, whole, step):
            self._compare(data[start : min(start + step, whole)])

    def _compare(self, data: bytes) -> None:
        count = len(data) // self._width
        digests = _unpacker(self._width, count).unpack(data)
        ascending = all(map(operator.lt, digests, digests[1:]))
        if not ascending or digests[0] <= self._last:
            raise RosterRefused("order", "digests are not ascending, or one is there twice")
        self._last = digests[-1]

    def finish(self) -> None:
        """The body has ended. Raises RosterRefused("length", "hash")."""
        if self._octets != self._expected.count * self._width:
            raise RosterRefused("length", "body shorter than its count says")
        if self._sha256.hexdigest() != self._expected.sha256:
            raise RosterRefused("hash", "the SHA-256 of the body is not the one in the header")


@lru_cache(maxsize=32)
def _unpacker(width: int, count: int) -> struct.Struct:
    return struct.Struct(f"{width}s" * count)
