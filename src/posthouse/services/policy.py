"""The forwarder's policy negotiation endpoint (PROTOCOL.md §3): a granter asks or sets.

The recipe_key speaks for the granter, so it is compared in constant time, and
the party that shows it must be the one the recipe was sent to. What was set is
on record, and in front of the workers, before it is confirmed.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final

import msgspec

from posthouse import observe
from posthouse.domain.agreement import End, EndedBy, Event, State, decide_move
from posthouse.mail.recipes import (
    MAX_HOPS,
    Denial,
    Holder,
    PolicyRequest,
    PolicySettings,
    Refusal,
    Settings,
    Traffic,
)
from posthouse.ports_agreements import ForwarderBook, ForwarderEntry, HoldersBelow, RosterWitness

# For a host that no MX record names: the least preferred there is (RFC 5321 §5.1).
UNLISTED: Final = 65_535


class PolicyDesk:
    """Answers granters. host: our name for people; preference: ours among a domain's MX."""

    def __init__(
        self,
        *,
        host: str,
        book: ForwarderBook,
        rosters: RosterWitness,
        below: HoldersBelow | None,
        preference: Callable[[str], int],
        changed: Callable[[], None],
        clock_us: Callable[[], int],
    ) -> None:
        """below: our own granter, where we are one. changed: rung when something was set."""
        self._host = host
        self._book = book
        self._rosters = rosters
        self._below = below
        self._preference = preference
        self._changed = changed
        self._clock_us = clock_us

    async def negotiate(self, party: str, asked: PolicyRequest) -> PolicySettings | Refusal:
        """Answer one request of an authenticated party. Raises StorageError."""
        entry = await self._book.find_recipe(asked.recipe_id)
        key = entry.recipe_key if entry is not None else "x" * 32
        good = hmac.compare_digest(key.encode(), asked.recipe_key.encode("utf-8", "replace"))
        if entry is None:
            return Refusal(Denial.NOT_FOUND, "no such recipe")
        if not good or entry.granter != party:
            observe.note("agreements", f"{party}: wrong recipe_key for {asked.recipe_id}")
            return Refusal(Denial.FORBIDDEN, "wrong recipe_key")
        if asked.agreement_id is not None and asked.agreement_id != entry.agreement_id:
            return Refusal(Denial.NOT_FOUND, "no such agreement")
        if asked.set is not None:
            return await self._set(entry, asked, asked.set)
        return await self._get(entry, asked)

    # ------------------------------------------------------------------ get

    async def _get(self, entry: ForwarderEntry, asked: PolicyRequest) -> PolicySettings:
        wanted = frozenset(asked.get or ())
        return PolicySettings(
            blocked=self._is_blocked(entry) if "blocked" in wanted else None,
            dnsbl=() if "dnsbl" in wanted else None,  # we consult none
            spf=False if "spf" in wanted else None,
            traffic=_traffic(entry) if "traffic" in wanted else None,
            servers=await self._servers(entry, asked) if "servers" in wanted else None,
        )

    def _is_blocked(self, entry: ForwarderEntry) -> bool:
        facts = self._rosters.facts(entry.domain)
        lapsed = facts is not None and not facts.blocking_allowed
        return entry.standing.state is State.BLOCKED and not lapsed

    async def _servers(self, entry: ForwarderEntry, asked: PolicyRequest) -> tuple[Holder, ...]:
        """This party first, then those below us."""
        if entry.forwarder_id in asked.visited or len(asked.visited) >= MAX_HOPS:
            return ()
        traffic = _traffic(entry)
        own = Holder(
            party=entry.forwarder_id,
            host=self._host,
            preference=self._preference(entry.domain),
            since_us=entry.seen_us,
            messages=traffic.messages,
            last_message_us=traffic.last_message_us,
        )
        if self._below is None:
            return (own,)
        chain = (*asked.visited, entry.forwarder_id)
        return (own, *await self._below.find_holders(entry.canonical, asked.actor, chain))

    # ------------------------------------------------------------------ set

    async def _set(
        self, entry: ForwarderEntry, asked: PolicyRequest, wanted: Settings
    ) -> PolicySettings | Refusal:
        """All or nothing: whatever speaks against one of them speaks against all."""
        if asked.actor == "user" and (wanted.ended or wanted.reset_password is not None):
            text = "only the granter ends an agreement or resets its password"
            return Refusal(Denial.FORBIDDEN, text)
        facts = self._rosters.facts(entry.domain)
        if wanted.blocked and facts is not None and not facts.blocking_allowed:
            return Refusal(Denial.FORBIDDEN, f"the policy of {entry.domain} forbids blocking")
        refused: list[Refusal] = []
        now_us = self._clock_us()

        def decide(_key: str, known: ForwarderEntry | None) -> ForwarderEntry | None:
            if known is None or known.recipe_id != entry.recipe_id:
                refused.append(Refusal(Denial.NOT_FOUND, "no such recipe"))
                return None
            if known.standing.state is State.ENDED and (
                wanted.blocked or wanted.reset_password is not None
            ):
                refused.append(Refusal(Denial.FORBIDDEN, "the agreement has ended"))
                return None
            return apply_settings(known, wanted, now_us)

        changed = await self._book.change([entry.canonical], decide)
        if refused:
            return refused[0]
        await self._book.publish()
        for one in changed:
            observe.note("agreements", f"{one.granter} set {one}", actor=asked.actor)
        self._changed()
        (after,) = changed
        return PolicySettings(
            blocked=self._is_blocked(after) if wanted.blocked is not None else None,
            ended=True if wanted.ended else None,
            reset_password=wanted.reset_password,
        )


def apply_settings(entry: ForwarderEntry, wanted: Settings, now_us: int) -> ForwarderEntry:
    """What an entry becomes; pure."""
    standing = entry.standing
    members: dict[str, object] = {"changed_us": now_us}
    if wanted.blocked is not None:
        event = Event.BLOCK if wanted.blocked else Event.UNBLOCK
        standing = decide_move(standing, event) or standing
    if wanted.reset_password is not None:
        members |= {
            "one_time_password": wanted.reset_password,
            "new_password": "",
            "login_refused": True,
            "due_us": now_us,
            "tries": 0,
        }
    if wanted.ended:
        standing = decide_move(standing, Event.WITHDRAWN) or standing
        members |= {
            "end": End(EndedBy.GRANTER, now_us),
            "due_us": now_us,  # its queued mail is to be held
            "note": "ended by the granter",
        }
    return msgspec.structs.replace(entry, standing=standing, **members)


def _traffic(entry: ForwarderEntry) -> Traffic:
    """Where nothing has come yet, the time is that of the first attempt."""
    return Traffic(
        messages=entry.messages,
        bytes=entry.bytes,
        last_message_us=entry.last_message_us or entry.seen_us,
    )
