"""Live verification is asked only where a list or roster leaves the question open."""

from __future__ import annotations

from collections.abc import Awaitable

import pytest

from posthouse.domain.finding import Answer, Finding
from posthouse.domain.live_check import LiveFinding
from posthouse.services.live_directories import LiveDirectories

VOUCHED = Answer(finding=Finding.VOUCHED, canonical="a@example.com", serial=7)
UNKNOWN = Answer(finding=Finding.UNKNOWN)
STALE = Answer(finding=Finding.ABSENT, stale=True, when_stale="hold")


class Lists:
    """One answer, at once or later."""

    def __init__(self, answer: Answer, *, later: bool) -> None:
        self.answer, self.later = answer, later

    def find(self, domain: str, local_part: str, network: str = "") -> Answer | Awaitable[Answer]:
        return self._find_later() if self.later else self.answer

    async def _find_later(self) -> Answer:
        return self.answer


class Checks:
    """One finding, at once or later."""

    def __init__(self, finding: LiveFinding, *, later: bool) -> None:
        self.finding, self.later = finding, later
        self.asked: list[tuple[str, str, str]] = []

    def covers(self, domain: str) -> bool:
        return domain == "example.com"

    def find(self, domain: str, local: str, network: str) -> LiveFinding | Awaitable[LiveFinding]:
        self.asked.append((domain, local, network))
        return self._find_later() if self.later else self.finding

    async def _find_later(self) -> LiveFinding:
        return self.finding


async def find(lists: Lists, checks: Checks, domain: str = "example.com") -> Answer:
    found = LiveDirectories(lists, checks).find(domain, "a", "192.0.2")
    return found if isinstance(found, Answer) else await found


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        VOUCHED,
        Answer(finding=Finding.ABSENT),
        Answer(finding=Finding.CATCH_ALL),
        Answer(finding=Finding.TRAP),
        Answer(finding=Finding.DEFER),
        Answer(finding=Finding.VOUCHED, stale=True),
        Answer(finding=Finding.UNKNOWN, withheld="guessed"),
        Answer(finding=Finding.UNKNOWN, withheld="busy"),
    ],
    ids=lambda a: f"{a.finding.value}-{a.stale}-{a.withheld}",
)
async def test_what_is_decided_is_not_asked(answer: Answer, later: bool) -> None:
    """A list or fresh roster decides, and a stale one still vouches."""
    checks = Checks(LiveFinding.EXISTS, later=later)
    assert await find(Lists(answer, later=later), checks) == answer
    assert checks.asked == []


@pytest.mark.parametrize("lists_later", [False, True])
@pytest.mark.parametrize("checks_later", [False, True])
@pytest.mark.parametrize("answer", [UNKNOWN, STALE], ids=["none", "stale"])
@pytest.mark.parametrize(
    ("finding", "expected", "withheld"),
    [
        (LiveFinding.EXISTS, Finding.VOUCHED, ""),
        (LiveFinding.ABSENT, Finding.ABSENT, ""),
        (LiveFinding.GUESSED, Finding.UNKNOWN, "guessed"),
        (LiveFinding.BUSY, Finding.UNKNOWN, "busy"),
    ],
)
async def test_what_is_open_is_asked(
    answer: Answer,
    finding: LiveFinding,
    expected: Finding,
    withheld: str,
    lists_later: bool,
    checks_later: bool,
) -> None:
    """The primary's word is as good as a fresh list; a no is not stale."""
    checks = Checks(finding, later=checks_later)
    found = await find(Lists(answer, later=lists_later), checks)
    assert (found.finding, found.withheld) == (expected, withheld)
    if finding is LiveFinding.ABSENT:
        assert not found.stale
    assert checks.asked == [("example.com", "a", "192.0.2")]
    undecided = Checks(LiveFinding.UNDECIDED, later=checks_later)
    assert await find(Lists(answer, later=lists_later), undecided) == answer


async def test_domains_that_are_not_verified() -> None:
    """`verify = "off"`: the list's answer stands."""
    checks = Checks(LiveFinding.EXISTS, later=False)
    assert await find(Lists(UNKNOWN, later=False), checks, "example.org") == UNKNOWN
    assert checks.asked == []
