"""The table of next-hop states, the surge guard and the pace: by eye and by arithmetic."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.domain import drain
from posthouse.domain.drain import (
    FLOWING,
    MOVES,
    Event,
    Health,
    State,
    SurgeGuard,
    after_restart,
    move,
)
from posthouse.domain.pace import MAX_PAUSE_US, NEVER_US, Pace

SECOND = 1_000_000
LETTERS = {
    "c": State.CANARY,
    "d": State.DRAINING,
    "u": State.UP,
    "l": State.DOWN,
    "b": State.BLOCKED,
    "n": State.HELD,
    "s": State.SURGE_STOPPED,
    "p": State.SUSPENDED,
    "r": State.SUSPECT,
}
COLUMNS = (
    State.UP,
    State.SUSPECT,
    State.DOWN,
    State.BLOCKED,
    State.HELD,
    State.CANARY,
    State.DRAINING,
    State.SURGE_STOPPED,
    State.SUSPENDED,
)


def drawn_table() -> dict[tuple[State, Event], State]:
    """The table as it is drawn in the docstring."""
    found: dict[tuple[State, Event], State] = {}
    for event in Event:
        (line,) = re.findall(rf"^    {event.name} +(.*)$", drain.__doc__ or "", re.MULTILINE)
        cells = line.split()
        assert len(cells) == len(COLUMNS), event
        for state, cell in zip(COLUMNS, cells, strict=True):
            if cell != "-":
                found[state, event] = LETTERS[cell.strip("()")]
    return found


def test_the_drawing_is_the_table() -> None:
    """What people read in the module is what the code does."""
    assert drawn_table() == MOVES
    assert set(COLUMNS) == set(State)
    assert all(before is not after for (before, _), after in MOVES.items())


@pytest.mark.parametrize("state", State)
def test_moves_tell_since_when_and_why(state: State) -> None:
    """A new state has a new instant; a state that stays keeps its own and takes the news."""
    for event in Event:
        after = move(Health(state=state, since_us=5, why="w"), event, now_us=9, why="new")
        assert after.since_us == (5 if after.state is state else 9)
        if after.state is State.UP:
            assert after.why == ("w" if state is State.UP else "")
        elif after.state is state and state in (State.SUSPENDED, State.SURGE_STOPPED):
            assert after.why == "w"
        else:
            assert after.why == "new"


def test_same_news_changes_nothing() -> None:
    """A probe that fails as before leaves the very same value."""
    health = Health(state=State.DOWN, since_us=5, why="refused")
    assert move(health, Event.LOST, now_us=9, why="refused") is health


def test_rounds_count_canaries_and_resuming_unguarded_lasts_until_up() -> None:
    """Each canary begins a round; a guard taken off comes back when nothing waits."""
    health = Health(state=State.SUSPECT, guarded=False)
    for event, state in (
        (Event.GREETED, State.CANARY),
        (Event.PROVEN, State.DRAINING),
        (Event.LOST, State.DOWN),
        (Event.GREETED, State.CANARY),
    ):
        health = move(health, event, now_us=1, why="")
        assert (health.state, health.guarded) == (state, False)
    assert health.round == 2
    assert move(health, Event.DRAINED, now_us=1, why="").guarded


def test_restart_is_cautious() -> None:
    """Nothing flows after a restart before a probe; what a person must see stays."""
    for state in State:
        after = after_restart(state)
        assert after not in FLOWING
        assert after is not State.CANARY
        if state in (State.SURGE_STOPPED, State.SUSPENDED, State.BLOCKED, State.DOWN, State.HELD):
            assert after is state


# --------------------------------------------------------------------------- the guard


def test_guard_wants_both_share_and_number() -> None:
    """Five refusals of the first five stop; four never do; one in five is not too many."""
    guard = SurgeGuard()
    assert [guard.note(True) for _ in range(5)] == [False] * 4 + [True]
    guard.clear()
    assert not any(guard.note(n % 5 == 4) for n in range(1000))
    assert guard.refused == 10
    assert len(guard) == 50


def test_guard_forgets_what_left_the_window() -> None:
    """Refusals of long ago do not count."""
    guard = SurgeGuard()
    for _ in range(4):
        assert not guard.note(True)
    for _ in range(50):
        guard.note(False)
    assert guard.refused == 0


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 60), st.integers(1, 20))
def test_guard_is_the_definition(replies: list[bool], window: int, least: int) -> None:
    """The running count says what counting the window anew would say."""
    guard = SurgeGuard(share=0.2, window=window, least=least)
    for end, refused in enumerate(replies, start=1):
        last = replies[max(0, end - window) : end]
        expected = refused and sum(last) >= least and sum(last) > 0.2 * len(last)
        assert guard.note(refused) is expected


# --------------------------------------------------------------------------- the pace


def test_slow_start_grows_with_success() -> None:
    """From one session to the limit, one more for as many deliveries as there are sessions."""
    pace = Pace(limit=20)
    deliveries = 0
    while not pace.full:
        pace.delivered()
        deliveries += 1
    assert deliveries == sum(range(1, 20))


def test_slower_halves_and_pauses_longer_each_time() -> None:
    """Pauses double to a minute without a delivery between; those heard together count once."""
    pace = Pace(limit=16, sessions=16)
    now_us = 0
    pauses = []
    for _ in range(8):
        pauses.append(pace.slower(now_us))
        assert pace.slower(now_us + 1) == pauses[-1] - 1
        assert pace.take(now_us) == pauses[-1]
        now_us += pauses[-1]
        assert pace.take(now_us) == 0
    assert [p // SECOND for p in pauses] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert pauses[-1] == MAX_PAUSE_US
    assert pace.sessions == 1
    pace.delivered()
    assert pace.slower(now_us) == SECOND


def test_rate_is_kept() -> None:
    """Over any time no more leaves than the rate and one second's worth."""
    pace = Pace(limit=5, per_second=10)
    now_us, sent = 0, 0
    while now_us < 20 * SECOND:
        wait_us = pace.take(now_us)
        if wait_us:
            now_us += wait_us
        else:
            sent += 1
    assert 200 <= sent <= 211


def test_a_slow_rate_sends_too() -> None:
    """Less than one a second is a rate as well."""
    pace = Pace(limit=1, per_second=0.5)
    assert pace.take(0) == 0
    assert pace.take(0) == pytest.approx(2 * SECOND, abs=2)
    assert pace.take(2 * SECOND + 1) == 0


def test_canary_is_one() -> None:
    """One message until it is known what became of it; what was not sent is given back."""
    pace = Pace(limit=5, allowance=1)
    assert pace.take(0) == 0
    assert pace.take(0) == NEVER_US
    pace.give_back()
    assert pace.take(0) == 0
    assert not pace.full
