"""Envelope paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.errors import AddressError
from posthouse.mail.address import Mailbox, NeedsUtf8, normalize_domain, parse_path

GOOD = [
    (b"alice@example.com", ("alice@example.com", "alice", "example.com")),
    (b"Alice@EXAMPLE.Com", ("Alice@EXAMPLE.Com", "Alice", "example.com")),
    (b"a.b+c=d@example.com.", ("a.b+c=d@example.com", "a.b+c=d", "example.com")),
    (b'"a b"@example.com', ('"a b"@example.com', "a b", "example.com")),
    (b'"a\\"b"@example.com', ('"a\\"b"@example.com', 'a"b', "example.com")),
    (b'"a@b"@example.com', ('"a@b"@example.com', "a@b", "example.com")),
    (b"@r.example:x@example.com", ("x@example.com", "x", "example.com")),
    (b"@r.example,@s.example:x@example.com", ("x@example.com", "x", "example.com")),
    (b"a..b@example.com", ("a..b@example.com", "a..b", "example.com")),
    (b"a.@example.com", ("a.@example.com", "a.", "example.com")),
    (b"x@[127.0.0.1]", ("x@[127.0.0.1]", "x", "[127.0.0.1]")),
    (b"x@[IPv6:::1]", ("x@[IPv6:::1]", "x", "[ipv6:::1]")),
    (b"x@under_score.example", ("x@under_score.example", "x", "under_score.example")),
]


@pytest.mark.parametrize(("raw", "wanted"), GOOD)
def test_good_paths(raw: bytes, wanted: tuple[str, str, str]) -> None:
    """Well-formed paths are read; routes stripped, local parts unquoted, domains folded."""
    mailbox = parse_path(raw, utf8=False)
    assert mailbox is not None
    assert (mailbox.spelled, mailbox.local, mailbox.domain) == wanted


BAD = [
    b"alice", b"@example.com", b"alice@", b"a b@example.com", b"a@b@example.com",
    b'"a@example.com', b'""@example.com', b"a@exa mple.com", b"a@-x.example", b"a@x-.example",
    b"a@.example", b"a@x..example", b"a@[1.2.3.4", b"a@[1.2.3.4]x", b"<a@example.com>",
    b"a\x00@example.com", b"a" * 256 + b"@example.com", b"a@" + b"x" * 64 + b".example",
    b"a@" + b"x." * 140 + b"example", b"a@example.com..", b"a@example.com" + b"\xc2\xad" * 130,
    b"a(comment)@example.com", b"a,b@example.com",
]  # fmt: skip


@pytest.mark.parametrize("raw", BAD)
def test_bad_paths(raw: bytes) -> None:
    """What RFC 5321 does not allow is an AddressError with a reason."""
    with pytest.raises(AddressError) as caught:
        parse_path(raw, utf8=True)
    assert caught.value.detail


def test_null_and_bare() -> None:
    """The null path is None; only the one allowed bare local part stands without a domain."""
    assert parse_path(b"", utf8=False) is None
    bare = parse_path(b"PostMaster", utf8=False, allow_bare="postmaster")
    assert bare == Mailbox("PostMaster", "PostMaster", "")
    with pytest.raises(AddressError):
        parse_path(b"root", utf8=False, allow_bare="postmaster")


def test_utf8_only_when_asked_for() -> None:
    """Non-ASCII is read with SMTPUTF8 only; its domain becomes A-labels."""
    raw = "josé@Bücher.example".encode()
    with pytest.raises(NeedsUtf8):
        parse_path(raw, utf8=False)
    mailbox = parse_path(raw, utf8=True)
    assert mailbox is not None
    assert mailbox.domain == "xn--bcher-kva.example"
    assert mailbox.spelled == "josé@Bücher.example"
    with pytest.raises(AddressError):
        parse_path(b"\xff@example.com", utf8=True)


def test_long_domains_are_refused_unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A domain over the limit is refused before IDNA looks at it, also when mapping would shorten it."""

    def never(*_: object, **__: object) -> bytes:
        raise RuntimeError("mapped")

    monkeypatch.setattr("idna.encode", never)
    for padding in (256, 130, 10**6):
        with pytest.raises(AddressError):
            normalize_domain("a" + "\u00ad" * padding + ".example")


@given(st.binary(max_size=300))
def test_any_octets(raw: bytes) -> None:
    """Any octets give a mailbox, None or AddressError, and a mailbox's domain is canonical."""
    for utf8 in (False, True):
        try:
            mailbox = parse_path(raw, utf8=utf8)
        except AddressError:
            continue
        if mailbox is not None and mailbox.domain and not mailbox.domain.startswith("["):
            assert normalize_domain(mailbox.domain) == mailbox.domain
