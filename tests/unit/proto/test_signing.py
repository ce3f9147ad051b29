"""Ed25519 keys and signatures."""

from __future__ import annotations

from fakes.vectors import PRIVATE_KEY, PUBLIC_KEY, VECTORS
from posthouse.proto import signing


def test_keys_belong_together() -> None:
    """The public key and its id are those of the vectors."""
    assert signing.derive_public_key(PRIVATE_KEY) == PUBLIC_KEY
    assert signing.key_id(PUBLIC_KEY) == VECTORS["publisher"]["key_id"]


def test_signature_holds_for_its_octets_alone() -> None:
    """Another text, another key, a damaged or short signature: none verifies, none raises."""
    private = signing.generate_private_key()
    public = signing.derive_public_key(private)
    signature = signing.sign(private, b"text")
    assert signing.verify(public, signature, b"text")
    assert not signing.verify(public, signature, b"text\n")
    assert not signing.verify(PUBLIC_KEY, signature, b"text")
    assert not signing.verify(public, bytes([signature[0] ^ 1]) + signature[1:], b"text")
    assert not signing.verify(public, signature[:-1], b"text")
    assert not signing.verify(b"short", signature, b"text")
