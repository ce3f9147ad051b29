"""What an agreement becomes at the forwarder: pure steps on one `ForwarderEntry`.

The handshake, and what is written down before each message goes out, so that a
crash between any two of them is mended by going on from what is on record::

    sighting                  SEEN
    ├─ write: recipe_id, recipe_key            `prepare_request`
    ├─ POST v1/agreements                      a repeat gives the same agreement
    ├─ write: one-time password                `settle_result`
    ├─ write: new_password                     `prepare_completion`
    ├─ POST completion_url                     a repeat with the same new_password: 204
    └─ write: password in force                `settle_completion`      AGREED

When the granter knows less than we (its book is an older copy), a 404 sends us
back to the request with the same recipe_id; when we know less (ours is), a
grant comes without a password, we try those we have, and when none is good
the recipe is made anew.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final

import msgspec

from posthouse.domain.agreement import (
    DAY_US,
    DENIED_FOR_US,
    REFUSED_AGAIN_US,
    End,
    EndedBy,
    Event,
    RosterFacts,
    Standing,
    State,
    decide_move,
    disputed_delay_us,
    is_forgotten,
    may_lift,
    pending_delay_us,
)
from posthouse.mail.recipes import Recipe, RecipeResult, Status
from posthouse.ports_agreements import ForwarderEntry, Sighting

MAX_SPELLINGS: Final = 50
MAX_NOTE: Final = 300

_NO_SECRETS: Final[dict[str, Any]] = {
    "agreement_id": "",
    "completion_url": "",
    "password": "",
    "former_password": "",
    "one_time_password": "",
    "new_password": "",
    "login_refused": False,
}


class Step(enum.Enum):
    """What is to be done next about an entry that is due."""

    NOTHING = "nothing"
    ASK = "ask"
    COMPLETE = "complete"


def plan_step(entry: ForwarderEntry) -> Step:
    """See the module. A blocked agreement is negotiated on behind its block."""
    if entry.standing.state is State.ENDED:
        return Step.NOTHING
    if entry.completion_url and (entry.one_time_password or entry.login_refused):
        return Step.COMPLETE
    return Step.NOTHING if entry.standing.behind is State.AGREED else Step.ASK


# --------------------------------------------------------------------------- sightings


def take_sighting(sighting: Sighting, known: ForwarderEntry | None, now_us: int) -> ForwarderEntry:
    """Count a message, or begin an agreement (s), or begin it again after its end (v)."""
    entry = known
    if entry is None:
        entry = ForwarderEntry(
            canonical=sighting.canonical,
            domain=sighting.domain,
            address=sighting.address,
            standing=Standing(State.SEEN),
            seen_us=sighting.at_us,
            changed_us=now_us,
            due_us=now_us,
        )
    elif entry.standing.state is State.ENDED and _is_over(entry.end, sighting, now_us):
        entry = restore(entry, now_us)
    spellings = entry.spellings
    if sighting.address not in spellings and len(spellings) < MAX_SPELLINGS:
        spellings = (*spellings, sighting.address)
    return msgspec.structs.replace(
        entry,
        # The roster that lifts an end has yet to be asked about it (`hear_roster`).
        serial=max(entry.serial, 0 if entry.end is not None else sighting.serial),
        messages=entry.messages + sighting.messages,
        bytes=entry.bytes + sighting.bytes,
        last_message_us=(
            max(entry.last_message_us, sighting.at_us)
            if sighting.messages
            else entry.last_message_us
        ),
        spellings=spellings,
    )


def _is_over(end: End | None, sighting: Sighting, now_us: int) -> bool:
    """The door took a message (or would negotiate): the end was lifted, or is forgotten."""
    if end is None or is_forgotten(end, now_us):
        return True
    return end.by is EndedBy.ROSTER and sighting.serial > end.serial


def restore(entry: ForwarderEntry, now_us: int) -> ForwarderEntry:
    """Begin again after an end, with a recipe of its own (v)."""
    return msgspec.structs.replace(
        entry,
        standing=decide_move(entry.standing, Event.RESTORED) or entry.standing,
        end=None,
        recipe_id="",
        recipe_key="",
        due_us=now_us,
        changed_us=now_us,
        tries=0,
        note="",
        **_NO_SECRETS,
    )


def refuse_login(entry: ForwarderEntry, why: str, now_us: int) -> ForwarderEntry:
    """A next hop refused the password: it is to be set anew."""
    return msgspec.structs.replace(
        entry, login_refused=True, due_us=now_us, changed_us=now_us, tries=0, note=_short(why)
    )


# --------------------------------------------------------------------------- the request


def prepare_request(
    entry: ForwarderEntry,
    *,
    granter: str,
    forwarder_id: str,
    mint: Callable[[int], str],
    now_us: int,
) -> ForwarderEntry:
    """Write down the recipe that is about to be sent (q); another granter gets one of its own."""
    fresh: dict[str, Any] = {}
    if not entry.recipe_id or (entry.granter, entry.forwarder_id) != (granter, forwarder_id):
        fresh = {
            "recipe_id": f"r-{mint(16)}",
            "recipe_key": mint(32),
            "granter": granter,
            "forwarder_id": forwarder_id,
            **_NO_SECRETS,
        }
    return msgspec.structs.replace(
        entry,
        standing=decide_move(entry.standing, Event.ASKED) or entry.standing,
        asked_us=now_us,
        **fresh,
    )


def make_recipe(entry: ForwarderEntry) -> Recipe:
    """What is sent for an entry."""
    return Recipe(
        recipe_id=entry.recipe_id,
        recipe_key=entry.recipe_key,
        name=f"Backup MX {entry.forwarder_id} for {entry.canonical}"[:1000],
        address=entry.address,
        seen_us=entry.seen_us,
    )


def settle_result(
    entry: ForwarderEntry,
    result: RecipeResult,
    *,
    roster: RosterFacts | None,
    vouched: bool | None,
    now_us: int,
) -> ForwarderEntry:
    """Take the granter's answer. vouched: what the roster in force says, for `no_such_user`."""
    if entry.recipe_id != result.recipe_id or entry.standing.state is State.ENDED:
        return entry  # it was made anew, or ended, meanwhile
    match result.status:
        case Status.GRANTED:
            return _settle_grant(entry, result, now_us)
        case Status.PENDING:
            return msgspec.structs.replace(
                entry,
                agreement_id=result.agreement_id,
                due_us=now_us + pending_delay_us(result.retry_after_seconds, entry.tries),
                tries=entry.tries + 1,
                changed_us=now_us,
                note="the granter has not decided yet",
            )
        case Status.REFUSED:
            return msgspec.structs.replace(
                entry,
                standing=decide_move(entry.standing, Event.REFUSED) or entry.standing,
                due_us=now_us + REFUSED_AGAIN_US,
                tries=0,
                changed_us=now_us,
                note="refused by the granter",
            )
        case Status.NO_SUCH_USER:
            return _settle_denial(entry, roster=roster, vouched=vouched, now_us=now_us)


def _settle_grant(entry: ForwarderEntry, result: RecipeResult, now_us: int) -> ForwarderEntry:
    members: dict[str, Any] = {
        "standing": decide_move(entry.standing, Event.GRANTED) or entry.standing,
        "agreement_id": result.agreement_id,
        "user_id": result.user_id,
        "due_us": now_us,
        "changed_us": now_us,
        "note": "",
    }
    if result.password:
        members |= {
            "completion_url": result.completion_url,
            "one_time_password": result.password,
            "new_password": "",
        }
    elif entry.completion_url and (entry.new_password or entry.password):
        members["login_refused"] = True  # completed before, so one of ours should be good
    else:  # completed by a book of ours that is lost
        return remake(entry, "the granter has an agreement whose password is lost here", now_us)
    return msgspec.structs.replace(entry, **members)


def remake(entry: ForwarderEntry, why: str, now_us: int) -> ForwarderEntry:
    """Give up the recipe for a fresh one; the longer it goes on, the slower."""
    return msgspec.structs.replace(
        entry,
        standing=decide_move(entry.standing, Event.LOST) or entry.standing,
        recipe_id="",
        recipe_key="",
        due_us=now_us + _again_us(entry.tries),
        tries=entry.tries + 1,
        changed_us=now_us,
        note=_short(why),
        **_NO_SECRETS,
    )


def _again_us(tries: int) -> int:
    """At once the first two times, then a minute, doubling to a day."""
    return 0 if tries < 2 else min(60_000_000 << min(tries - 2, 20), DAY_US)


def _settle_denial(
    entry: ForwarderEntry, *, roster: RosterFacts | None, vouched: bool | None, now_us: int
) -> ForwarderEntry:
    if roster is not None and roster.fresh and vouched:
        return msgspec.structs.replace(
            entry,
            due_us=now_us + disputed_delay_us(entry.tries),
            tries=entry.tries + 1,
            changed_us=now_us,
            note="the granter knows no such user, but its roster does",
        )
    until_us = 0 if roster is not None else now_us + DENIED_FOR_US
    return msgspec.structs.replace(
        entry,
        standing=decide_move(entry.standing, Event.DENIED) or entry.standing,
        end=End(EndedBy.GRANTER, now_us, until_us=until_us),
        due_us=now_us,  # its queued mail is to be held
        tries=0,
        changed_us=now_us,
        note="the granter knows no such user",
        **_NO_SECRETS,
    )


# --------------------------------------------------------------------------- completion


def prepare_completion(entry: ForwarderEntry, mint: Callable[[int], str]) -> ForwarderEntry:
    """Write down the password that is about to be set; one that is written down is kept."""
    if entry.new_password:
        return entry
    return msgspec.structs.replace(entry, new_password=mint(24))


def list_candidates(entry: ForwarderEntry) -> list[str]:
    """Passwords that may be good, likeliest first; few enough that a granter locks nobody out."""
    candidates = (
        entry.one_time_password,
        entry.password,
        entry.new_password if not entry.one_time_password else "",
        entry.former_password,
    )
    return list(dict.fromkeys(filter(None, candidates)))


def settle_completion(
    entry: ForwarderEntry, *, agreement_id: str, new_password: str, now_us: int
) -> ForwarderEntry:
    """The granter confirmed: the new password is in force (c)."""
    if entry.agreement_id != agreement_id or entry.new_password != new_password:
        return entry  # a reset came in between: complete that
    return msgspec.structs.replace(
        entry,
        standing=decide_move(entry.standing, Event.COMPLETED) or entry.standing,
        password=new_password,
        former_password=entry.password,
        new_password="",
        one_time_password="",
        login_refused=False,
        agreed_us=entry.agreed_us or now_us,
        changed_us=now_us,
        due_us=None,
        tries=0,
        note="",
    )


def settle_unknown(entry: ForwarderEntry, why: str, now_us: int) -> ForwarderEntry:
    """The granter does not know the agreement any more (l): ask again for the same recipe."""
    return msgspec.structs.replace(
        entry,
        standing=decide_move(entry.standing, Event.LOST) or entry.standing,
        due_us=now_us + _again_us(entry.tries),
        tries=entry.tries + 1,
        changed_us=now_us,
        note=_short(why),
        **_NO_SECRETS,
    )


def settle_no_password(entry: ForwarderEntry, now_us: int) -> ForwarderEntry:
    """No password of ours is good (l): ask again, then with a fresh recipe.

    The passwords are kept for the case that the granter says "granted" and nothing else.
    """
    if entry.tries:
        return remake(entry, "no password of ours is good any more", now_us)
    return msgspec.structs.replace(
        entry,
        standing=decide_move(entry.standing, Event.LOST) or entry.standing,
        one_time_password="",
        login_refused=False,
        due_us=now_us,
        tries=1,
        changed_us=now_us,
        note="no password of ours is good",
    )


def postpone(entry: ForwarderEntry, delay_us: int, why: str, now_us: int) -> ForwarderEntry:
    """Try the same again later."""
    return msgspec.structs.replace(
        entry,
        due_us=now_us + delay_us,
        tries=entry.tries + 1,
        changed_us=now_us,
        note=_short(why),
    )


def rest(entry: ForwarderEntry) -> ForwarderEntry:
    """Nothing is left to do about it."""
    return msgspec.structs.replace(entry, due_us=None)


# --------------------------------------------------------------------------- rosters


def hear_roster(
    entry: ForwarderEntry, roster: RosterFacts, vouched: bool | None, now_us: int
) -> ForwarderEntry | None:
    """Take what a fresh roster says of it (d, v, u); None: nothing changes."""
    standing = entry.standing
    if standing.state is State.BLOCKED and not roster.blocking_allowed:
        standing = decide_move(standing, Event.UNBLOCK) or standing
        entry = msgspec.structs.replace(
            entry, standing=standing, changed_us=now_us, note="blocks are forbidden now"
        )
        return hear_roster(entry, roster, vouched, now_us) or entry
    if standing.state is State.ENDED:
        if vouched and entry.end is not None and may_lift(entry.end, roster, now_us=now_us):
            lifted = restore(entry, now_us)
            return msgspec.structs.replace(lifted, serial=max(lifted.serial, roster.serial))
        return None
    if vouched:
        if roster.serial <= entry.serial:
            return None
        return msgspec.structs.replace(entry, serial=roster.serial)
    if vouched is False and roster.serial > entry.serial and standing.state is not State.BLOCKED:
        return msgspec.structs.replace(
            entry,
            standing=decide_move(standing, Event.DISPROVEN) or standing,
            end=End(EndedBy.ROSTER, now_us, serial=roster.serial),
            due_us=None,
            changed_us=now_us,
            note=f"absent from roster {roster.serial}",
        )
    return None


def _short(text: str) -> str:
    return text if len(text) <= MAX_NOTE else text[:MAX_NOTE]
