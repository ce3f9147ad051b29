"""Ed25519 signatures (RFC 8032). The one owner of cryptography's keys for signing.

Keys are their raw 32 octets everywhere else, base64url in files.
"""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64


def generate_private_key() -> bytes:
    """Make a private key: 32 octets from the system's source of randomness."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def derive_public_key(private_key: bytes) -> bytes:
    """The public key, 32 octets, that belongs to a private one. Raises ValueError."""
    return Ed25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def sign(private_key: bytes, octets: bytes) -> bytes:
    """Sign; returns 64 octets. Raises ValueError when `private_key` has not 32."""
    return Ed25519PrivateKey.from_private_bytes(private_key).sign(octets)


def verify(public_key: bytes, signature: bytes, octets: bytes) -> bool:
    """Tell whether `signature` is that of the key's owner over `octets`. Never raises."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, octets)
    except (InvalidSignature, ValueError):
        return False
    return True


def key_id(raw_key: bytes) -> str:
    """The first 16 hex digits of SHA-256 of a raw key, public or roster_key."""
    return hashlib.sha256(raw_key).hexdigest()[:16]
