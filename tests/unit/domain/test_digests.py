"""Digests and canonical texts, against the vectors."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fakes.vectors import ROSTER_KEY, VECTORS
from posthouse.domain.digests import is_slow, make_digest, roster_key_id
from posthouse.domain.recipients import Fold
from posthouse.domain.roster import canonical_text
from posthouse.mail.address import normalize_domain, unquote_local_part
from posthouse.mail.roster import DigestScheme

SCHEMES: dict[str, DigestScheme] = {
    name: msgspec.convert(scheme, DigestScheme) for name, scheme in VECTORS["digests"].items()
}


@pytest.mark.parametrize("example", VECTORS["addresses"], ids=lambda example: example["why"])
def test_addresses_of_the_vectors(example: dict[str, Any]) -> None:
    """Every address has the texts and digests of the example, in every scheme."""
    address = bytes.fromhex(example["address_utf8_hex"]).decode()
    local, _, domain = address.rpartition("@")
    how = Fold(**example["fold"])
    for form, cut in (("kept", False), ("cut", True)):
        text = canonical_text(
            unquote_local_part(local), how, cut=cut, domain=normalize_domain(domain)
        )
        assert text.encode().hex() == example[form]["text_utf8_hex"]
        for name, scheme in SCHEMES.items():
            assert make_digest(scheme, ROSTER_KEY)(text).hex() == example[form][name]


def test_schemes_know_whether_they_are_slow() -> None:
    """Only scrypt must stay away from the event loop."""
    assert [name for name, scheme in SCHEMES.items() if is_slow(scheme)] == [
        "scrypt-1024",
        "scrypt-16384",
    ]


def test_another_key_is_refused() -> None:
    """A digest made with another key would find nobody: it is refused at once."""
    assert roster_key_id(ROSTER_KEY) == SCHEMES["hmac-sha256"].key_id
    with pytest.raises(ValueError):
        make_digest(SCHEMES["hmac-sha256"], b"x" * 32)


def test_the_dearest_scrypt_that_is_allowed_computes() -> None:
    """n = 2^16, p = 4 stays within the memory that OpenSSL is given, and 32 octets come out."""
    scheme = msgspec.convert(
        VECTORS["digests"]["scrypt-1024"] | {"n": 1 << 16, "p": 4, "bytes": 32},
        DigestScheme,
    )
    assert len(make_digest(scheme, ROSTER_KEY)("x@y.example")) == 32
