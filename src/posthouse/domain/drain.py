"""The state of one next hop: one for the whole node, however many workers there are.

UP             mail flows, or would if there were any
DOWN           it does not answer, answers 4xx before taking mail, or DNS is unwell
SUSPECT        nothing is known for certain: after a start, or after the operator resumed
CANARY         it answers a probe; one message of the whole node is on its way to prove it
DRAINING       the canary came home; what waited goes, slowly at first, watched by the guard
SURGE_STOPPED  too much of the drain was refused for good: a person has to look
BLOCKED        it refuses us for good (5xx) at connect, EHLO, STARTTLS or MAIL, or refuses
               every address that is known to exist
SUSPENDED      by the operator
HELD           DNS leaves nobody better than ourselves to send to

Mail is sent in UP, DRAINING, by one worker in CANARY, and in SUSPECT over the
sessions that are open. From every state but SUSPENDED a probe runs each
`probe_interval` (give or take a tenth, so that many nodes do not knock
together) while mail waits untouched: an outage costs it no attempt.

Moves (letters are cited by code, tests and docs)::

    event     UP    SUSPECT  DOWN   BLOCKED  HELD   CANARY  DRAINING  SURGE-ST.  SUSPENDED
    GREETED   -     (c)      (c)    (c)      (c)    -       -         -          -
    PROVEN    -     (u)      -      -        -      (d)     -         -          -
    DRAINED   -     -        -      -        -      (u)     (u)       -          -
    LOST      (l)   (l)      -      (l)      (l)    (l)     (l)       -          -
    REFUSED   (b)   (b)      (b)    -        (b)    (b)     (b)       -          -
    NO_WAY    (n)   (n)      (n)    (n)      -      (n)     (n)       -          -
    SURGE     -     -        -      -        -      (s)     (s)       -          -
    PAUSE     (p)   (p)      (p)    (p)      (p)    (p)     (p)       (p)        -
    RESUME    -     -        -      -        -      -       -         (r)        (r)

    (c) to CANARY: a probe went through
    (d) to DRAINING: the canary was delivered, or three were put off as greylisting does
    (u) to UP: nothing waits any more; from SUSPECT: a session that is open delivered
    (l) to DOWN: no connection, time-out, 4xx greeting or EHLO, TLS failure, DNS trouble,
        or sessions that keep breaking
    (b) to BLOCKED: 5xx that is about us, not about a message or a user: alert
    (n) to HELD: a finding of `mxplan`: alert
    (s) to SURGE-STOPPED: see `SurgeGuard`: alert; only the operator leads out
    (p) (r) to SUSPENDED, and from it and from SURGE-STOPPED to SUSPECT: the operator
    -   the state stays, only the reason is brought up to date

After a restart the state is the cautious one (`after_restart`): what flowed is
SUSPECT and begins with a probe and a canary; what a person must see stays.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import Final

import msgspec


class State(enum.StrEnum):
    """See the module. The values are shown by `status` and in logs."""

    UP = "up"
    DOWN = "down"
    SUSPECT = "suspect"
    CANARY = "canary"
    DRAINING = "draining"
    SURGE_STOPPED = "surge-stopped"
    BLOCKED = "blocked"
    SUSPENDED = "suspended"
    HELD = "held by DNS"


class Event(enum.StrEnum):
    """What was learned about a next hop, or what the operator said."""

    GREETED = "greeted"
    PROVEN = "proven"
    DRAINED = "drained"
    LOST = "lost"
    REFUSED = "refused"
    NO_WAY = "no way"
    SURGE = "surge"
    PAUSE = "pause"
    RESUME = "resume"


def _moves() -> dict[tuple[State, Event], State]:
    waiting = (State.DOWN, State.BLOCKED, State.HELD, State.SUSPECT)
    sending = (State.UP, State.CANARY, State.DRAINING)
    moves = {(state, Event.GREETED): State.CANARY for state in waiting}
    moves[State.SUSPECT, Event.PROVEN] = State.UP
    moves[State.CANARY, Event.PROVEN] = State.DRAINING
    for state in (State.CANARY, State.DRAINING):
        moves[state, Event.DRAINED] = State.UP
        moves[state, Event.SURGE] = State.SURGE_STOPPED
    for event, after in (
        (Event.LOST, State.DOWN),
        (Event.REFUSED, State.BLOCKED),
        (Event.NO_WAY, State.HELD),
    ):
        moves |= {(state, event): after for state in (*waiting, *sending) if state is not after}
    for state in State:
        if state is not State.SUSPENDED:
            moves[state, Event.PAUSE] = State.SUSPENDED
    moves[State.SUSPENDED, Event.RESUME] = State.SUSPECT
    moves[State.SURGE_STOPPED, Event.RESUME] = State.SUSPECT
    return moves


MOVES: Final = _moves()
"""What is not in the table keeps its state."""

FLOWING: Final = frozenset({State.UP, State.DRAINING})
"""Every worker may send."""

PROBED: Final = frozenset(State) - {*FLOWING, State.CANARY, State.SUSPENDED}
"""A probe runs each interval."""

_STICKY: Final = frozenset(
    {State.DOWN, State.BLOCKED, State.HELD, State.SURGE_STOPPED, State.SUSPENDED}
)


def after_restart(state: State) -> State:
    """The cautious state to begin with when this one was the last that is known."""
    return state if state in _STICKY else State.SUSPECT


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """One next hop's state. since_us: when it came into it; why: one line, "" when UP.

    round: counts how often it became CANARY; guarded: False when the operator resumed
    without the surge guard, until nothing waits any more.
    """

    state: State = State.UP
    since_us: int = 0
    why: str = ""
    round: int = 0
    guarded: bool = True

    @property
    def flowing(self) -> bool:
        """True when every worker may send."""
        return self.state in FLOWING


def move(health: Health, event: Event, *, now_us: int, why: str) -> Health:
    """Apply one event. A state that stays keeps its `since_us` and takes the new reason.

    SUSPENDED and SURGE_STOPPED keep their reason: it is a person's.
    """
    state = MOVES.get((health.state, event), health.state)
    if state is health.state:
        if why == health.why or state in (State.UP, State.SUSPENDED, State.SURGE_STOPPED):
            return health
        return msgspec.structs.replace(health, why=why)
    return Health(
        state=state,
        since_us=now_us,
        why="" if state is State.UP else why,
        round=health.round + (state is State.CANARY),
        guarded=health.guarded or state is State.UP,
    )


class SurgeGuard:
    """Tells when too many replies of a drain are refusals for good.

    share: of the last `window` replies, 0..1; `least`: refusals there must be at least.
    One reply costs a step, whatever the window.
    """

    __slots__ = ("_last", "_share", "least", "refused", "window")

    def __init__(self, *, share: float = 0.2, window: int = 50, least: int = 5) -> None:
        self._share = share
        self.window = window
        self.least = least
        self._last: deque[bool] = deque()
        self.refused = 0

    def __len__(self) -> int:
        """Replies looked at."""
        return len(self._last)

    def note(self, refused: bool) -> bool:
        """Take one reply; True when the drain must stop."""
        last = self._last
        if len(last) >= self.window:
            self.refused -= last.popleft()
        last.append(refused)
        self.refused += refused
        return refused and self.refused >= self.least and self.refused > self._share * len(last)

    def clear(self) -> None:
        """Begin anew."""
        self._last.clear()
        self.refused = 0
