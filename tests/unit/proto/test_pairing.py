"""Pairing documents: what is read, what is refused, what is kept of our own."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.mail.wire_text import encode_base64url
from posthouse.proto import pairing
from posthouse.proto.pairing import (
    BackupPairing,
    Credential,
    OwnPairing,
    PrimaryPairing,
    find_kind,
    format_backup_pairing,
    format_own_pairing,
    format_primary_pairing,
    hash_token,
    parse_backup_pairing,
    parse_own_pairing,
    parse_primary_pairing,
)

KEY = bytes(range(32))
PRIMARY: dict[str, Any] = {
    "party": "example.com",
    "base_url": "https://mail.example.com:8447/",
    "public_key": encode_base64url(KEY),
    "roster_key": encode_base64url(KEY[::-1]),
    "token": "what.the~backup+presents/abc==",
    "domains": ["example.com", "Bücher.example"],
}
BACKUP: dict[str, Any] = {
    "party": "mx2.example.net",
    "base_url": "https://mx2.example.net:8447/",
    "token": "what-the-primary-presents",
    "tls_spki_sha256": encode_base64url(KEY),
}


def dump(document: object) -> bytes:
    return json.dumps(document).encode()


def test_primary_is_read() -> None:
    """Every member arrives; domains come as A-labels."""
    assert parse_primary_pairing(dump(PRIMARY)) == PrimaryPairing(
        party="example.com",
        base_url="https://mail.example.com:8447/",
        public_key=KEY,
        roster_key=KEY[::-1],
        token="what.the~backup+presents/abc==",
        domains=("example.com", "xn--bcher-kva.example"),
    )


def test_backup_is_read() -> None:
    """Every member arrives, the pin too."""
    assert parse_backup_pairing(dump(BACKUP)) == BackupPairing(
        party="mx2.example.net",
        base_url="https://mx2.example.net:8447/",
        token="what-the-primary-presents",
        tls_spki_sha256=KEY,
    )


def test_unknown_members_are_ignored() -> None:
    """A later version may say more."""
    later = {**PRIMARY, "colour": {"a": [1, None]}}
    assert parse_primary_pairing(dump(later)) == parse_primary_pairing(dump(PRIMARY))


@pytest.mark.parametrize("name", list(PRIMARY))
@pytest.mark.parametrize("value", [None, 5, True, [], {}, ["x", 1], "", "ä", " "])
def test_members_of_a_wrong_kind(name: str, value: object) -> None:
    """A member of another type, null, empty or no text is refused by name."""
    with pytest.raises(ValueError, match=name):
        parse_primary_pairing(dump({**PRIMARY, name: value}))


@pytest.mark.parametrize("name", list(PRIMARY))
def test_missing_members(name: str) -> None:
    """Every member without a question mark is required."""
    document = {key: value for key, value in PRIMARY.items() if key != name}
    with pytest.raises(ValueError, match=f"{name} is missing"):
        parse_primary_pairing(dump(document))


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("tls_spki_sha256", None),
        ("tls_spki_sha256", ""),
        ("tls_spki_sha256", encode_base64url(KEY[:31])),
        ("tls_spki_sha256", encode_base64url(KEY) + "="),
        ("public_key", encode_base64url(KEY + b"x")),
        ("public_key", encode_base64url(KEY)[:-1] + "9"),
        ("roster_key", encode_base64url(KEY).replace("_", "/").replace("-", "+") + "="),
        ("roster_key", KEY.hex()),
        ("token", "two words"),
        ("token", "line\nend"),
        ("token", "x" * 600),
        ("token", "=x"),
        ("base_url", "http://mail.example.com/"),
        ("base_url", "https://mail.example.com/x"),
        ("base_url", "https://user@mail.example.com/"),
        ("party", "../../etc/passwd"),
        ("party", "a@b"),
        ("domains", ["example.com", "EXAMPLE.com."]),
        ("domains", ["not a domain"]),
    ],
)
def test_bad_values(member: str, value: object) -> None:
    """What PROTOCOL.md does not allow is refused by name."""
    with pytest.raises(ValueError, match=member):
        parse_primary_pairing(dump({**PRIMARY, member: value}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe{}",
        b'{"party": "a", "party": "b"}',
        b"[" * 5000 + b"]" * 5000,
        b" " * (pairing.MAX_DOCUMENT_BYTES + 1),
        b"\xef\xbb\xbf" + dump(BACKUP),
    ],
)
def test_no_document(data: bytes) -> None:
    """What is not one JSON object without duplicate names is refused."""
    for parse in (parse_primary_pairing, parse_backup_pairing):
        with pytest.raises(ValueError):
            parse(data)


@given(st.binary(max_size=80))
def test_rubbish_is_a_value_error(data: bytes) -> None:
    """No octets make a reader raise anything else."""
    for parse in (parse_primary_pairing, parse_backup_pairing, find_kind):
        with pytest.raises(ValueError):
            parse(data)


def test_writing_and_reading() -> None:
    """What is written is read as it was, former keys included."""
    primary = parse_primary_pairing(dump(PRIMARY))
    rotated = PrimaryPairing(
        party=primary.party,
        base_url=primary.base_url,
        public_key=primary.public_key,
        roster_key=b"n" * 32,
        token="new",
        domains=primary.domains,
        tls_spki_sha256=KEY,
        former_roster_keys=(primary.roster_key,),
    )
    for one in (primary, rotated):
        assert parse_primary_pairing(format_primary_pairing(one)) == one
    assert rotated.roster_keys == (b"n" * 32, KEY[::-1])
    assert "former_roster_keys" not in json.loads(format_primary_pairing(primary))
    backup = parse_backup_pairing(dump(BACKUP))
    assert parse_backup_pairing(format_backup_pairing(backup)) == backup


def test_own_file_holds_no_token() -> None:
    """Of a token that we gave out only its hash is kept, and it is the one of PROTOCOL.md."""
    own = OwnPairing(
        kind="primary",
        party="example.com",
        base_url="https://mail.example.com:8447/",
        credentials=(
            Credential(token_sha256=hash_token("old"), roster_key=b"o" * 32),
            Credential(token_sha256=hash_token("new"), roster_key=b"n" * 32),
        ),
        domains=("example.com",),
        public_key=KEY,
        partner="mx2.example.net",
    )
    written = format_own_pairing(own)
    assert parse_own_pairing(written, "primary") == own
    assert b'"token"' not in written
    assert hashlib.sha256(b"new").hexdigest().encode() in written


def test_plain_documents_serve_as_own_files() -> None:
    """A file written by hand, or by another implementation, is an own file with one token."""
    own = parse_own_pairing(dump(PRIMARY), "primary")
    assert own.credentials == (
        Credential(token_sha256=hash_token(PRIMARY["token"]), roster_key=KEY[::-1]),
    )
    assert own.domains == ("example.com", "xn--bcher-kva.example")
    backup = parse_own_pairing(dump(BACKUP), "backup")
    assert backup.credentials == (Credential(token_sha256=hash_token(BACKUP["token"])),)


@pytest.mark.parametrize(
    "credentials",
    [
        None,
        [],
        ["x"],
        [{}],
        [{"token_sha256": "00" * 31}],
        [{"token_sha256": "AA" * 32}],
        [{"token_sha256": 5}],
        [{"token_sha256": "00" * 32}] * 9,
    ],
)
def test_bad_credentials(credentials: object) -> None:
    """A damaged list of hashes is refused, never read as nobody's."""
    document = {**BACKUP, "credentials": credentials}
    with pytest.raises(ValueError, match=r"credentials|token_sha256"):
        parse_own_pairing(dump(document), "backup")


def test_kinds_are_told_apart() -> None:
    """Only a primary's document has keys."""
    assert find_kind(dump(PRIMARY)) == "primary"
    assert find_kind(dump(BACKUP)) == "backup"


def test_nothing_secret_shows() -> None:
    """Neither keys nor tokens reach a log through a repr."""
    shown = repr(parse_primary_pairing(dump(PRIMARY))) + repr(parse_backup_pairing(dump(BACKUP)))
    shown += repr(parse_own_pairing(dump(PRIMARY), "primary"))
    for secret in (PRIMARY["token"], BACKUP["token"], "roster_key", repr(KEY[::-1])):
        assert secret not in shown
