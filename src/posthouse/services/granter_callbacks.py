"""The granter's calls to forwarders: block, end, reset, ask who stores an address.

An end is written down first and told afterwards, again and again until the
forwarder knows it. Everything else is told first: what is on record here is
what the forwarder has confirmed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from posthouse import observe
from posthouse.errors import PeerFailure
from posthouse.mail.recipes import (
    Actor,
    Denial,
    Holder,
    PolicyRequest,
    PolicySettings,
    Refusal,
    Settings,
)
from posthouse.ports_agreements import AddressBook, Grant, GranterBook, GrantState, PolicyCalls
from posthouse.services import granter_moves as moves
from posthouse.services.granter import GranterSettings

# A whole question "where is my address" is answered in time for a person who waits; every hop
# leaves its caller a second.
SERVERS_SECONDS: Final = 12.0
SERVERS_LEAST_SECONDS: Final = 3.0
# As for rosters (PROTOCOL.md §2 "Guards"): when more than this share of all mailboxes with
# agreements is gone at once, the source is more likely to be broken than they are.
MAX_GONE_SHARE: Final = 0.2
FEW: Final = 5
PAGE: Final = 1000
ENDED_FOR_US: Final = 90 * 24 * 3_600_000_000


class GranterCallbacks:
    """See the module. One beside each `Granter`, on the same book."""

    def __init__(
        self,
        settings: GranterSettings,
        *,
        book: GranterBook,
        addresses: AddressBook,
        calls: PolicyCalls,
        mint: Callable[[int], str],
        clock_us: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._book = book
        self._addresses = addresses
        self._calls = calls
        self._mint = mint
        self._clock_us = clock_us

    def reload(self, settings: GranterSettings) -> None:
        """Put new settings in force."""
        self._settings = settings

    # ------------------------------------------------------------------ a person's word

    async def decide_pending(self, agreement_id: str, *, grant: bool) -> Grant | None:
        """Say yes or no to a pending one; None when there is none. Raises StorageError."""
        state = GrantState.GRANTED if grant else GrantState.REFUSED

        def decide(known: Grant) -> Grant | None:
            if known.state not in (GrantState.PENDING, GrantState.REFUSED):
                return None
            return moves.move(known, state, now_us=self._clock_us())

        return await self._book.change(agreement_id, decide)

    async def set_blocked(self, grant: Grant, blocked: bool, actor: Actor) -> Grant | Refusal:
        """Block or unblock at the forwarder. Raises PeerFailure, StorageError."""
        if blocked and not self._settings.blocking.get(grant.domain, True):
            return Refusal(Denial.FORBIDDEN, f"the policy of {grant.domain} forbids blocking")
        if grant.state in (*moves.ENDED, GrantState.REFUSED):
            return Refusal(Denial.NOT_FOUND, "the agreement is not in force")
        answer = await self._negotiate(grant, actor, change=Settings(blocked=blocked))
        if isinstance(answer, Refusal):
            return answer
        kept = await self._book.change(
            grant.agreement_id,
            lambda known: moves.move(
                known, known.state, now_us=self._clock_us(), blocked=bool(answer.blocked)
            ),
        )
        return kept or grant

    async def end(self, agreement_id: str) -> Grant | None:
        """End an agreement: its mailbox is gone. Told now if it can be. Raises StorageError."""
        ended = await self._book.change(agreement_id, self._ending)
        if ended is not None:
            await self._tell_end(ended)
            return await self._book.find(agreement_id)
        return None

    async def reset_password(self, agreement_id: str) -> Grant | Refusal | None:
        """Void the password and hand out a new expired one; None: it is not in force.

        Raises PeerFailure (the forwarder finds out by itself: 535, then it asks again),
        StorageError.
        """
        one_time = self._mint(24)
        grant = await self._book.change(
            agreement_id,
            lambda known: moves.reset(known, one_time, now_us=self._clock_us()),
        )
        if grant is None:
            return None
        answer = await self._negotiate(grant, "granter", change=Settings(reset_password=one_time))
        return answer if isinstance(answer, Refusal) else grant

    # ------------------------------------------------------------------ who stores an address

    async def find_holders(
        self, mailbox: str, actor: Actor, visited: Sequence[str] = ()
    ) -> tuple[Holder, ...]:
        """Everybody below us who stores the address, each party once. Raises StorageError.

        visited: parties asked before us, and ourselves at their end.
        """
        chosen: dict[str, Grant] = {}
        for grant in await self._book.list(mailbox=mailbox):
            known = chosen.get(grant.forwarder_id)
            if grant.state in (*moves.ENDED, GrantState.REFUSED):
                continue
            if known is None or _rank(grant) > _rank(known):
                chosen[grant.forwarder_id] = grant
        chain = tuple(visited) or (self._settings.party,)
        answers = await asyncio.gather(
            *(
                self._ask_servers(grant, actor, chain)
                for party, grant in chosen.items()
                if party not in chain
            )
        )
        found: dict[str, Holder] = {}
        for holders in answers:
            for holder in holders:
                known_holder = found.get(holder.party)
                if known_holder is None or known_holder.error:
                    found[holder.party] = holder
        return tuple(found.values())

    async def _ask_servers(
        self, grant: Grant, actor: Actor, chain: tuple[str, ...]
    ) -> tuple[Holder, ...]:
        limit = max(SERVERS_LEAST_SECONDS, SERVERS_SECONDS - len(chain))
        try:
            async with asyncio.timeout(limit):
                answer = await self._negotiate(grant, actor, get=("servers",), visited=chain)
        except TimeoutError:
            return (Holder(party=grant.forwarder_id, error="timeout"),)
        except PeerFailure as error:
            return (Holder(party=grant.forwarder_id, error=_describe(error)),)
        if isinstance(answer, Refusal):
            return (Holder(party=grant.forwarder_id, error=answer.detail or answer.denial.name),)
        return answer.servers or ()

    # ------------------------------------------------------------------ mailboxes that are gone

    async def end_gone(self, domain: str) -> int:
        """End what has no mailbox any more; returns how many. Raises StorageError.

        Nothing is ended when too many seem to be gone at once: a person must look.
        """
        gone, total, after = [], 0, ""
        while page := await self._book.list(domain=domain, after=after, limit=PAGE):
            after = page[-1].agreement_id
            for grant in page:
                if grant.state in moves.ENDED:
                    continue
                total += 1
                local = grant.mailbox.rpartition("@")[0]
                if (await self._addresses.find(domain, local)).exists is False:
                    gone.append(grant.agreement_id)
        if len(gone) > FEW and len(gone) > total * MAX_GONE_SHARE:
            observe.alert(
                "agreements",
                f"{domain}: {len(gone)} of {total} mailboxes with agreements seem to be gone; "
                "nothing is ended (posthouse agreements end ADDRESS does it one by one)",
                domain=domain,
            )
            return 0
        for agreement_id in gone:
            await self._book.change(agreement_id, self._ending)
        return len(gone)

    async def tell_ends(self) -> None:
        """Tell forwarders of ends they have not confirmed. Raises StorageError."""
        for grant in await self._book.list(state=GrantState.ENDING):
            await self._tell_end(grant)

    def _ending(self, known: Grant) -> Grant | None:
        if known.state in moves.ENDED:
            return None
        return moves.move(known, GrantState.ENDING, now_us=self._clock_us())

    async def forget_ended(self) -> int:
        """Remove what ended long ago, address and all; returns how many. Raises StorageError."""
        return await self._book.forget_ended(self._clock_us() - ENDED_FOR_US)

    async def _tell_end(self, grant: Grant) -> None:
        try:
            answer = await self._negotiate(grant, "granter", change=Settings(ended=True))
        except PeerFailure as error:
            observe.note("agreements", f"{grant}: {grant.forwarder_id} not told: {error.detail}")
            return
        if isinstance(answer, Refusal) and answer.denial in (
            Denial.TOO_MANY,
            Denial.UNAVAILABLE,
        ):
            return
        if isinstance(answer, Refusal):  # it does not know the agreement: nothing to end there
            observe.note("agreements", f"{grant}: {grant.forwarder_id}: {answer.detail}")
        await self._book.change(
            grant.agreement_id,
            lambda known: (
                moves.move(known, GrantState.ENDED, now_us=self._clock_us())
                if known.state is GrantState.ENDING
                else None
            ),
        )

    async def _negotiate(
        self,
        grant: Grant,
        actor: Actor,
        *,
        get: tuple[str, ...] | None = None,
        change: Settings | None = None,
        visited: tuple[str, ...] = (),
    ) -> PolicySettings | Refusal:
        return await self._calls.negotiate(
            grant.forwarder_id,
            grant.policy_url,
            PolicyRequest(
                recipe_id=grant.recipe_id,
                recipe_key=grant.recipe_key,
                agreement_id=None if grant.state is GrantState.PENDING else grant.agreement_id,
                actor=actor,
                get=get,
                set=change,
                visited=visited,
            ),
        )


def _rank(grant: Grant) -> tuple[bool, int]:
    return grant.state is GrantState.AGREED, grant.created_us


def _describe(error: PeerFailure) -> str:
    return f"{error.stage} {error.status}" if error.status else error.stage
