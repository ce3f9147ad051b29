"""What a session says of agreements, apart from the dialogues: xtext, odd secrets."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.mail.credentials import Credentials
from posthouse.proto.client_auth import MAX_SECRET_BYTES, SessionAuth, encode_xtext
from posthouse.proto.replies_in import PeerReply

MECHANISMS = frozenset({b"PLAIN"})


def credentials(agreement_id: str = "a-1", password: str = "one") -> Credentials:
    return Credentials(agreement_id=agreement_id, password=password, forwarder_id="mx2.example.net")


def test_xtext_as_in_the_rfc() -> None:
    """RFC 4954 §5 has an example: "+" and "=" are written in hex."""
    assert encode_xtext("e+mc2@example.com") == "e+2Bmc2@example.com"
    assert encode_xtext("a=b c~!\x7f") == "a+3Db+20c~!+7F"


@given(st.text())
def test_xtext_decodes_to_what_it_was(text: str) -> None:
    """Nothing but "!" to "~" without "+" and "=" is written, and it decodes back."""
    encoded = encode_xtext(text)
    assert re.fullmatch(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*", encoded)
    octets = re.sub(rb"\+(..)", lambda match: bytes.fromhex(match[1].decode()), encoded.encode())
    assert octets == text.encode("utf-8", "replace")


@pytest.mark.parametrize(
    "odd",
    [
        credentials(password=""),
        credentials(agreement_id=""),
        credentials(password="a\0b"),
        credentials(password="\ud800"),
        credentials(password="x" * (MAX_SECRET_BYTES + 1)),
    ],
    ids=["no password", "no name", "NUL", "no UTF-8", "too long"],
)
def test_secrets_that_cannot_be_said_are_not_tried(odd: Credentials) -> None:
    """The session waits for credentials that PLAIN can carry (RFC 4616 §2)."""
    auth = SessionAuth()
    auth.offered(MECHANISMS, secure=True)
    assert not auth.wants(odd)
    assert auth.wants(credentials())


def test_the_longest_secrets_fit_the_command() -> None:
    """RFC 4954 §4: 12,288 octets of base64."""
    auth = SessionAuth()
    auth.offered(MECHANISMS, secure=True)
    longest = credentials("a" * MAX_SECRET_BYTES, "ü" * (MAX_SECRET_BYTES // 2))
    assert auth.wants(longest)
    assert len(auth.begin(longest).first) <= 12_288


def test_no_offer_no_wish() -> None:
    """Neither without TLS nor without a mechanism we speak."""
    for mechanisms, secure in ((MECHANISMS, False), (frozenset({b"GSSAPI"}), True)):
        auth = SessionAuth()
        auth.offered(mechanisms, secure=secure)
        assert not auth.wants(credentials())


def test_a_yes_to_calling_off_is_none() -> None:
    """235 behind "*" proves nothing."""
    auth = SessionAuth()
    auth.offered(MECHANISMS, secure=True)
    exchange = auth.begin(credentials())
    assert exchange.answer(PeerReply(334, b"")) == b"*\r\n"
    assert exchange.answer(PeerReply(235, b"ok")) is None
    assert not exchange.accepted


def test_a_password_is_never_shown() -> None:
    """Credentials in a log or traceback name the agreement only."""
    assert repr(credentials(password="very secret")) == "Credentials(a-1@mx2.example.net)"
