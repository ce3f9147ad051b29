"""The key of a certificate, cut out as it stands."""

from __future__ import annotations

import hashlib
import ssl

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from posthouse.proto.spki import extract_spki, hash_spki

CA = trustme.CA()


@pytest.mark.parametrize("kind", list(trustme.KeyType))
def test_it_is_what_another_library_says(kind: trustme.KeyType) -> None:
    """For RSA and elliptic keys, the octets are those cryptography makes."""
    pem = CA.issue_cert("a.example", key_type=kind).cert_chain_pems[0].bytes()
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    key = x509.load_pem_x509_certificate(pem).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert extract_spki(der) == spki
    assert hash_spki(der) == hashlib.sha256(spki).digest()


@given(st.binary(max_size=100), st.integers(0, 600))
def test_what_is_no_certificate(data: bytes, cut: int) -> None:
    """Rubbish and what is cut short is a ValueError or no key of that certificate."""
    der = ssl.PEM_cert_to_DER_cert(CA.cert_pem.bytes().decode())
    with pytest.raises(ValueError, match=r"X\.509"):
        extract_spki(data)
    with pytest.raises(ValueError, match=r"X\.509"):
        extract_spki(der[: min(cut, len(der) - 1)])


def test_odd_lengths() -> None:
    """An indefinite length, or one of more octets than anybody needs, is refused."""
    for data in (b"\x30\x80\x30\x80", b"\x30\x85\x00\x00\x00\x00\x01\x00", b"\x30\x84\xff"):
        with pytest.raises(ValueError, match=r"X\.509"):
            extract_spki(data)
