"""What `posthouse agreements` does on either side, and what it says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from posthouse.cli.main import EX_NOTHING, EX_UNAVAILABLE
from posthouse.domain.agreement import End, EndedBy, Event, decide_move
from posthouse.errors import PeerFailure
from posthouse.mail.recipes import Completion, Denial, Holder, Refusal
from posthouse.node_agreements_office import ForwarderOffice, GranterOffice
from posthouse.node_process import clock_us
from posthouse.ports_agreements import ForwarderEntry, Grant, GrantState
from posthouse.services.granter_callbacks import GranterCallbacks
from posthouse.services.policy import UNLISTED

_WHY_NOT: Final = (
    "an agreement at a backup stands as long as the mailbox exists: the primary must be able to "
    "count on its backup. It can be blocked where the policy of the domain allows it"
)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one agreement. code: an exit code, 0 when it was done."""

    subject: str
    done: bool
    text: str
    code: int = 0

    def document(self) -> dict[str, Any]:
        """For --json."""
        return {"agreement": self.subject, "done": self.done, "text": self.text}


def _good(subject: str, text: str) -> Report:
    return Report(subject=subject, done=True, text=text)


def _bad(subject: str, text: str, code: int = EX_NOTHING) -> Report:
    return Report(subject=subject, done=False, text=text, code=code)


class GrantedActs:
    """On the granter's side."""

    def __init__(self, office: GranterOffice) -> None:
        self.office = office

    async def servers(self, address: str) -> Sequence[Holder]:
        """Who stores it."""
        for text in self.office.texts(address):
            holders = await self.office.callbacks.find_holders(text, "granter")
            if holders:
                return holders
        return ()

    async def block(self, address: str, blocked: bool, backup: str) -> list[Report]:
        """At every backup that holds it."""
        past = "blocked" if blocked else "not blocked any more"

        async def act(grant: Grant) -> Report:
            answer = await self.office.callbacks.set_blocked(grant, blocked, "granter")
            if isinstance(answer, Refusal):
                return _bad(_name(grant), answer.detail)
            return _good(_name(grant), past)

        return await self._each(address, backup, act)

    async def end(self, address: str, backup: str) -> list[Report]:
        """Written down, and told to the backup."""

        async def act(grant: Grant) -> Report:
            ended = await self.office.callbacks.end(grant.agreement_id)
            if ended is None:
                return _bad(_name(grant), "has ended before")
            if ended.state is GrantState.ENDING:
                text = "ended; the backup cannot be reached and is told later"
                return _good(_name(grant), text)
            return _good(_name(grant), "ended")

        return await self._each(address, backup, act)

    async def reset(self, address: str, backup: str) -> list[Report]:
        """Void the password."""

        async def act(grant: Grant) -> Report:
            answer = await self.office.callbacks.reset_password(grant.agreement_id)
            if answer is None:
                return _bad(_name(grant), "is not in force")
            if isinstance(answer, Refusal):
                return _bad(_name(grant), answer.detail)
            return _good(_name(grant), "password void; the backup sets a new one")

        return await self._each(address, backup, act)

    async def decide(self, addresses: Sequence[str], domain: str, *, grant: bool) -> list[Report]:
        """Say yes or no; no addresses: to every pending one."""
        chosen: list[Grant] = []
        missing = [one for one in addresses if not await self._gather(one, chosen)]
        if not addresses:
            chosen = list(
                await self.office.book.list(
                    state=GrantState.PENDING, domain=domain, limit=1_000_000
                )
            )
        reports = [_bad(one, "there is no agreement") for one in missing]
        for known in chosen:
            decided = await self.office.callbacks.decide_pending(known.agreement_id, grant=grant)
            if decided is None:
                reports.append(_bad(_name(known), f"is {known.state.name.lower()}, not pending"))
            else:
                reports.append(_good(_name(known), decided.state.name.lower()))
        return reports

    async def _gather(self, address: str, chosen: list[Grant]) -> bool:
        found = await self.office.find(address)
        chosen += found
        return bool(found)

    async def _each(
        self, address: str, backup: str, act: Callable[[Grant], Awaitable[Report]]
    ) -> list[Report]:
        reports = []
        for grant in await self.office.find(address):
            if backup in ("", grant.forwarder_id) and grant.state is not GrantState.ENDED:
                try:
                    reports.append(await act(grant))
                except PeerFailure as error:
                    reports.append(_bad(_name(grant), error.detail, EX_UNAVAILABLE))
        return reports


class HeldActs:
    """On the forwarder's side. `below`: our own granter."""

    def __init__(self, office: ForwarderOffice, below: GranterCallbacks) -> None:
        self.office = office
        self._below = below

    async def servers(self, address: str) -> Sequence[Holder]:
        """Ourselves, then those behind us."""
        entry = await self.office.find(address)
        if entry is None:
            return ()
        own = Holder(
            party=entry.forwarder_id,
            host=entry.forwarder_id,
            preference=UNLISTED,
            since_us=entry.seen_us,
            messages=entry.messages,
            last_message_us=entry.last_message_us or entry.seen_us,
        )
        chain = (entry.forwarder_id,)
        return (own, *await self._below.find_holders(entry.canonical, "granter", chain))

    async def block(self, address: str, blocked: bool, backup: str) -> list[Report]:
        """Here; it lapses by itself where the policy of the domain forbids it."""
        entry = await self._find(address, backup)
        if entry is None:
            return []
        event = Event.BLOCK if blocked else Event.UNBLOCK
        moved = decide_move(entry.standing, event)
        if moved is entry.standing or moved is None:
            return [_bad(entry.canonical, f"is {entry.standing.state.name.lower()}")]
        await self._change(entry, standing=moved, note="by the operator of this backup")
        return [_good(entry.canonical, "blocked" if blocked else moved.state.name.lower())]

    async def end(self, address: str, backup: str) -> list[Report]:
        """Ask the granter to: it says no while the mailbox exists."""
        entry = await self._find(address, backup)
        if entry is None:
            return []
        link = next(
            (one for one in self.office.pairs.links(entry.domain) if one.party == entry.granter),
            None,
        )
        if link is None or not entry.password:
            return [_bad(entry.canonical, "is not agreed: there is nothing to end")]
        try:
            refusal = await link.calls.complete(
                entry.completion_url,
                Completion(
                    forwarder_id=entry.forwarder_id,
                    agreement_id=entry.agreement_id,
                    password=entry.password,
                    terminate=True,
                ),
            )
        except PeerFailure as error:
            return [_bad(entry.canonical, error.detail, EX_UNAVAILABLE)]
        if refusal is not None:
            why = _WHY_NOT if refusal.denial is Denial.CONFLICT else refusal.detail
            return [_bad(entry.canonical, why)]
        await self._change(
            entry,
            standing=decide_move(entry.standing, Event.WITHDRAWN) or entry.standing,
            end=End(EndedBy.GRANTER, clock_us()),
            due_us=clock_us(),
            note="ended by the operator of this backup",
        )
        return [_good(entry.canonical, "ended")]

    async def reset(self, address: str, backup: str) -> list[Report]:
        """A granter's right."""
        entry = await self._find(address, backup)
        return [] if entry is None else [_bad(entry.canonical, "only the granter resets it")]

    async def _find(self, address: str, backup: str) -> ForwarderEntry | None:
        entry = await self.office.find(address)
        return entry if entry is not None and backup in ("", entry.forwarder_id) else None

    async def _change(self, entry: ForwarderEntry, **members: object) -> None:
        await self.office.book.change(
            [entry.canonical],
            lambda _key, known: (
                None
                if known is None
                else msgspec.structs.replace(known, changed_us=clock_us(), **members)
            ),
        )
        await self.office.book.publish()


def _name(grant: Grant) -> str:
    return f"{grant.mailbox} at {grant.forwarder_id}"
