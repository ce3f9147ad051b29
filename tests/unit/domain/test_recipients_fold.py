"""Canonical text of local parts."""

from __future__ import annotations

import pytest

from posthouse.domain.recipients import Fold, fold, fold_both, make_digester

PLAIN = Fold()
DOTLESS = Fold(delimiters="+-", dots="drop")
EXACT = Fold(case="preserve", delimiters="")


@pytest.mark.parametrize(
    ("content", "how", "kept", "cut", "why"),
    [
        ("Alice", PLAIN, "alice", "alice", "case does not count"),
        ("alice+Lists", PLAIN, "alice+lists", "alice", "a subaddress is cut in the second text"),
        ("alice+a+b", PLAIN, "alice+a+b", "alice", "from the first delimiter on"),
        ("+alice", PLAIN, "+alice", "+alice", "a delimiter at position 0 does not count"),
        ("+alice+x", PLAIN, "+alice+x", "+alice", "but the next one does"),
        ("++x", PLAIN, "++x", "+", "even right behind it"),
        ("alice+", PLAIN, "alice+", "alice", "an empty subaddress is one"),
        ("a.li.ce", PLAIN, "a.li.ce", "a.li.ce", "dots count unless told otherwise"),
        ("a.li.ce", DOTLESS, "alice", "alice", "dots dropped"),
        ("a.b-c.d+e.f", DOTLESS, "ab-c.d+e.f", "ab", "dots behind the first delimiter stay"),
        (".+a+b", DOTLESS, "+a+b", "", "positions are those before dots go"),
        ("...", DOTLESS, "", "", "nothing may be left"),
        ("Alice+X", EXACT, "Alice+X", "Alice+X", "case kept, no delimiters"),
        ("zoe\u0308", PLAIN, "zo\xeb", "zo\xeb", "composed (NFC)"),
        ("\xc9lan", PLAIN, "\xe9lan", "\xe9lan", "lower case beyond ASCII"),
        ("I\u0307x", PLAIN, "i\u0307x", "i\u0307x", "no Turkish rules"),
        ("marta lee", PLAIN, "marta lee", "marta lee", "a blank from a quoted-string"),
        ("", PLAIN, "", "", "nothing stays nothing"),
    ],
)
def test_fold(content: str, how: Fold, kept: str, cut: str, why: str) -> None:
    """A local part has exactly one canonical text for each way of reading."""
    assert fold(content, how, cut=False) == kept, why
    assert fold(content, how, cut=True) == cut, why
    assert fold_both(content, how) == (kept, cut), why


def test_delimiter_made_by_composition_counts() -> None:
    """A character that NFC turns into a delimiter cuts like the delimiter itself."""
    assert fold_both("alice\u037ex", Fold(delimiters=";")) == ("alice;x", "alice")


def test_digest_depends_on_key_and_text_only() -> None:
    """Digests of one key are stable, 16 octets, and worth nothing under another key."""
    digest = make_digester(b"k" * 32)
    assert len(digest("alice")) == 16
    assert digest("alice") == digest("alice") == make_digester(b"k" * 32)("alice")
    assert digest("alice") != digest("alicf")
    assert digest("alice") != make_digester(b"l" * 32)("alice")


def test_digest_takes_what_is_not_text() -> None:
    """Octets that were not UTF-8 do not make a look-up fail."""
    assert len(make_digester(b"k" * 32)("al\udcffice")) == 16
