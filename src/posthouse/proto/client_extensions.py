"""What a server offers in its answer to EHLO (RFC 5321 §4.1.1.1)."""

from __future__ import annotations

from typing import Final

import msgspec

from posthouse.proto.replies_in import PeerReply

_MAX_SIZE_DIGITS: Final = 20  # RFC 1870 §4


class Extensions(msgspec.Struct, frozen=True, kw_only=True):
    """The extensions this client can use; everything else a server offers is passed over.

    size_limit: None when SIZE is not offered, 0 when it names no limit (RFC 1870 §4).
    """

    pipelining: bool = False
    size_limit: int | None = None
    eightbitmime: bool = False
    smtputf8: bool = False
    dsn: bool = False
    chunking: bool = False
    enhanced_codes: bool = False
    starttls: bool = False
    auth: frozenset[bytes] = frozenset()  # SASL mechanisms, upper case (RFC 4954 §3)


NONE: Final = Extensions()


def parse_extensions(reply: PeerReply) -> Extensions:
    """Read a 250 reply to EHLO. Total: what cannot be read is as if it was not offered.

    Keywords are compared without case; of a keyword given twice the last counts.
    """
    size_limit: int | None = None
    offered: set[bytes] = set()
    mechanisms: list[bytes] = []
    for line in reply.more:
        keyword, *parameters = line.upper().split() or [b""]
        offered.add(keyword)
        if keyword == b"SIZE":
            size_limit = _parse_size(parameters[0]) if parameters else 0
        elif keyword == b"AUTH":
            mechanisms = parameters
    return Extensions(
        pipelining=b"PIPELINING" in offered,
        size_limit=size_limit,
        eightbitmime=b"8BITMIME" in offered,
        smtputf8=b"SMTPUTF8" in offered,
        dsn=b"DSN" in offered,
        chunking=b"CHUNKING" in offered,
        enhanced_codes=b"ENHANCEDSTATUSCODES" in offered,
        starttls=b"STARTTLS" in offered,
        auth=frozenset(mechanisms),
    )


def _parse_size(octets: bytes) -> int:
    return int(octets) if len(octets) <= _MAX_SIZE_DIGITS and octets.isdigit() else 0
