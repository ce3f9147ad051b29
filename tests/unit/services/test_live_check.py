"""Live verification: asked once, remembered, never stuck, never believed without reason."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from fakes.asked_primary import TAKEN, AskedPrimary
from fakes.live_cache import MemoryLiveCache
from fakes.timers import Timers, turn_over
from posthouse.domain.drain import State
from posthouse.domain.live_check import (
    NEGATIVE_US,
    POSITIVE_US,
    REFRESH_US,
    STANDARD_US,
    UNDECIDED_US,
    Entry,
    LiveFinding,
)
from posthouse.errors import StorageBroken
from posthouse.mail.reply import Reply
from posthouse.ports_drain import NextHopView
from posthouse.services.live_check import LiveChecks
from posthouse.services.live_primary import (
    MAX_REFUSED,
    MAX_SESSIONS,
    MAX_WAITING,
    REST_US,
    LivePrimary,
)

EXISTS, ABSENT, UNDECIDED = LiveFinding.EXISTS, LiveFinding.ABSENT, LiveFinding.UNDECIDED
GREYLISTED = Reply(450, "", "4.2.0 Greylisted")


class FakeBudget:
    """So many misses for each network, for ever."""

    def __init__(self, misses: int) -> None:
        self.misses = misses
        self.spent: dict[str, int] = {}

    def allows(self, network: str, now_s: float) -> bool:
        return self.spent.get(network, 0) < self.misses

    def spend(self, network: str, now_s: float) -> None:
        self.spent[network] = self.spent.get(network, 0) + 1

    def refund(self, network: str) -> None:
        self.spent[network] -= 1


class FakeStates:
    """One state for everything."""

    def __init__(self) -> None:
        self.state = State.UP

    def state_of(self, next_hop: str) -> NextHopView:
        return NextHopView(next_hop=next_hop, domains=(next_hop,), state=self.state, since_us=0)

    def of_domain(self, domain: str) -> NextHopView:
        return self.state_of(domain)

    def all_states(self) -> list[NextHopView]:
        return []

    def watch(self, listener: Callable[[NextHopView], None]) -> None:
        raise AssertionError

    def retry(self, domain: str | None = None) -> None:
        raise AssertionError


class Stage:
    """Live checks over fakes."""

    def __init__(self, senders: dict[str, str] | None = None) -> None:
        self.timers = Timers()
        self.primary = AskedPrimary("alice", "bob", "postmaster")
        self.cache = MemoryLiveCache()
        self.budget = FakeBudget(5)
        self.states = FakeStates()
        self.senders = senders or {"example.com": ""}
        self.checks = self.make()

    def make(self) -> LiveChecks:
        """Anew, as after a restart."""
        return LiveChecks(
            self.senders,
            connector=self.primary,
            ways=self.primary,
            budget=self.budget,
            cache=self.cache,
            states=self.states,
            clock_us=self.timers.clock_us,
            dice=random.Random(7),
        )

    def begin(self, local: str, network: str = "192.0.2") -> Awaitable[LiveFinding]:
        found = self.checks.find("example.com", local, network)
        assert not isinstance(found, LiveFinding)
        return found

    async def find(self, local: str, network: str = "192.0.2") -> LiveFinding:
        found = self.checks.find("example.com", local, network)
        return found if isinstance(found, LiveFinding) else await asyncio.wait_for(found, 20)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage()
    yield made
    await made.checks.close()
    assert made.primary.open_sessions == 0


async def test_known_and_unknown(stage: Stage) -> None:
    """The primary's word, once each; then from memory, and after a restart from the cache."""
    assert await stage.find("alice") is EXISTS
    assert await stage.find("nobody") is ABSENT
    assert stage.primary.asked_of("alice", "nobody") == ["alice@example.com", "nobody@example.com"]
    assert stage.primary.connects == 1
    assert set(stage.primary.senders) == {""}
    assert stage.checks.find("example.com", "alice", "") is EXISTS
    assert stage.checks.find("example.com", "nobody", "") is ABSENT
    await stage.checks.close()
    stage.checks = stage.make()
    stage.primary.down()
    assert await stage.find("alice") is EXISTS
    assert await stage.find("nobody") is ABSENT


async def test_local_parts_are_spelled_for_the_primary(stage: Stage) -> None:
    """What needs quotes gets them; what needs SMTPUTF8 is not asked where that is missing."""
    await stage.find('a "b" \\c')
    assert '"a \\"b\\" \\\\c"@example.com' in stage.primary.asked
    stage.primary.smtputf8 = False
    assert await stage.find("jürgen") is UNDECIDED
    assert not any("jürgen" in address for address in stage.primary.asked)


async def test_a_primary_that_takes_everybody_says_nothing(stage: Stage) -> None:
    """The random address is taken: no yes counts, and none is remembered."""
    stage.primary.users = None
    assert await stage.find("alice") is UNDECIDED
    assert stage.cache.entries == {}
    (condition,) = stage.checks.conditions()
    assert condition.kind == "live-check"
    assert "example.com" in condition.text
    stage.primary.users = {"alice"}
    stage.timers.now_us += STANDARD_US
    assert await stage.find("alice") is EXISTS
    assert stage.checks.conditions() == []


async def test_a_primary_that_lost_its_users_is_not_believed(stage: Stage) -> None:
    """It refuses whom it took, and postmaster: no address is called unknown on its word."""
    assert await stage.find("alice") is EXISTS
    stage.primary.users = set()
    stage.timers.now_us += STANDARD_US
    assert await stage.find("bob") is UNDECIDED
    stage.primary.users = {"alice", "postmaster"}
    stage.timers.now_us += STANDARD_US
    assert await stage.find("bob") is ABSENT


async def test_temporary_answers_are_asked_again_soon(stage: Stage) -> None:
    """4xx says nothing; for a minute nobody asks again."""
    stage.primary.replies["alice@example.com"] = GREYLISTED
    assert await stage.find("alice") is UNDECIDED
    assert await stage.find("alice") is UNDECIDED
    assert len(stage.primary.asked_of("alice")) == 1
    stage.timers.now_us -= 10 * UNDECIDED_US  # a clock set back puts off nobody
    assert await stage.find("alice") is UNDECIDED
    assert len(stage.primary.asked_of("alice")) == 2
    del stage.primary.replies["alice@example.com"]
    stage.timers.now_us += UNDECIDED_US
    assert await stage.find("alice") is EXISTS


async def test_same_random_address_for_a_day(stage: Stage) -> None:
    """Who greylists it knows it when we come again: the second standard tells."""
    await stage.find("alice")
    stage.timers.now_us += STANDARD_US
    await stage.find("bob")
    randoms = {a for a in stage.primary.asked if a.startswith("no-such-user-")}
    assert len(randoms) == 1


async def test_optimistic_refresh(stage: Stage) -> None:
    """After 7 days the old yes is given at once, and asked again beside it."""
    assert await stage.find("alice") is EXISTS
    stage.timers.now_us += REFRESH_US
    stage.primary.users = {"bob", "postmaster"}
    assert stage.checks.find("example.com", "alice", "") is EXISTS
    await turn_over()
    assert stage.checks.find("example.com", "alice", "") is ABSENT
    assert stage.cache.entries["alice@example.com"].exists is False


async def test_a_refresh_that_fails_keeps_the_old_answer(stage: Stage) -> None:
    """With the primary down a yes holds for 31 days, and is not asked for all the time."""
    assert await stage.find("alice") is EXISTS
    stage.timers.now_us += REFRESH_US
    stage.primary.down()
    connects = stage.primary.connects
    for _ in range(3):
        assert await stage.find("alice") is EXISTS
        await turn_over()
    assert stage.primary.connects == connects + 1
    stage.timers.now_us += POSITIVE_US - REFRESH_US
    assert await stage.find("alice") is UNDECIDED


async def test_a_no_is_short(stage: Stage) -> None:
    """A mailbox made just now is found after two hours."""
    assert await stage.find("carol") is ABSENT
    assert stage.primary.users is not None
    stage.primary.users.add("carol")
    assert await stage.find("carol") is ABSENT
    stage.timers.now_us += NEGATIVE_US
    assert await stage.find("carol") is EXISTS


async def test_nothing_is_asked_of_a_primary_that_is_down(stage: Stage) -> None:
    """Known to be down: no connection. Found to be down: none for half a minute, nobody waits."""
    stage.states.state = State.DOWN
    assert await stage.find("alice") is UNDECIDED
    assert stage.primary.connects == 0
    stage.states.state = State.UP
    stage.primary.down()
    assert await stage.find("alice") is UNDECIDED
    assert await stage.find("bob") is UNDECIDED
    assert stage.primary.connects == 1
    stage.primary.failure = None
    stage.timers.now_us += max(REST_US, UNDECIDED_US)
    assert await stage.find("alice") is EXISTS


@pytest.mark.parametrize("state", [State.CANARY, State.DRAINING])
async def test_absence_is_not_believed_of_one_that_is_coming_back(
    stage: Stage, state: State
) -> None:
    """Its yes is, its no waits until mail flows."""
    stage.states.state = state
    assert await stage.find("alice") is EXISTS
    assert await stage.find("nobody") is UNDECIDED
    stage.states.state = State.UP
    stage.timers.now_us += UNDECIDED_US
    assert await stage.find("nobody") is ABSENT


async def test_mail_refused_is_about_us(stage: Stage) -> None:
    """5xx at MAIL: nothing is said of the address, and we stop asking for a while."""
    stage.primary.mail_reply = Reply(550, "", "5.1.1 nobody by that name, we say at MAIL")
    assert await stage.find("alice") is UNDECIDED
    assert stage.primary.asked == []
    assert await stage.find("bob") is UNDECIDED
    assert stage.primary.connects == 1


async def test_one_question_for_all_who_ask(stage: Stage) -> None:
    """Ten clients at once are one RCPT; one that leaves takes nothing from the others."""
    stage.primary.gate = asyncio.Event()
    waiting = [asyncio.ensure_future(stage.begin("alice")) for _ in range(10)]
    await turn_over()
    waiting[0].cancel()
    stage.primary.gate.set()
    assert await asyncio.gather(*waiting[1:]) == [EXISTS] * 9
    assert len(stage.primary.asked_of("alice")) == 1


async def test_guessing_is_bounded_by_network(stage: Stage) -> None:
    """Misses are counted, hits are free; the network next door is not meant."""
    for number in range(5):
        assert await stage.find(f"guess{number}") is ABSENT
    assert await stage.find("guess9") is LiveFinding.GUESSED
    assert await stage.find("alice") is LiveFinding.GUESSED
    assert await stage.find("alice", "198.51.100") is EXISTS
    assert await stage.find("alice") is EXISTS  # remembered: costs nobody anything
    assert stage.budget.spent == {"192.0.2": 5, "198.51.100": 0}


async def test_too_many_questions_are_turned_away(stage: Stage) -> None:
    """Beyond the bound nobody waits and nothing is remembered."""
    stage.primary.gate = asyncio.Event()
    waiting: list[asyncio.Future[LiveFinding]] = []
    for count in (MAX_SESSIONS, MAX_WAITING):  # those under way, those that wait
        for _ in range(count):
            number = str(len(waiting))
            waiting.append(asyncio.ensure_future(stage.begin(f"user{number}", number)))
        await turn_over()
    assert await stage.find("one-more", "") is LiveFinding.BUSY
    stage.primary.gate.set()
    assert set(await asyncio.gather(*waiting)) == {ABSENT}


async def test_sessions_are_left_before_they_look_like_guessing(stage: Stage) -> None:
    """After a few refusals a fresh session goes on."""
    for number in range(3 * MAX_REFUSED):
        assert await stage.find(f"guess{number}", str(number)) is ABSENT
    assert stage.primary.connects >= 3


async def test_a_session_that_broke_while_idle_is_replaced(stage: Stage) -> None:
    """The question is asked once more over a fresh one; only when that fails too we rest."""
    assert await stage.find("alice") is EXISTS
    stage.primary.breaks = 1
    assert await stage.find("bob") is EXISTS
    assert stage.primary.connects == 2
    stage.primary.breaks = 2
    assert await stage.find("carol") is UNDECIDED


async def test_an_unreadable_cache_costs_no_mail(stage: Stage) -> None:
    """The primary is asked instead."""
    stage.cache.failure = StorageBroken("the disk is gone")
    assert await stage.find("alice") is EXISTS


async def test_reload_ends_conversations(stage: Stage) -> None:
    """Domains that are verified no longer are not covered; who waits is undecided."""
    stage.primary.gate = asyncio.Event()
    waiting = asyncio.ensure_future(stage.begin("alice"))
    await turn_over()
    stage.checks.reload({"example.org": "probe@mx2.example.net"}, FakeBudget(1))
    assert await waiting is UNDECIDED
    stage.primary.gate = None
    assert not stage.checks.covers("example.com")
    found = stage.checks.find("example.org", "alice", "")
    assert not isinstance(found, LiveFinding)
    assert await found is EXISTS
    assert stage.primary.senders[-1] == "probe@mx2.example.net"


async def test_idle_sessions_are_closed() -> None:
    """A conversation ends in good order when nobody asks."""
    timers, primary = Timers(), AskedPrimary("alice")
    primary.replies["postmaster@example.com"] = TAKEN
    asked = LivePrimary(
        primary,
        primary.find_targets,
        clock_us=timers.clock_us,
        random_local=lambda: "random",
        idle_seconds=0.01,
    )
    for connects in (1, 2):
        answer = asked.ask("example.com", "alice@example.com", "")
        assert answer is not None
        assert await answer is EXISTS
        assert primary.connects == connects
        async with asyncio.timeout(20):
            while primary.open_sessions:
                await asyncio.sleep(0.005)
    await asked.close()


async def test_entries_of_another_start_age_alike() -> None:
    """What the cache gives is judged by its age, not by when it was read."""
    stage = Stage()
    now_us = stage.timers.now_us
    stage.cache.entries = {
        "alice@example.com": Entry(True, now_us - POSITIVE_US),
        "bob@example.com": Entry(True, now_us - REFRESH_US),
        "carol@example.com": Entry(False, now_us - NEGATIVE_US + 1),
    }
    stage.states.state = State.DOWN
    assert await stage.find("alice") is UNDECIDED
    assert await stage.find("bob") is EXISTS
    assert await stage.find("carol") is ABSENT
    stage.states.state = State.UP
    assert await stage.find("bob") is EXISTS
    await turn_over()
    assert stage.primary.asked_of("bob") == ["bob@example.com"]
    await stage.checks.close()
