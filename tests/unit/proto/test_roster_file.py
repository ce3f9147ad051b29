"""The octets of a roster file."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.rosters import make_body, make_header, make_roster, seal, sign
from fakes.vectors import DAMAGED, PUBLIC_KEY, ROSTER, VECTORS
from posthouse.errors import RosterRefused
from posthouse.mail.roster import HmacDigest
from posthouse.proto.roster_file import (
    MAX_HEADER_BYTES,
    BodyCheck,
    encode_signed,
    parse_head,
    verify_signature,
)


def check_body(data: bytes, piece: int = 1 << 20) -> None:
    head = parse_head(data)
    check = BodyCheck(head.header)
    for start in range(head.body_offset, len(data), piece):
        check.feed(data[start : start + piece])
    check.finish()


def test_the_roster_of_the_vectors_reads() -> None:
    """The example file reads, is signed by its publisher, and its body is what it says."""
    head = parse_head(ROSTER)
    assert head.header.domain == VECTORS["roster"]["domain"]
    assert head.header.serial == VECTORS["roster"]["serial"]
    assert verify_signature(head, PUBLIC_KEY)
    assert head.octets == ROSTER[: head.body_offset]
    assert head.file_bytes == len(ROSTER)
    check_body(ROSTER)


def test_the_roster_of_the_vectors_is_written_alike() -> None:
    """Writing the header again gives the very octets: Ed25519 has one signature."""
    head = parse_head(ROSTER)
    assert encode_signed(head.header, sign) == head.octets


def test_damaged_vectors_are_refused() -> None:
    """A flipped bit of the body, a duplicate member, a signature over less: each is noticed."""
    with pytest.raises(RosterRefused) as caught:
        check_body(DAMAGED["hash"])
    assert caught.value.check in ("hash", "order")
    with pytest.raises(RosterRefused) as caught:
        parse_head(DAMAGED["header"])
    assert caught.value.check == "header"
    assert not verify_signature(parse_head(DAMAGED["signature"]), PUBLIC_KEY)
    assert verify_signature(parse_head(DAMAGED["postmaster"]), PUBLIC_KEY)


def with_line(old: bytes, new: bytes) -> bytes:
    assert old in ROSTER
    return ROSTER.replace(old, new, 1)


@pytest.mark.parametrize(
    ("data", "check", "why"),
    [
        (b"", "form", "nothing"),
        (b"posthouse-roster 2\n" + ROSTER[19:], "form", "another version"),
        (b"posthouse-roster 1\r\n" + ROSTER[19:], "form", "CR LF"),
        (b"\xef\xbb\xbf" + ROSTER, "form", "a byte order mark"),
        (ROSTER[:400], "form", "cut within the header"),
        (ROSTER[: parse_head(ROSTER).body_offset - 1], "form", "cut within the signature"),
        (ROSTER[:19] + b" " * (MAX_HEADER_BYTES + 1) + ROSTER[19:], "form", "over 1 MiB"),
        (ROSTER[:19] + b"\n" + ROSTER[19:], "form", "an empty line"),
        (with_line(b'{"domain"', b'{\r"domain"'), "form", "CR within the header"),
        (with_line(b'"serial":', b'"serials":'), "header", "a member missing"),
        (with_line(b'"serial":1793606400', b'"serial":0'), "header", "serial 0"),
        (with_line(b'"serial":1793606400', b'"serial":1793606400.0'), "header", "a fraction"),
        (with_line(b'"bytes":16', b'"bytes":15'), "header", "15 octets"),
        (with_line(b'"bytes":16', b'"bytes":33'), "header", "33 octets"),
        (with_line(b'"scheme":"hmac-sha256"', b'"scheme":"md5"'), "header", "an unknown scheme"),
        (with_line(b'"count":5', b'"count":50000001'), "header", "over 50 million"),
        (with_line(b'"count":5', b'"count":1000000000'), "header", "a billion"),
        (with_line(b'"case":"lower"', b'"case":"upper"'), "header", "an unknown case"),
        (with_line(b'"delimiters":"+"', b'"delimiters":"+a"'), "header", "a letter delimits"),
        (with_line(b'"delimiters":"+"', b'"delimiters":"\\""'), "header", "a quote delimits"),
        (with_line(b'"delimiters":"+"', b'"delimiters":"\\\\"'), "header", "a backslash delimits"),
        (with_line(b'"delimiters":"+"', b'"delimiters":"@"'), "header", "an at delimits"),
        (with_line(b'"delimiters":"+"', b'"delimiters":"."'), "header", "a dot delimits"),
        (with_line(b'"delimiters":"+"', b'"delimiters":" "'), "header", "a blank delimits"),
        (with_line(b'"action":"trap"', b'"action":"trip"'), "header", "an unknown action"),
        (with_line(b'"when_stale":"defer"', b'"when_stale":"take"'), "header", "unknown policy"),
        (with_line(b'"8bitmime":true', b'"8bitmime":1'), "header", "a number for a boolean"),
        (with_line(b'"mx":[]', b'"mx":[[65536,"mx.example"]]'), "header", "preference 65536"),
        (with_line(b'"mx":[]', b'"mx":null'), "header", "null for a list"),
        (with_line(b"T08:00:00Z", b"T08:00:00"), "header", "a time without Z"),
    ],
)
def test_malformed_heads_are_refused(data: bytes, check: str, why: str) -> None:
    """Whatever is not exactly the form is refused before signature or body are looked at."""
    with pytest.raises(RosterRefused) as caught:
        parse_head(data)
    assert caught.value.check == check, why


def test_all_other_delimiters_are_allowed() -> None:
    """Every printable ASCII character delimits but letters, digits and four others."""
    allowed = "".join(
        chr(code)
        for code in range(0x21, 0x7F)
        if not chr(code).isalnum() and chr(code) not in '."\\@'
    )
    data = with_line(b'"delimiters":"+"', b'"delimiters":"' + allowed.encode() + b'"')
    assert parse_head(data).header.fold.delimiters == allowed


def test_unknown_members_are_ignored() -> None:
    """A member of a later version changes nothing."""
    data = with_line(b'"mx":[]', b'"mx":[],"later":{"a":[1.5,null]}')
    assert parse_head(data).header.mx == ()


@pytest.mark.parametrize("width", [16, 20, 32])
@given(piece=st.integers(1, 400))
def test_a_body_is_checked_in_pieces_of_any_size(width: int, piece: int) -> None:
    """How the octets arrive makes no difference."""
    key_id = VECTORS["digests"]["hmac-sha256"]["key_id"]
    data = make_roster([f"u{n}" for n in range(40)], digest=HmacDigest(length=width, key_id=key_id))
    check_body(data, piece)


def test_a_body_in_disorder_is_refused() -> None:
    """Two digests swapped, one twice, one octet more or less: refused though signed and hashed."""
    header = make_header()
    body = make_body(header, [f"u{n}" for n in range(10_000)])
    digests = [body[at : at + 16] for at in range(0, len(body), 16)]
    for place in (0, 4094, 4095, 4096, len(digests) - 2):  # within and between slices
        swapped = digests.copy()
        swapped[place : place + 2] = reversed(swapped[place : place + 2])
        twice = [*digests[: place + 1], *digests[place:]]
        for wrong in (swapped, twice):
            with pytest.raises(RosterRefused) as caught:
                check_body(seal(header, b"".join(wrong)))
            assert caught.value.check == "order"
    for wrong_length in (body + b"\0", body[:-1], body + body[:16]):
        with pytest.raises(RosterRefused) as caught:
            check_body(seal(header, wrong_length, count=len(digests)))
        assert caught.value.check == "length"


def test_an_empty_body_is_in_order() -> None:
    """No digests are no disorder; that postmaster is missing is another check's affair."""
    check_body(seal(make_header(), b""))


def test_base64_of_the_vectors_is_standard() -> None:
    """The files of the vectors are in standard base64 as they say."""
    assert base64.b64encode(ROSTER).decode() == VECTORS["roster"]["file_base64"]
