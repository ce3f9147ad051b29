"""Text forms of octets and instants as documents between parties write them (docs/protocol.md).

One spelling each, so that equal values are equal octets: base64url (RFC 4648 §5)
without padding and with unused bits zero, lower-case hex, UTC to the second.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Final

_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]*\Z")
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z")
_NUMBERS: Final = re.compile(r"[0-9]+")
# The last instant that the form can write: 9999-12-31T23:59:59Z.
MAX_TIME: Final = 253_402_300_799


def encode_base64url(octets: bytes) -> str:
    """Write octets without padding."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def decode_base64url(text: str, length: int | None = None) -> bytes:
    """Read octets; `length`: how many there must be.

    Raises ValueError for padding, other characters, unused bits that are not zero,
    another length.
    """
    if _BASE64URL.match(text) is None:
        raise ValueError("not base64url without padding")
    try:
        octets = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError("not base64url without padding") from error
    if encode_base64url(octets) != text:
        raise ValueError("base64url with unused bits that are not zero")
    if length is not None and len(octets) != length:
        raise ValueError(f"{len(octets)} octets instead of {length}")
    return octets


def format_time(seconds: int) -> str:
    """Write an instant, seconds since 1970 (0..MAX_TIME), as YYYY-MM-DDTHH:MM:SSZ."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> int:
    """Read YYYY-MM-DDTHH:MM:SSZ as seconds since 1970, 0..MAX_TIME.

    Raises ValueError for any other spelling, a day or hour that does not exist (leap
    seconds included) and years before 1970.
    """
    if _TIME.match(text) is None:
        raise ValueError("not a time of the form YYYY-MM-DDTHH:MM:SSZ")
    # Not strptime: it imports at its first call, perhaps after we became a user who may not.
    year, month, day, hour, minute, second = map(int, _NUMBERS.findall(text))
    seconds = int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp())
    if seconds < 0:
        raise ValueError("a time before 1970")
    return seconds
