"""The roster's header as values: what a primary says of its mailboxes without naming them.

Types and ranges that stand in the document are written here, so that a header
which decodes is well-formed; what needs the time, a key or another roster is
decided in `domain/roster`. Members stand in the order in which they are written.
Spec: docs/protocol.md "The roster".
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

MAX_COUNT: Final = 50_000_000
MAX_RULES: Final = 256
MIN_DIGEST_BYTES: Final = 16
MAX_DIGEST_BYTES: Final = 32

KeyId = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
_Sha256Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Length = Annotated[int, Meta(ge=MIN_DIGEST_BYTES, le=MAX_DIGEST_BYTES)]
_Positive = Annotated[int, Meta(ge=1)]


class HmacDigest(msgspec.Struct, frozen=True, kw_only=True, tag_field="scheme", tag="hmac-sha256"):
    """HMAC-SHA-256 cut to `length` octets (16..32). key_id: which roster_key made it."""

    length: _Length = msgspec.field(name="bytes")
    key_id: KeyId


class ScryptDigest(msgspec.Struct, frozen=True, kw_only=True, tag_field="scheme", tag="scrypt"):
    """The same, then slowed down by scrypt (RFC 7914). salt: base64url of 16 octets.

    n: a power of two, 2^10..2^16.
    """

    n: Annotated[int, Meta(ge=1 << 10, le=1 << 16)]
    r: Literal[8]
    p: Annotated[int, Meta(ge=1, le=4)]
    salt: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{21}[AQgw]\Z")]
    length: _Length = msgspec.field(name="bytes")
    key_id: KeyId


DigestScheme = HmacDigest | ScryptDigest


class HeaderFold(msgspec.Struct, frozen=True, kw_only=True):
    """How the primary reads a local part; every member is required here."""

    case: Literal["lower", "preserve"]
    delimiters: Annotated[str, Meta(pattern=r"""^[!#-\-/:-?\[\]^_`{-~]*\Z""")]
    dots: Literal["keep", "drop"]


class RosterRule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule. match: RE2, at most 1,024 octets, matched against the whole local part."""

    match: str
    action: Literal["accept", "reject", "trap", "defer"]
    note: str | UnsetType = UNSET


class RosterLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the primary takes: octets of a message, SMTPUTF8, 8BITMIME."""

    max_message_bytes: _Positive
    smtputf8: bool
    eight_bit_mime: bool = msgspec.field(name="8bitmime")


class RosterPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What the primary wishes of its backup."""

    blocking: Literal["allowed", "forbidden"]
    when_stale: Literal["defer", "hold"]


class RosterBody(msgspec.Struct, frozen=True, kw_only=True):
    """What follows the signature: `count` digests, and the SHA-256 of them all."""

    count: Annotated[int, Meta(ge=0, le=MAX_COUNT)]
    sha256: _Sha256Hex


class RosterPublisher(msgspec.Struct, frozen=True, kw_only=True):
    """Who signed. key_id: of the public key."""

    party: str
    key_id: KeyId


class RosterHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The header. domain: lower-case A-labels; times as `wire_text.parse_time` reads them."""

    domain: str
    serial: _Positive
    issued_at: str
    expires_at: str
    refresh_seconds: _Positive
    digest: DigestScheme
    fold: HeaderFold
    catch_all: bool
    rules: Annotated[tuple[RosterRule, ...], Meta(max_length=MAX_RULES)]
    limits: RosterLimits
    policy: RosterPolicy
    mx: tuple[tuple[Annotated[int, Meta(ge=0, le=65535)], str], ...]
    body: RosterBody
    publisher: RosterPublisher
