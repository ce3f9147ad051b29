"""Digests of a roster: from canonical text to the octets that stand in the body.

``mac = HMAC-SHA-256(roster_key, text)``; `hmac-sha256` takes its first octets,
`scrypt` stretches it (RFC 7914), so that a dictionary is slow even for who holds
the key. Spec: docs/protocol.md "Canonical text".
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from posthouse.mail.roster import DigestScheme, ScryptDigest
from posthouse.mail.wire_text import decode_base64url

ROSTER_KEY_BYTES: Final = 32
SALT_BYTES: Final = 16
_BLOCK_BYTES: Final = 64  # of SHA-256


def roster_key_id(roster_key: bytes) -> str:
    """The first 16 hex digits of SHA-256 of the raw roster_key."""
    return hashlib.sha256(roster_key).hexdigest()[:16]


def is_slow(scheme: DigestScheme) -> bool:
    """True where one digest takes milliseconds: never compute it in an event loop."""
    return isinstance(scheme, ScryptDigest)


def make_digest(scheme: DigestScheme, roster_key: bytes) -> Callable[[str], bytes]:
    """Make the function from canonical text to `scheme.length` octets.

    roster_key: the 32 raw octets whose `roster_key_id` is scheme.key_id.
    hmac-sha256 takes about a microsecond. scrypt takes 128·n·r octets of memory and
    some milliseconds, during which the GIL is released. Lone surrogates are taken as
    they are: a look-up never fails for them. Raises ValueError for another key.
    """
    if roster_key_id(roster_key) != scheme.key_id:
        raise ValueError(f"the roster is made with key {scheme.key_id}, which is another one")
    if isinstance(scheme, ScryptDigest):
        return _make_scrypt(scheme, roster_key)
    return _make_hmac(scheme.length, roster_key)


def _make_hmac(length: int, roster_key: bytes) -> Callable[[str], bytes]:
    """HMAC (RFC 2104) with both keyed states kept, half the cost of `hmac.digest`."""
    block = roster_key.ljust(_BLOCK_BYTES, b"\0")
    inner_base = hashlib.sha256(bytes(octet ^ 0x36 for octet in block))
    outer_base = hashlib.sha256(bytes(octet ^ 0x5C for octet in block))

    def digest(text: str) -> bytes:
        inner = inner_base.copy()
        inner.update(text.encode("utf-8", "surrogatepass"))
        outer = outer_base.copy()
        outer.update(inner.digest())
        return outer.digest()[:length]

    return digest


def make_stretch(scheme: ScryptDigest) -> Callable[[bytes], bytes]:
    """Make the slow half of a digest: from the mac, 32 octets, to `scheme.length` octets.

    Lets go of the interpreter while it computes.
    """
    salt = decode_base64url(scheme.salt, SALT_BYTES)
    # OpenSSL wants room for V (n blocks), X and T (2) and B (p); its default stops at 32 MiB.
    memory = 128 * scheme.r * (scheme.n + scheme.p + 3)

    def stretch(mac: bytes) -> bytes:
        return hashlib.scrypt(
            mac,
            salt=salt,
            n=scheme.n,
            r=scheme.r,
            p=scheme.p,
            maxmem=memory,
            dklen=scheme.length,
        )

    return stretch


def _make_scrypt(scheme: ScryptDigest, roster_key: bytes) -> Callable[[str], bytes]:
    stretch = make_stretch(scheme)

    def digest(text: str) -> bytes:
        return stretch(hmac.digest(roster_key, text.encode("utf-8", "surrogatepass"), "sha256"))

    return digest
