"""The table of agreement states, what lifts an end, what RCPT hears, when to ask again."""

from __future__ import annotations

import itertools

import pytest

from posthouse.domain.agreement import (
    DAY_US,
    MOVES,
    SECOND_US,
    AgreementView,
    Answer,
    End,
    EndedBy,
    Event,
    RosterFacts,
    Standing,
    State,
    decide_answer,
    decide_move,
    disputed_delay_us,
    may_lift,
    needs_testimony,
    no_answer_delay_us,
    pending_delay_us,
)

S, Q, A, R, B, E = State
# The module's table, row by row: SEEN REQUESTED AGREED REFUSED ENDED ("BLOCKED" is below).
ROWS: dict[Event, tuple[State, State, State, State, State]] = {
    Event.SIGHTED: (S, Q, A, R, E),
    Event.ASKED: (Q, Q, A, R, E),
    Event.GRANTED: (Q, Q, A, Q, E),
    Event.COMPLETED: (S, A, A, A, E),
    Event.REFUSED: (R, R, R, R, E),
    Event.LOST: (S, Q, Q, R, E),
    Event.DENIED: (E, E, E, E, E),
    Event.DISPROVEN: (E, E, E, E, E),
    Event.WITHDRAWN: (E, E, E, E, E),
    Event.RESTORED: (S, Q, A, R, S),
    Event.BLOCK: (B, B, B, B, E),
    Event.UNBLOCK: (S, Q, A, R, E),
}


@pytest.mark.parametrize("event", Event)
def test_table(event: Event) -> None:
    """Every event has its state from every unblocked state."""
    for state, expected in zip((S, Q, A, R, E), ROWS[event], strict=True):
        before = Standing(state)
        after = decide_move(before, event)
        assert after is not None
        assert after.state is expected, state
        assert after.former is (state if expected is B else None)
        assert (after is before) == (expected is state)


NOW_US = 200


def test_table_has_no_idle_rows() -> None:
    """A row that keeps the state is left out of the table."""
    assert all(before is not after for (before, _), after in MOVES.items())


def test_only_a_sighting_begins() -> None:
    """Nothing but a message brings an agreement into being."""
    for event in Event:
        after = decide_move(None, event)
        assert after == (Standing(S) if event is Event.SIGHTED else None)


@pytest.mark.parametrize("former", [S, Q, A, R])
def test_blocked_returns_to_the_former_state(former: State) -> None:
    """Unblocking gives back the state of before, and what was negotiated meanwhile counts."""
    blocked = decide_move(Standing(former), Event.BLOCK)
    assert blocked == Standing(B, former)
    assert decide_move(blocked, Event.UNBLOCK) == Standing(former)
    for event in Event:
        after = decide_move(blocked, event)
        assert after is not None
        if event in (Event.DENIED, Event.WITHDRAWN):
            assert after == Standing(E)
        elif event is Event.UNBLOCK:
            assert after == Standing(former)
        elif event is Event.DISPROVEN:
            assert after is blocked
        else:
            behind = decide_move(Standing(former), event)
            assert behind is not None
            still = former if event in (Event.BLOCK, Event.RESTORED) else behind.state
            assert after == Standing(B, still)


def facts(
    serial: int, *, fresh: bool = True, blocking: bool = True, issued: int = 0
) -> RosterFacts:
    return RosterFacts(serial=serial, issued_us=issued, fresh=fresh, blocking_allowed=blocking)


STATES = (S, Q, A, R)


def answer(
    state: State, roster: RosterFacts | None, vouched: bool | None = None, *, serial: int = 5
) -> Answer:
    return decide_answer(AgreementView(Standing(state), serial), roster, vouched, now_us=0)


@pytest.mark.parametrize(
    ("state", "roster", "vouched", "expected"),
    [
        # the roster that vouched is in force: nothing is asked again
        *((state, facts(5), None, Answer.ACCEPT) for state in STATES),
        # it went stale: agreements stand; "refused" needs a fresh one
        *((state, facts(5, fresh=False), None, Answer.ACCEPT) for state in (S, Q, A)),
        (R, facts(5, fresh=False), None, Answer.DEFER),
        # a later fresh one vouches, or cannot tell just now
        *((state, facts(6), True, Answer.ACCEPT) for state in STATES),
        *((state, facts(6), None, Answer.ACCEPT) for state in (S, Q, A)),
        (R, facts(6), None, Answer.DEFER),
        # a later fresh one proves absence: the one exception to "existing recipes first"
        *((state, facts(6), False, Answer.GONE) for state in STATES),
        # a stale one proves nothing, nor does the one that vouched
        *((state, facts(6, fresh=False), False, Answer.ACCEPT) for state in (S, Q, A)),
        *((state, facts(5), False, Answer.ACCEPT) for state in STATES),
        # the roster is gone
        *((state, None, None, Answer.ACCEPT) for state in (S, Q, A)),
        (R, None, None, Answer.DEFER),
    ],
)
def test_answers_of_vouched(
    state: State, roster: RosterFacts | None, vouched: bool | None, expected: Answer
) -> None:
    """RCPT hears what the table of §3 says, and a fresh later roster proves absence."""
    assert answer(state, roster, vouched) is expected


@pytest.mark.parametrize("state", [S, Q, R])
def test_without_a_roster_deferred_until_agreed(state: State) -> None:
    """Where nothing ever vouched, 451 until agreed; a roster that turns up decides."""
    assert answer(state, None, serial=0) is Answer.DEFER
    assert answer(A, None, serial=0) is Answer.ACCEPT
    assert answer(state, facts(6), False, serial=0) is Answer.GONE
    assert answer(state, facts(6), True, serial=0) is Answer.ACCEPT
    assert answer(state, facts(6, fresh=False), serial=0) is Answer.ROSTER
    assert answer(state, facts(6), None, serial=0) is Answer.ROSTER


@pytest.mark.parametrize("former", STATES)
def test_answers_while_blocked(former: State) -> None:
    """A block holds whatever the roster says of the address, and lapses with the policy."""
    view = AgreementView(Standing(B, former), 5)
    for roster in (None, facts(5), facts(6, fresh=False), facts(6)):
        for vouched in (None, True, False):
            assert decide_answer(view, roster, vouched, now_us=0) is Answer.BLOCKED
    lapsed = facts(5, blocking=False)
    assert decide_answer(view, lapsed, None, now_us=0) is Answer.ACCEPT
    assert decide_answer(view, facts(6, blocking=False), False, now_us=0) is Answer.GONE


def test_end_of_a_roster_is_lifted_by_a_later_one() -> None:
    """A serial lifts it, whatever the dates."""
    end = End(EndedBy.ROSTER, at_us=100, serial=7)
    assert [may_lift(end, facts(serial, issued=0), now_us=NOW_US) for serial in (6, 7, 8)] == [
        False,
        False,
        True,
    ]
    view = AgreementView(Standing(E), 5, end)
    assert decide_answer(view, facts(8), True, now_us=NOW_US) is Answer.ROSTER
    assert decide_answer(view, facts(8, fresh=False), True, now_us=NOW_US) is Answer.ROSTER
    assert decide_answer(view, facts(7), True, now_us=NOW_US) is Answer.GONE
    assert decide_answer(view, facts(8), False, now_us=NOW_US) is Answer.GONE
    assert decide_answer(view, facts(8), None, now_us=NOW_US) is Answer.GONE
    assert decide_answer(view, None, None, now_us=NOW_US) is Answer.GONE


def test_end_of_the_granter_is_lifted_by_a_roster_issued_after_it() -> None:
    """A roster of before the end cannot know of it, however late it is read."""
    end = End(EndedBy.GRANTER, at_us=100)
    assert [may_lift(end, facts(9, issued=at), now_us=NOW_US) for at in (99, 100, 101)] == [
        False,
        False,
        True,
    ]
    view = AgreementView(Standing(E), 5, end)
    assert decide_answer(view, facts(9, issued=100), True, now_us=NOW_US) is Answer.GONE
    assert decide_answer(view, facts(9, issued=101), True, now_us=NOW_US) is Answer.ROSTER


def test_denied_without_a_roster_is_forgotten_in_time() -> None:
    """`no_such_user` is remembered until its hour is over."""
    view = AgreementView(Standing(E), 0, End(EndedBy.GRANTER, at_us=0, until_us=3600))
    assert decide_answer(view, None, None, now_us=3599) is Answer.GONE
    assert decide_answer(view, None, None, now_us=3600) is Answer.ROSTER


def test_testimony_is_asked_only_where_it_counts() -> None:
    """Whatever the roster says does not change the answer where it is not asked."""
    ends = (End(EndedBy.ROSTER, 50, 5), End(EndedBy.GRANTER, 50), None)
    views = [
        *(AgreementView(Standing(state), serial) for state in STATES for serial in (0, 5)),
        *(AgreementView(Standing(B, state), 5) for state in STATES),
        *(AgreementView(Standing(E), 5, end) for end in ends),
    ]
    rosters = [
        facts(serial, fresh=fresh, blocking=blocking, issued=issued)
        for serial, fresh, blocking, issued in itertools.product(
            (4, 5, 6), (True, False), (True, False), (40, 60)
        )
    ]
    for view, roster in itertools.product(views, rosters):
        if needs_testimony(view, roster, now_us=NOW_US) or not view.serial:
            continue
        told = {decide_answer(view, roster, v, now_us=NOW_US) for v in (None, True, False)}
        assert len(told) == 1, (view, roster)


def test_delays() -> None:
    """Pending doubles to a day, disputes too, silence to five minutes; Retry-After counts."""
    hours = [pending_delay_us(3600, tries) // (3600 * SECOND_US) for tries in range(7)]
    assert hours == [1, 2, 4, 8, 16, 24, 24]
    assert pending_delay_us(None, 0) == 3600 * SECOND_US
    assert pending_delay_us(0, 0) == SECOND_US
    assert pending_delay_us(10**9, 10**6) == DAY_US
    assert disputed_delay_us(0) == 3600 * SECOND_US
    assert disputed_delay_us(99) == DAY_US
    assert [no_answer_delay_us(n) // SECOND_US for n in (0, 1, 5, 6, 99)] == [5, 10, 160, 300, 300]
    assert no_answer_delay_us(3, 7) == 7 * SECOND_US
    assert no_answer_delay_us(0, 10**6) == 3600 * SECOND_US


def test_an_end_from_the_future_keeps_nobody_out() -> None:
    """It was set by a clock that was ahead: it is over by itself, or any roster lifts it."""
    denied = End(EndedBy.GRANTER, at_us=1_000, until_us=4_600)
    view = AgreementView(Standing(E), 0, denied)
    told = [decide_answer(view, None, None, now_us=at) for at in (999, 1_000, 4_599, 4_600)]
    assert told == [Answer.ROSTER, Answer.GONE, Answer.GONE, Answer.ROSTER]
    end = End(EndedBy.GRANTER, at_us=1_000)
    view = AgreementView(Standing(E), 5, end)
    assert needs_testimony(view, facts(5, issued=90), now_us=999)
    assert decide_answer(view, facts(5, issued=90), True, now_us=999) is Answer.ROSTER
    assert decide_answer(view, facts(5, issued=90), False, now_us=999) is Answer.GONE
    assert decide_answer(view, facts(5, issued=90), True, now_us=1_000) is Answer.GONE
