"""The life of one agreement at the forwarder (PROTOCOL.md §3).

An agreement is keyed on the canonical text whose digest hit, so `alice+x@` and
`alice@` are one. Rules and catch_all make none, a trap never does: there is no
text to key it on, or nobody behind it.

SEEN       a message for an address that a roster vouched got its 250
REQUESTED  asked for, no final answer; also one that was granted but not completed
AGREED     granted and completed: its password is ours
REFUSED    the granter will not have an agreement; asked again after seven days
BLOCKED    its owner asked that we answer 551; `former` is what it goes back to
ENDED      the mailbox is gone; see `End` for what lifts it

An address of a domain *without any roster* starts at SEEN too, when somebody
wants to write to it. Nothing vouches for it (`serial` 0), so it is deferred
until AGREED.

Moves (letters are cited by code, tests and docs)::

    event       none      SEEN       REQUESTED  AGREED     REFUSED    BLOCKED   ENDED
    SIGHTED     (s) SEEN  -          -          -          -          -         -
    ASKED       .         (q) REQ.   -          -          -          *         -
    GRANTED     .         (q) REQ.   -          -          (g) REQ.   *         -
    COMPLETED   .         .          (c) AGR.   -          (c) AGR.   *         -
    REFUSED     .         (r) REF.   (r) REF.   (r) REF.   -          *         -
    LOST        .         -          -          (l) REQ.   -          *         -
    DENIED      .         (e) END    (e) END    (e) END    (e) END    (e) END   -
    DISPROVEN   .         (d) END    (d) END    (d) END    (d) END    -         -
    WITHDRAWN   .         (w) END    (w) END    (w) END    (w) END    (w) END   -
    RESTORED    .         -          -          -          -          -         (v) SEEN
    BLOCK       .         (b) BLO.   (b) BLO.   (b) BLO.   (b) BLO.   -         -
    UNBLOCK     .         -          -          -          -          (u) former -

    (s) the first message, or, without a roster, the first attempt
    (q) the recipe is about to be sent: written down before a byte goes out
    (g) a refused one was asked for again, and granted: it can be completed now
    (c) our new password is the one in force at the granter
    (r) the granter says no: alert, asked again after seven days
    (l) the granter does not know it any more, or every password of ours is
        wrong: negotiated afresh, mail flows on meanwhile
    (e) the granter says `no_such_user` and no fresh roster says otherwise
    (d) a fresh roster, later than the one that vouched, proves absence
    (w) the granter ended it: the mailbox was deleted
    (v) a later roster vouches again (`lifts`); the recipe is made anew
    (b) asked for by the owner through the granter, and the domain policy allows it
    (u) taken back, or lapsed because the domain policy turned to "forbidden"
    *   the negotiation goes on behind the block: the event moves `former`
    -   nothing changes     .   cannot happen; nothing changes
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec


class State(enum.IntEnum):
    """See the module's table. The numbers are stored and must not change."""

    SEEN = 1
    REQUESTED = 2
    AGREED = 3
    REFUSED = 4
    BLOCKED = 5
    ENDED = 6


class Event(enum.Enum):
    """What was learned about one agreement."""

    SIGHTED = "sighted"
    ASKED = "asked"
    GRANTED = "granted"
    COMPLETED = "completed"
    REFUSED = "refused"
    LOST = "lost"
    DENIED = "denied"
    DISPROVEN = "disproven"
    WITHDRAWN = "withdrawn"
    RESTORED = "restored"
    BLOCK = "block"
    UNBLOCK = "unblock"


MOVES: Final[dict[tuple[State | None, Event], State]] = {
    (None, Event.SIGHTED): State.SEEN,  # (s)
    (State.SEEN, Event.ASKED): State.REQUESTED,  # (q)
    (State.SEEN, Event.GRANTED): State.REQUESTED,  # (q)
    (State.REFUSED, Event.GRANTED): State.REQUESTED,  # (g)
    (State.REQUESTED, Event.COMPLETED): State.AGREED,  # (c)
    (State.REFUSED, Event.COMPLETED): State.AGREED,  # (c)
    (State.SEEN, Event.REFUSED): State.REFUSED,  # (r)
    (State.REQUESTED, Event.REFUSED): State.REFUSED,  # (r)
    (State.AGREED, Event.REFUSED): State.REFUSED,  # (r)
    (State.AGREED, Event.LOST): State.REQUESTED,  # (l)
    **{(state, Event.DENIED): State.ENDED for state in State if state < State.ENDED},  # (e)
    **{(state, Event.DISPROVEN): State.ENDED for state in State if state < State.BLOCKED},  # (d)
    **{(state, Event.WITHDRAWN): State.ENDED for state in State if state < State.ENDED},  # (w)
    (State.ENDED, Event.RESTORED): State.SEEN,  # (v)
    **{(state, Event.BLOCK): State.BLOCKED for state in State if state < State.BLOCKED},  # (b)
}
"""What is not in the table keeps its state; UNBLOCK is the one move that needs the past."""

# Events that move `former` while the agreement is blocked.
_BEHIND_A_BLOCK: Final = frozenset(
    {Event.ASKED, Event.GRANTED, Event.COMPLETED, Event.REFUSED, Event.LOST}
)


class Standing(msgspec.Struct, frozen=True, gc=False):
    """A state; `former` is set while it is BLOCKED, and only then."""

    state: State
    former: State | None = None

    @property
    def behind(self) -> State:
        """The state without the block."""
        return self.state if self.former is None else self.former


def decide_move(standing: Standing | None, event: Event) -> Standing | None:
    """Where an event leads. Returns `standing` itself when nothing changes."""
    if standing is None:
        return Standing(State.SEEN) if event is Event.SIGHTED else None
    if standing.former is not None:
        if event is Event.UNBLOCK:
            return Standing(standing.former)
        if event in _BEHIND_A_BLOCK:
            former = MOVES.get((standing.former, event), standing.former)
            return Standing(State.BLOCKED, former) if former is not standing.former else standing
    state = MOVES.get((standing.state, event))
    if state is None:
        return standing
    return Standing(state, standing.state if state is State.BLOCKED else None)


# --------------------------------------------------------------------------- ends


class EndedBy(enum.IntEnum):
    """Who ended an agreement. The numbers are stored and must not change."""

    ROSTER = 1  # (d)
    GRANTER = 2  # (e), (w)


class End(msgspec.Struct, frozen=True, gc=False):
    """How an agreement ended.

    serial: of the roster that proved absence, 0 for a granter's end. at_us: when.
    until_us: forgotten from then on; 0: never. Set where there is no roster to lift it.
    """

    by: EndedBy
    at_us: int
    serial: int = 0
    until_us: int = 0


class RosterFacts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an agreement needs to know of the roster in force."""

    serial: int
    issued_us: int
    fresh: bool
    blocking_allowed: bool = True


def is_forgotten(end: End, now_us: int) -> bool:
    """Tell whether an end is over by itself: its time has come, or was set by a wrong clock."""
    return end.until_us > 0 and not end.at_us <= now_us < end.until_us


def may_lift(end: End, roster: RosterFacts, *, now_us: int) -> bool:
    """Tell whether this roster, should it vouch, lifts the end (v).

    One that came from a roster is lifted by a later roster; one set by the granter only
    by a roster issued after it, since an older one cannot have known. An end that lies in
    the future was set by a wrong clock: any roster lifts it, and the granter is asked again.
    """
    if end.by is EndedBy.ROSTER:
        return roster.serial > end.serial
    return roster.issued_us > end.at_us or end.at_us > now_us


# --------------------------------------------------------------------------- the answer at RCPT


class AgreementView(msgspec.Struct, frozen=True, gc=False):
    """What the door sees of one agreement.

    serial: of the last roster that vouched for it; 0: none ever did (no roster, or none yet).
    end: set while ENDED.
    """

    standing: Standing
    serial: int = 0
    end: End | None = None


class Answer(enum.Enum):
    """What an agreement on record means for one RCPT."""

    ACCEPT = "250"
    DEFER = "451 4.7.1"
    BLOCKED = "551 5.7.1"  # or 550 5.7.1, see smtp.disclose_551
    GONE = "550 5.1.1"
    ROSTER = "the roster decides"


def needs_testimony(view: AgreementView, roster: RosterFacts, *, now_us: int) -> bool:
    """Tell whether the answer depends on what this roster says of the address.

    It does not once the roster's word has been written down (`serial`): a digest may be
    slow, and addresses with an agreement should not pay for it at every RCPT.
    """
    if view.standing.state is State.ENDED:
        return view.end is None or may_lift(view.end, roster, now_us=now_us)
    if view.standing.state is State.BLOCKED and roster.blocking_allowed:
        return False
    return roster.fresh and roster.serial > view.serial


def decide_answer(
    view: AgreementView, roster: RosterFacts | None, vouched: bool | None, *, now_us: int
) -> Answer:
    """What to say at RCPT.

    roster: the one in force, None without one. vouched: what it says of the address (digest,
    catch_all or an accepting rule: True; absent or a rejecting rule: False), None when it was
    not asked (`needs_testimony`) or could not tell. ROSTER: go on as if there were no agreement.
    """
    state = view.standing.state
    if state is State.BLOCKED:
        if roster is None or roster.blocking_allowed:
            return Answer.BLOCKED
        state = view.standing.behind  # the block has lapsed
    if state is State.ENDED:
        return _answer_ended(view.end, roster, vouched, now_us)
    later = roster is not None and roster.fresh and roster.serial > view.serial
    if later and vouched is False:
        return Answer.GONE
    if state is State.AGREED:
        return Answer.ACCEPT
    if not view.serial and vouched is not True:  # nothing but an agreement can vouch for it
        return Answer.DEFER if roster is None else Answer.ROSTER
    if state is State.REFUSED:
        return _answer_refused(roster, later=later, vouched=vouched)
    return Answer.ACCEPT


def _answer_ended(
    end: End | None, roster: RosterFacts | None, vouched: bool | None, now_us: int
) -> Answer:
    if end is None or is_forgotten(end, now_us):
        return Answer.ROSTER
    if vouched and roster is not None and may_lift(end, roster, now_us=now_us):
        return Answer.ROSTER
    return Answer.GONE


def _answer_refused(roster: RosterFacts | None, *, later: bool, vouched: bool | None) -> Answer:
    """250 while a fresh roster vouches: the one written down, or a later one that was asked."""
    if roster is None or not roster.fresh or (later and vouched is None):
        return Answer.DEFER
    return Answer.ACCEPT


# --------------------------------------------------------------------------- when to ask again

SECOND_US: Final = 1_000_000
DAY_US: Final = 86_400 * SECOND_US
# PROTOCOL.md §3: refused, "asked again after 7 days".
REFUSED_AGAIN_US: Final = 7 * DAY_US
# PROTOCOL.md §3: `no_such_user` of a domain without a roster.
DENIED_FOR_US: Final = 3_600 * SECOND_US
# Where the granter's word and the roster's differ, a roster is usually about to come.
DISPUTED_AGAIN_US: Final = 3_600 * SECOND_US
# A pending answer without `retry_after_seconds`.
PENDING_AGAIN_SECONDS: Final = 3_600
# After a request that got no answer: 5 s, doubling to 5 min. A recovery rings earlier.
NO_ANSWER_FIRST_US: Final = 5 * SECOND_US
NO_ANSWER_LAST_US: Final = 300 * SECOND_US
# Retry-After is honoured up to an hour (PROTOCOL.md §0).
RETRY_AFTER_MAX_US: Final = 3_600 * SECOND_US


def pending_delay_us(retry_after_seconds: int | None, tries: int) -> int:
    """Until a pending request is asked again: as told, doubling to a day.

    tries: pending answers before this one, >= 0.
    """
    first = PENDING_AGAIN_SECONDS if retry_after_seconds is None else max(1, retry_after_seconds)
    return min(first * SECOND_US << min(tries, 20), DAY_US)


def disputed_delay_us(tries: int) -> int:
    """Until an address that a fresh roster vouches for and the granter denies is asked again."""
    return min(DISPUTED_AGAIN_US << min(tries, 20), DAY_US)


def no_answer_delay_us(failures: int, retry_after_seconds: int | None = None) -> int:
    """Until a granter that gave no answer is tried again. failures: before this one, >= 0."""
    if retry_after_seconds is not None:
        return min(max(1, retry_after_seconds) * SECOND_US, RETRY_AFTER_MAX_US)
    return min(NO_ANSWER_FIRST_US << min(failures, 20), NO_ANSWER_LAST_US)
