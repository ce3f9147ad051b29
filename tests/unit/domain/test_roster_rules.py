"""Patterns that another organisation wrote."""

from __future__ import annotations

import pytest

from fakes.rosters import rule
from posthouse.domain.roster_rules import compile_rules
from posthouse.errors import RosterRefused


def test_the_first_rule_that_matches_whole_wins() -> None:
    """Rules are tried in order against the whole text."""
    accept, reject = rule("sales-[0-9]{4}", "accept"), rule("sales-.*", "reject")
    find = compile_rules([accept, reject])
    assert find("sales-2026") is accept
    assert find("sales-team") is reject
    assert find("presales-2026") is None
    assert find("") is None


def test_alternatives_are_anchored_as_a_whole() -> None:
    """A full match is one of the whole pattern, not of its last alternative."""
    find = compile_rules([rule("a|b", "accept")])
    assert find("ab") is None
    assert find("b") is not None


def test_patterns_and_texts_are_utf8() -> None:
    """A dot is one character; lone surrogates match nothing and do no harm."""
    find = compile_rules([rule("zo.", "accept")])
    assert find("zoë") is not None
    assert find("zo\ud800x") is None


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(", "not a pattern"),
        (r"(a)\1", "a back-reference"),
        ("(?=a)a", "look-ahead"),
        ("(x{1000}){1000}", "repetition of repetition"),
        (r"\pN{500,1000}" * 10, "more than a MiB when compiled"),
        ("a" * 1025, "over 1,024 octets"),
        ("é" * 513, "over 1,024 octets in UTF-8"),
    ],
)
def test_hostile_patterns_are_refused(pattern: str, why: str) -> None:
    """What RE2 does not take within its bounds is refused, with the number of the rule."""
    with pytest.raises(RosterRefused, match="rule 2") as caught:
        compile_rules([rule("a", "accept"), rule(pattern, "accept")])
    assert caught.value.check == "rules", why


def test_catastrophic_patterns_are_linear() -> None:
    """The pattern that a backtracking engine never finishes is answered at once."""
    assert compile_rules([rule("(a+)+$", "accept")])("a" * 255 + "!") is None


def test_too_many_rules_are_refused() -> None:
    """More than 256 rules are refused."""
    compile_rules([rule("a", "accept")] * 256)
    with pytest.raises(RosterRefused):
        compile_rules([rule("a", "accept")] * 257)
