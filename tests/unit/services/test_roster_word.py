"""What rosters say to the forwarder, and to a backup that grants."""

from __future__ import annotations

from collections.abc import Awaitable

import pytest

from posthouse.domain.finding import Answer, Finding
from posthouse.domain.recipients import Fold
from posthouse.mail.roster import RosterLimits, RosterPolicy
from posthouse.services.roster_word import RosterWord

NOW_S = 1_795_000_000


class FakeRoster:
    """Says one thing about everybody, at once or later."""

    serial = 9
    issued_s = NOW_S - 10
    limits = RosterLimits(max_message_bytes=1000, smtputf8=True, eight_bit_mime=True)
    policy = RosterPolicy(blocking="forbidden", when_stale="defer")
    fold = Fold(delimiters="-")

    def __init__(self, finding: Finding, *, stale: bool = False, slow: bool = False) -> None:
        self.expires_s = NOW_S - 1 if stale else NOW_S + 1
        canonical = "alice@example.com" if finding is Finding.VOUCHED else ""
        self._answer = Answer(finding=finding, stale=stale, canonical=canonical, serial=9)
        self._slow = slow

    def find(self, local_part: str, network: str = "") -> Answer | Awaitable[Answer]:
        return self._later() if self._slow else self._answer

    async def _later(self) -> Answer:
        return self._answer


def word(roster: FakeRoster | None) -> RosterWord:
    return RosterWord(lambda _domain: roster, lambda: NOW_S * 1_000_000)


async def test_a_domain_without_a_roster() -> None:
    """Nothing is said of anybody."""
    nothing = word(None)
    assert nothing.facts("example.com") is None
    assert nothing.fold("example.com") is None
    assert await nothing.testify("example.com", "alice") is None
    found = await nothing.find("example.com", "alice")
    assert (found.exists, found.mailbox) == (None, "alice@example.com")


def test_facts() -> None:
    """Serial, dates and policy, as agreements need them."""
    facts = word(FakeRoster(Finding.VOUCHED)).facts("example.com")
    assert facts is not None
    assert (facts.serial, facts.fresh, facts.blocking_allowed) == (9, True, False)
    assert facts.issued_us == (NOW_S - 10) * 1_000_000
    stale = word(FakeRoster(Finding.VOUCHED, stale=True)).facts("example.com")
    assert stale is not None
    assert not stale.fresh
    assert word(FakeRoster(Finding.TRAP)).fold("example.com") == Fold(delimiters="-")


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(
    ("finding", "vouched", "exists", "when_stale"),
    [
        (Finding.VOUCHED, True, True, True),
        (Finding.CATCH_ALL, True, None, None),
        (Finding.RULE, True, None, None),
        (Finding.TRAP, None, None, None),
        (Finding.DEFER, None, None, None),
        (Finding.ABSENT, False, False, None),
        (Finding.UNKNOWN, None, None, None),
    ],
)
async def test_each_finding(
    slow: bool,
    finding: Finding,
    vouched: bool | None,
    exists: bool | None,
    when_stale: bool | None,
) -> None:
    """For the forwarder what vouches; for a granter only a digest, and a fresh roster's no."""
    said = word(FakeRoster(finding, slow=slow))
    assert await said.testify("example.com", "Alice-x") is vouched
    assert (await said.find("example.com", "Alice-x")).exists is exists
    stale = word(FakeRoster(finding, stale=True, slow=slow))
    assert (await stale.find("example.com", "Alice-x")).exists is when_stale
