"""Tables of patterns as rules of a roster."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from posthouse.domain.postfix_patterns import PatternError, PatternRule, read_patterns
from posthouse.domain.roster_rules import compile_rules
from posthouse.errors import RosterRefused
from posthouse.mail.roster import RosterRule


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    try:
        find = compile_rules([RosterRule(match=pattern, action="accept")])
    except RosterRefused as error:
        raise ValueError(error.detail) from error
    return lambda text: find(text) is not None


def read(text: str, kind: str = "regexp") -> list[PatternRule | None]:
    return list(read_patterns(text.splitlines(), kind, "example.com", compile_pattern))


MATCHES = [
    (
        r"/^sales-[0-9]+@example\.com$/ OK",
        ["sales-1", "SALES-22"],
        ["sales-", "xsales-1", "sales-1x"],
    ),
    (r"/^sales@example\.com$/i OK", ["sales"], ["Sales"]),
    (r"/sales@/ OK", ["sales", "presales"], ["sales1"]),
    (r"/^sales-/ OK", ["sales-", "sales-x"], ["sales", "presales-1"]),
    (r"/^alice$/ OK", ["alice"], ["alice1"]),
    (r"/^[^@]+-list@example\.com$/ OK", ["a-list"], ["a-list1"]),
    (r"/^(a|b)@(example\.com|example\.net)$/ OK", ["a", "b"], ["c"]),
    (r"/^a@example.com/ OK", ["a"], ["b"]),
    (r",^a/b@example\.com$, OK", ["a/b"], ["a"]),
]


@pytest.mark.parametrize(("line", "hits", "misses"), MATCHES)
def test_patterns_match_the_same_local_parts(line: str, hits: list[str], misses: list[str]) -> None:
    """A rule matches the local parts whose addresses the pattern matches."""
    [rule] = read(line)
    assert rule is not None
    matches = compile_pattern(rule.match)
    assert [text for text in hits if not matches(text)] == []
    assert [text for text in misses if matches(text)] == []


def test_results_decide_the_action() -> None:
    """A result of REJECT or a code refuses or defers, whatever else accepts."""
    rules = read(
        "# comment\n/^a@/ REJECT not here\n/^b@/ 550 5.1.1 no\n/^c@/ 450 later\n"
        "/^d@/ reject@example.net\n/^e@/\n  somebody\n"
    )
    assert [(rule.line, rule.action) for rule in rules if rule] == [
        (2, "reject"),
        (3, "reject"),
        (4, "defer"),
        (5, "accept"),
        (6, "accept"),
    ]


def test_whole_domains() -> None:
    """A pattern that every address of the domain matches is a catch-all; foreign ones are none."""
    rules = read("/@example\\.com$/ OK\n/@example\\.net$/ OK\n/^x@example\\.org$/ OK\n")
    assert rules[0] is not None
    assert rules[0].match == ""
    assert rules[1:] == [None, None]
    [everybody] = read("/example/ OK")
    assert everybody is not None
    assert everybody.match == ""
    [nobody] = read("/@example\\.com$/ REJECT")
    assert nobody is not None
    assert compile_pattern(nobody.match)("anybody")


NOT_RULES = [
    ("if /x/", "if and endif"),
    ("!/x/ OK", "negated"),
    ("alice@example.com OK", "does not begin with a pattern"),
    ("/^a@example OK", "no closing /"),
    ("/^a@/x OK", "flag x"),
    ("/^a@/ DUNNO", "neither yes nor no"),
    ("/^a@example\\.com$|^b@example\\.com$/ OK", "alternatives without parentheses"),
    ("/^(a@example\\.com)$/ OK", "outside of parentheses"),
    ("/^a[@]example\\.com$/ OK", "outside of parentheses"),
    ("/^a\\@example\\.com$/ OK", "without a backslash"),
    ("/^(a@/ OK", "parentheses"),
    ("/^a$b@example\\.com$/ OK", "an anchor within"),
    ("/^(?=a)b@example\\.com$/ OK", "RE2 does not take it"),
    ("/^(.)\\1@example\\.com$/ OK", "RE2 does not take it"),
    ("  /x/ OK", "continues a line"),
]


@pytest.mark.parametrize(("line", "said"), NOT_RULES)
def test_what_cannot_be_a_rule_is_a_mistake(line: str, said: str) -> None:
    """A pattern that would be lost or change its meaning is refused with its line."""
    with pytest.raises(PatternError, match=said) as caught:
        read(f"# first\n{line}\n", kind="pcre")
    assert caught.value.line == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (r"/^a\d@example\.com$/ OK", r"\\d means something else"),
        (r"/^\<a@example\.com$/ OK", r"\\< means something else"),
        (r"/^a[\w.]@example\.com$/ OK", "a backslash in brackets"),
        (r"/^a[[=e=]]@example\.com$/ OK", "collating elements"),
    ],
)
def test_posix_and_re2_may_not_differ(line: str, said: str) -> None:
    """What both take in different senses is refused in a regexp table."""
    with pytest.raises(PatternError, match=said):
        read(line)
