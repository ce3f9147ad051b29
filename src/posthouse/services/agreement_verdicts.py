"""Agreements at RCPT: searched before the implicit recipe (PROTOCOL.md §3, DESIGN.md).

Only domains that are paired (`negotiating`) take part; for the others, and for
addresses without an agreement, the cost is a look into a set. An agreement on
record answers as its state says; a fresh roster later than the one that vouched
is asked first, since it may prove absence. What is vouched for and accepted, or
wanted where there is no roster, is handed over to the forwarder.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Final, Protocol

import msgspec

from posthouse.domain import verdict
from posthouse.domain.agreement import Answer, RosterFacts, decide_answer, needs_testimony
from posthouse.domain.finding import Answer as Word
from posthouse.domain.finding import Finding
from posthouse.domain.recipients import Fold, fold
from posthouse.domain.verdict import Verdict
from posthouse.mail.address import Mailbox
from posthouse.mail.roster import RosterLimits, RosterPolicy
from posthouse.ports_agreements import AgreementBook, FoundAgreement, Sighting, Sightings
from posthouse.ports_session import Accepted, SessionFacts

# Nobody has said what a delimiter means where there is no roster: nothing is cut.
UNTOLD: Final = Fold(delimiters="")
_VOUCHING: Final = (Finding.VOUCHED, Finding.CATCH_ALL, Finding.RULE)
_UNDECIDED: Final = verdict.not_verified("").enhanced

Judged = Verdict | Awaitable[Verdict]


class Roster(Protocol):
    """A roster in force (`ports_roster.RosterDirectory`)."""

    serial: int
    issued_s: int
    expires_s: int
    limits: RosterLimits
    policy: RosterPolicy

    def find(self, local_part: str, network: str = "") -> Word | Awaitable[Word]: ...


class AgreementVerdicts:
    """See the module. `judge` stands between reception and its lists."""

    def __init__(
        self,
        negotiating: Collection[str],
        *,
        book: AgreementBook,
        sightings: Sightings,
        find_roster: Callable[[str], Roster | None],
        disclose_551: bool,
        clock_us: Callable[[], int],
    ) -> None:
        """negotiating: domains that are paired and have no text file. find_roster: in force now."""
        self._negotiating = frozenset(negotiating)
        self._book = book
        self._sightings = sightings
        self._find_roster = find_roster
        self._disclose_551 = disclose_551
        self._clock_us = clock_us

    def reload(self, negotiating: Collection[str], *, disclose_551: bool) -> None:
        """Put new settings in force."""
        self._negotiating = frozenset(negotiating)
        self._disclose_551 = disclose_551

    def judge(
        self,
        mailbox: Mailbox,
        domain: str,
        session: SessionFacts,
        by_lists: Callable[[], Judged],
    ) -> Judged:
        """The verdict at RCPT; by_lists: the one without agreements."""
        if domain not in self._negotiating:
            return by_lists()
        found = self._book.look_up(domain, mailbox.local) if self._book.covers(domain) else None
        case = _Case(mailbox, domain, session, self._find_roster(domain), by_lists)
        if found is None:
            return self._by_lists(case)
        roster = case.roster
        now_us = self._clock_us()
        facts = None if roster is None else make_facts(roster, now_us=now_us)
        if roster is None or facts is None or not needs_testimony(found.view, facts, now_us=now_us):
            return self._answer(case, found, facts, None)
        word = roster.find(mailbox.local, session.network)
        if isinstance(word, Word):
            return self._answer(case, found, facts, word)
        return self._answer_later(case, found, facts, word)

    async def _answer_later(
        self, case: _Case, found: FoundAgreement, facts: RosterFacts, word: Awaitable[Word]
    ) -> Verdict:
        judged = self._answer(case, found, facts, await word)
        return judged if isinstance(judged, Verdict) else await judged

    def _answer(
        self, case: _Case, found: FoundAgreement, facts: RosterFacts | None, word: Word | None
    ) -> Judged:
        if word is not None and word.finding is Finding.TRAP:
            return case.by_lists()
        spelled, vouched = case.mailbox.spelled, does_vouch(word)
        match decide_answer(found.view, facts, vouched, now_us=self._clock_us()):
            case Answer.ACCEPT:
                serial = word.serial if word is not None and vouched else 0
                accepted = Verdict(verdict.RECIPIENT_OK, case.domain, found.canonical, serial)
                if case.roster is None:
                    return accepted
                return verdict.limit_recipient(accepted, case.roster.limits, case.session.mail)
            case Answer.BLOCKED:
                return Verdict(verdict.blocked(spelled, disclose=self._disclose_551))
            case Answer.GONE:
                return Verdict(verdict.user_unknown(spelled))
            case Answer.DEFER if case.roster is not None:
                return Verdict(verdict.not_agreed(spelled))
            case _:
                return self._by_lists(case)

    # ------------------------------------------------------------------ no agreement to go by

    def _by_lists(self, case: _Case) -> Judged:
        """The lists have the word; without any roster the live check, else 451 until agreed."""
        judged = case.by_lists()
        if case.roster is not None:
            return judged
        if isinstance(judged, Verdict):
            return self._settle_untold(case, judged)
        return self._untold_later(case, judged)

    async def _untold_later(self, case: _Case, judged: Awaitable[Verdict]) -> Verdict:
        return self._settle_untold(case, await judged)

    def _settle_untold(self, case: _Case, judged: Verdict) -> Verdict:
        mailbox, domain = case.mailbox, case.domain
        canonical = f"{fold(mailbox.local, UNTOLD, cut=False)}@{domain}"
        if judged.domain and not judged.hold:  # the primary took it just now
            return msgspec.structs.replace(judged, canonical=canonical)
        if not judged.domain and judged.reply.enhanced != _UNDECIDED:
            return judged
        self._sightings.note_wanted(
            Sighting(
                canonical=canonical,
                domain=domain,
                address=mailbox.spelled,
                serial=0,
                at_us=self._clock_us(),
            )
        )
        return judged if judged.domain else Verdict(verdict.not_agreed(mailbox.spelled))

    # ------------------------------------------------------------------ after the commit

    def note_accepted(self, accepted: Accepted) -> None:
        """Tell the forwarder (`ports_session.AfterCommit`): `seen`, or counted."""
        for recipient, judged in zip(accepted.envelope.recipients, accepted.verdicts, strict=False):
            if judged.canonical and not judged.trap and judged.domain in self._negotiating:
                self._sightings.note_message(
                    Sighting(
                        canonical=judged.canonical,
                        domain=judged.domain,
                        address=recipient.address,
                        serial=judged.serial,
                        at_us=self._clock_us(),
                        messages=1,
                        bytes=accepted.size_bytes,
                    )
                )


class _Case(msgspec.Struct, frozen=True):
    """One RCPT."""

    mailbox: Mailbox
    domain: str
    session: SessionFacts
    roster: Roster | None
    by_lists: Callable[[], Judged]


def make_facts(roster: Roster, *, now_us: int) -> RosterFacts:
    """A roster in force, as agreements see it."""
    return RosterFacts(
        serial=roster.serial,
        issued_us=roster.issued_s * 1_000_000,
        fresh=now_us < roster.expires_s * 1_000_000,
        blocking_allowed=roster.policy.blocking == "allowed",
    )


def does_vouch(word: Word | None) -> bool | None:
    """Whether a roster's word vouches, or refuses; None when it has no say."""
    if word is None:
        return None
    if word.finding in _VOUCHING:
        return True
    return False if word.finding is Finding.ABSENT else None
