"""What the rosters in force say to the forwarder: `ports_agreements.RosterWitness`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from posthouse.domain.agreement import RosterFacts
from posthouse.domain.finding import Answer, Finding
from posthouse.domain.recipients import Fold
from posthouse.ports_agreements import Existence
from posthouse.services.agreement_verdicts import Roster, does_vouch, make_facts


class FoldedRoster(Roster, Protocol):
    """A roster in force that tells how its primary reads a local part."""

    fold: Fold


class RosterWord:
    """See the module; and, for a backup that grants, `ports_agreements.AddressBook`."""

    def __init__(
        self, find_roster: Callable[[str], FoldedRoster | None], clock_us: Callable[[], int]
    ) -> None:
        self._find_roster = find_roster
        self._clock_us = clock_us

    def facts(self, domain: str) -> RosterFacts | None:
        """The roster in force; None when the domain has none."""
        roster = self._find_roster(domain)
        return None if roster is None else make_facts(roster, now_us=self._clock_us())

    def fold(self, domain: str) -> Fold | None:
        """How its primary reads a local part."""
        roster = self._find_roster(domain)
        return None if roster is None else roster.fold

    async def testify(self, domain: str, local: str) -> bool | None:
        """Whether the roster vouches for an address, or refuses it."""
        return does_vouch(await self._ask(domain, local))

    async def find(self, domain: str, local: str) -> Existence:
        """Who exists, as a backup knows it: a stale roster vouches, but proves no absence.

        Whom only a rule or catch_all takes has no agreement to be granted: nobody can tell.
        """
        answer = await self._ask(domain, local)
        exists: bool | None = None
        mailbox = f"{local}@{domain}"
        if answer is not None and answer.finding is Finding.VOUCHED:
            exists, mailbox = True, answer.canonical
        elif answer is not None and answer.finding is Finding.ABSENT and not answer.stale:
            exists = False
        return Existence(exists=exists, mailbox=mailbox)

    async def _ask(self, domain: str, local: str) -> Answer | None:
        roster = self._find_roster(domain)
        if roster is None:
            return None
        answer = roster.find(local)
        return answer if isinstance(answer, Answer) else await answer
