"""What a grant becomes: pure steps on one `Grant` (PROTOCOL.md §3, the granter's side).

They run inside the book's transaction: what they decide is on disk, whole or
not at all, before anybody hears of it.

::

    (none) ──request──► GRANTED ──completion──► AGREED
       │                 ▲    ▲                   │ reset_password
       │ ask, or nobody  │    └───────────────────┘
       │ can tell now    │
       └──► PENDING ─────┘ (a person says yes, or it can be told)
    PENDING ─► REFUSED (a person says no)     any ─► ENDING ─► ENDED (the mailbox is gone)
    ENDED ──request, and the mailbox exists again──► GRANTED or PENDING
"""

from __future__ import annotations

import hmac
from typing import Final

import msgspec

from posthouse.domain.agreement_passwords import hash_password, is_password, is_weak
from posthouse.mail.recipes import Completion, Denial, Recipe, RecipeResult, Refusal, Status
from posthouse.ports_agreements import Existence, Grant, GrantState

HOUR_US: Final = 3_600_000_000
# PROTOCOL.md §3: "from the sixth wrong password per agreement and hour on".
MAX_WRONG: Final = 5
# A person may have to be found; asked again after this, doubling to a day at the forwarder.
ASK_AGAIN_SECONDS: Final = 3_600
# Nobody can tell now whether the address exists: a source is being read again.
TELL_AGAIN_SECONDS: Final = 300

ENDED: Final = (GrantState.ENDED, GrantState.ENDING)


def differs(grant: Grant, recipe: Recipe, mailbox: str) -> bool:
    """Tell whether a known recipe_id came with other contents: name and evidence may differ."""
    same_key = hmac.compare_digest(grant.recipe_key.encode(), recipe.recipe_key.encode())
    return not same_key or (grant.mailbox != mailbox and grant.address != recipe.address)


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How one forwarder's requests are met. ask: a person says yes to each."""

    forwarder_id: str
    completion_url: str
    ask: bool = False


def begin(recipe: Recipe, found: Existence, terms: Terms, policy_url: str, fresh_id: str) -> Grant:
    """A grant for a recipe that was not known, before anything is decided."""
    return Grant(
        forwarder_id=terms.forwarder_id,
        recipe_id=recipe.recipe_id,
        recipe_key=recipe.recipe_key,
        domain=found.mailbox.rpartition("@")[2],
        mailbox=found.mailbox,
        address=recipe.address,
        name=recipe.name,
        policy_url=policy_url,
        agreement_id=fresh_id,
        state=GrantState.PENDING,
        user_id=found.user_id,
        evidence_us=recipe.seen_us,
    )


def answer_request(
    known: Grant | None, fresh: Grant, found: Existence, terms: Terms, *, one_time: str, now_us: int
) -> tuple[Grant | None, RecipeResult]:
    """Decide one recipe: the grant to keep (None: nothing is kept) and the answer.

    fresh: from `begin`. one_time: the password to hand out if one is.
    """
    if found.exists is False:
        ended = None
        if known is not None and known.state not in ENDED:
            ended = _change(known, now_us, state=GrantState.ENDED, one_time=b"", password=b"")
        return ended, RecipeResult(recipe_id=fresh.recipe_id, status=Status.NO_SUCH_USER)
    grant = known or _change(fresh, now_us, created_us=now_us)
    mailbox = found.mailbox if found.exists else grant.mailbox  # folded now, if not before
    grant = _change(
        grant, now_us, policy_url=fresh.policy_url, mailbox=mailbox, user_id=found.user_id
    )
    if grant.state is GrantState.REFUSED:
        return grant, RecipeResult(recipe_id=grant.recipe_id, status=Status.REFUSED)
    if grant.state is GrantState.AGREED:
        return grant, RecipeResult(
            recipe_id=grant.recipe_id,
            status=Status.GRANTED,
            agreement_id=grant.agreement_id,
            user_id=grant.user_id,
        )
    if grant.state in ENDED:  # the mailbox exists again
        grant = _change(
            grant, now_us, state=GrantState.PENDING, blocked=False, asked=0, wrong=0,
            one_time=b"", password=b"", used=b"",
        )  # fmt: skip
    if grant.state is GrantState.PENDING and (found.exists is None or terms.ask):
        grant = _change(grant, now_us, asked=grant.asked + 1)
        return grant, RecipeResult(
            recipe_id=grant.recipe_id,
            status=Status.PENDING,
            agreement_id=grant.agreement_id,
            retry_after_seconds=ASK_AGAIN_SECONDS if terms.ask else TELL_AGAIN_SECONDS,
        )
    grant = _change(
        grant,
        now_us,
        state=GrantState.GRANTED,
        one_time=hash_password(grant.agreement_id, one_time),
    )
    return grant, RecipeResult(
        recipe_id=grant.recipe_id,
        status=Status.GRANTED,
        agreement_id=grant.agreement_id,
        completion_url=terms.completion_url,
        password=one_time,
        user_id=grant.user_id,
    )


def answer_completion(
    grant: Grant, told: Completion, exists: bool | None, *, now_us: int
) -> tuple[Grant | None, Refusal | None]:
    """Decide one completion: the grant to keep, and None for 204 or the refusal.

    exists: whether the mailbox does; counts for `terminate` only.
    """
    if grant.forwarder_id != told.forwarder_id:
        return None, Refusal(Denial.FORBIDDEN, "another forwarder's agreement")
    if grant.state in ENDED and not told.terminate:
        return None, Refusal(Denial.NOT_FOUND, "the agreement has ended")
    wrong = grant.wrong if now_us < grant.wrong_since_us + HOUR_US else 0
    if wrong > MAX_WRONG:
        left = (grant.wrong_since_us + HOUR_US - now_us) // 1_000_000 + 1
        return None, Refusal(Denial.TOO_MANY, "too many wrong passwords", left)
    shown = hash_password(grant.agreement_id, told.password)
    current = is_password(grant.password, shown)
    one_time = is_password(grant.one_time, shown)
    used = is_password(grant.used, shown)
    if told.terminate and current:
        return _terminate(grant, exists, now_us)
    if told.new_password is not None and not told.terminate:
        fresh = hash_password(grant.agreement_id, told.new_password)
        if (used or current) and is_password(grant.password, fresh):
            return _feedback(grant, told, now_us), None  # a repeat: its 204 was lost
        if current or one_time:
            if is_weak(grant.agreement_id, told.new_password):
                return None, Refusal(Denial.UNPROCESSABLE, "new_password is too weak")
            return _complete(grant, told, shown, fresh, now_us), None
    elif current:
        return _feedback(grant, told, now_us), None
    if one_time:  # good for a new password and for nothing else; no guess, so not counted
        return None, Refusal(Denial.FORBIDDEN, "this password is expired: set a new one")
    counted = _change(
        grant,
        now_us,
        wrong=wrong + 1,
        wrong_since_us=grant.wrong_since_us if wrong else now_us,
    )
    if wrong >= MAX_WRONG:
        return counted, Refusal(Denial.TOO_MANY, "too many wrong passwords", 3600)
    return counted, Refusal(Denial.FORBIDDEN, "wrong or used password")


def _terminate(
    grant: Grant, exists: bool | None, now_us: int
) -> tuple[Grant | None, Refusal | None]:
    if grant.state in ENDED:
        return None, None  # a repeat
    if exists is None:
        return None, Refusal(Denial.UNAVAILABLE, "nobody can tell whether the mailbox exists", 300)
    if exists:
        return None, Refusal(Denial.CONFLICT, "the mailbox exists: its backup stays")
    return _change(grant, now_us, state=GrantState.ENDED), None


def _feedback(grant: Grant, told: Completion, now_us: int) -> Grant | None:
    if told.feedback_address is None or told.feedback_address == grant.feedback_address:
        return None
    return _change(grant, now_us, feedback_address=told.feedback_address)


def _complete(grant: Grant, told: Completion, shown: bytes, fresh: bytes, now_us: int) -> Grant:
    return _change(
        grant,
        now_us,
        state=GrantState.AGREED,
        password=fresh,
        used=shown,
        one_time=b"",
        wrong=0,
        agreed_us=grant.agreed_us or now_us,
        feedback_address=told.feedback_address or grant.feedback_address,
    )


def reset(grant: Grant, one_time: str, *, now_us: int) -> Grant | None:
    """Void the password; `one_time` is good for completion. None unless it was granted."""
    if grant.state not in (GrantState.GRANTED, GrantState.AGREED):
        return None
    return _change(
        grant,
        now_us,
        state=GrantState.GRANTED,
        password=b"",
        used=b"",
        one_time=hash_password(grant.agreement_id, one_time),
    )


def move(grant: Grant, state: GrantState, *, now_us: int, **members: object) -> Grant:
    """Put it in another state."""
    return _change(grant, now_us, state=state, **members)


def note_url(grant: Grant, policy_url: str, *, now_us: int) -> Grant:
    """Its forwarder is called elsewhere from now on."""
    return _change(grant, now_us, policy_url=policy_url)


def _change(grant: Grant, now_us: int, **members: object) -> Grant:
    return msgspec.structs.replace(grant, changed_us=now_us, **members)
