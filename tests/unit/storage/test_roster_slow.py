"""Rosters with slow digests: remembered, shared, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fakes.roster_disk import NOW_US, AtOnce, RosterDisk
from fakes.rosters import make_roster, rule
from fakes.vectors import DOMAIN, ROSTER_KEY
from posthouse.domain.digests import roster_key_id
from posthouse.domain.finding import Answer, Finding
from posthouse.mail.roster import ScryptDigest
from posthouse.storage import roster_directory

SCRYPT = ScryptDigest(
    n=1024, r=8, p=1, salt="Npn-MgojWduuHKTLKSMbIw", length=16, key_id=roster_key_id(ROSTER_KEY)
)


@pytest.fixture
def disk(tmp_path: Path) -> RosterDisk:
    disk = RosterDisk(tmp_path / "rosters")
    disk.take_in(make_roster(["alice", "bob"], digest=SCRYPT, rules=(rule("sales", "accept"),)))
    return disk


async def find(
    disk: RosterDisk, slow: AtOnce, *local_parts: str, network: str = ""
) -> list[Answer]:
    roster = disk.get(slow)
    answers = []
    for local_part in local_parts:
        found = roster.find(local_part, network)
        answers.append(found if isinstance(found, Answer) else await found)
    return answers


async def test_findings_are_those_of_any_roster(disk: RosterDisk) -> None:
    """Kept text, cut text, absence, rules and postmaster are found as with a fast digest."""
    answers = await find(disk, AtOnce(), "Alice", "bob+x", "carol", "sales", "postmaster")
    assert [answer.finding for answer in answers] == [
        Finding.VOUCHED,
        Finding.VOUCHED,
        Finding.ABSENT,
        Finding.RULE,
        Finding.VOUCHED,
    ]
    assert answers[1].canonical == f"bob@{DOMAIN}"


async def test_answers_are_remembered_both_ways(disk: RosterDisk) -> None:
    """What was computed once is answered at once afterwards, found or not."""
    slow = AtOnce()
    roster = disk.get(slow)
    for local_part in ("alice", "carol+x"):
        first = roster.find(local_part)
        assert not isinstance(first, Answer)
        answer = await first
        assert roster.find(local_part) == answer
    assert slow.started == 3  # alice, carol+x, carol


async def test_memory_is_bounded(disk: RosterDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest answer is forgotten first."""
    monkeypatch.setattr(roster_directory, "MAX_REMEMBERED", 2)
    slow = AtOnce()
    await find(disk, slow, "a", "b", "c", "c", "b")
    assert slow.started == 3
    roster = disk.get(slow)
    for local_part in ("a", "b", "c"):
        found = roster.find(local_part)
        assert not isinstance(found, Answer)
        await found
    assert isinstance(roster.find("c"), Answer)
    again = roster.find("a")
    assert not isinstance(again, Answer)
    await again


async def test_equal_questions_share_one_computation(disk: RosterDisk) -> None:
    """A thousand sessions that ask for one address cost one digest; who leaves stops nobody."""
    gate = asyncio.Event()

    class Gated(AtOnce):
        def run(self, test: Callable[[], bool]) -> Awaitable[bool] | None:
            self.started += 1
            return self._later(test)

        async def _later(self, test: Callable[[], bool]) -> bool:
            await gate.wait()
            return test()

    slow = Gated()
    roster = disk.get(slow)
    tasks = []
    for _ in range(20):
        found = roster.find("alice")
        assert not isinstance(found, Answer)
        tasks.append(asyncio.ensure_future(found))
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    gate.set()
    answers = await asyncio.gather(*tasks[1:])
    assert {answer.finding for answer in answers} == {Finding.VOUCHED}
    assert slow.started == 1


async def test_too_many_at_once_are_told_to_come_again(disk: RosterDisk) -> None:
    """When no more fit, nobody looks: the answer says so and is not remembered."""
    (answer,) = await find(disk, AtOnce(room=0), "alice")
    assert (answer.finding, answer.withheld) == (Finding.UNKNOWN, "busy")
    (answer,) = await find(disk, AtOnce(), "alice")
    assert answer.finding is Finding.VOUCHED


async def test_guesses_count_and_hits_do_not(disk: RosterDisk) -> None:
    """A network that misses too often gets no more answers, not even right ones; others do."""
    slow = AtOnce(guesses=2)
    answers = await find(disk, slow, "alice", "x", "bob", "y", "z", network="192.0.2")
    assert [answer.finding for answer in answers] == [
        Finding.VOUCHED,
        Finding.ABSENT,
        Finding.VOUCHED,
        Finding.ABSENT,
        Finding.UNKNOWN,
    ]
    assert answers[-1].withheld == "guessed"


async def test_closing_waits_for_look_ups_under_way(disk: RosterDisk) -> None:
    """A roster that was replaced answers who asked before, and takes no new questions."""
    gate = asyncio.Event()

    class Gated(AtOnce):
        async def _run(self, test: Callable[[], bool]) -> bool:
            await gate.wait()
            return test()

    roster = disk.get(Gated())
    found = roster.find("alice")
    assert not isinstance(found, Answer)
    task = asyncio.ensure_future(found)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    roster.close()
    late = roster.find("carol")
    assert not isinstance(late, Answer)
    assert (await late).withheld == "busy"
    gate.set()
    assert (await task).finding is Finding.VOUCHED


async def test_staleness_is_that_of_the_answer(disk: RosterDisk) -> None:
    """Remembered answers become stale with their roster."""
    slow = AtOnce()
    roster = disk.get(slow)
    for stale in (False, True):
        found = roster.find("carol")
        answer = found if isinstance(found, Answer) else await found
        assert (answer.finding, answer.stale) == (Finding.ABSENT, stale)
        disk.now_us = NOW_US + 30 * 86_400 * 1_000_000
