"""Agreements at RCPT: their order among the verdicts, their replies, what the forwarder hears."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable

import pytest

from fakes.books import MemoryAgreements, MemoryForwarderBook, MemorySightings
from posthouse.domain import verdict
from posthouse.domain.agreement import End, EndedBy, Standing, State
from posthouse.domain.finding import Answer, Finding
from posthouse.domain.recipients import Fold
from posthouse.domain.verdict import Verdict
from posthouse.mail.address import Mailbox
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.mail.roster import RosterLimits, RosterPolicy
from posthouse.ports_agreements import ForwarderEntry
from posthouse.ports_session import Accepted, SessionFacts
from posthouse.services.agreement_verdicts import AgreementVerdicts

DOMAIN = "example.com"
SESSION = SessionFacts(address="192.0.2.1", network="192.0.2.0/24")
NOW_US = 1_795_000_000_000_000
LATER_S = NOW_US // 1_000_000 + 1000


class FakeRoster:
    """Says what it was told to say, at once or later; counts questions."""

    def __init__(self, finding: Finding = Finding.ABSENT, *, serial: int = 9) -> None:
        self.serial = serial
        self.issued_s = NOW_US // 1_000_000
        self.expires_s = LATER_S
        self.limits = RosterLimits(max_message_bytes=1000, smtputf8=False, eight_bit_mime=True)
        self.policy = RosterPolicy(blocking="allowed", when_stale="defer")
        self.finding = finding
        self.slow = False
        self.asked = 0

    def find(self, local_part: str, network: str = "") -> Answer | Awaitable[Answer]:
        self.asked += 1
        answer = Answer(finding=self.finding, serial=self.serial)
        return self._later(answer) if self.slow else answer

    async def _later(self, answer: Answer) -> Answer:
        return answer


class Door:
    """The verdicts with one roster, one book and a list that says what it is told."""

    def __init__(self, roster: FakeRoster | None = None, *, disclose: bool = True) -> None:
        self.roster = roster
        self.book = MemoryForwarderBook()
        self.sightings = MemorySightings()
        self.listed: Verdict | Awaitable[Verdict] = Verdict(verdict.not_verified("x"))
        self.lists_asked = 0
        self.verdicts = AgreementVerdicts(
            [DOMAIN],
            book=MemoryAgreements(self.book),
            sightings=self.sightings,
            find_roster=lambda _domain: self.roster,
            disclose_551=disclose,
            clock_us=lambda: NOW_US,
        )

    async def keep(self, local: str, state: State, **members: object) -> None:
        canonical = f"{local}@{DOMAIN}"
        standing = Standing(state, State.AGREED if state is State.BLOCKED else None)
        entry = ForwarderEntry(
            canonical=canonical,
            domain=DOMAIN,
            address=canonical,
            standing=standing,
            **members,  # type: ignore[arg-type]
        )
        await self.book.change([canonical], lambda _key, _old: entry)
        await self.book.set_folds({DOMAIN: Fold()} if self.roster is not None else {})
        await self.book.publish()

    async def ask(self, local: str = "alice", domain: str = DOMAIN) -> Verdict:
        def by_lists() -> Verdict | Awaitable[Verdict]:
            self.lists_asked += 1
            return self.listed

        judged = self.verdicts.judge(
            Mailbox(f"{local}@{domain}", local, domain), domain, SESSION, by_lists
        )
        return await judged if inspect.isawaitable(judged) else judged


async def test_domains_that_are_not_paired() -> None:
    """They are judged by their lists alone, and nothing is noted."""
    door = Door()
    assert await door.ask("alice", "example.org") is door.listed
    assert not door.sightings.wanted


@pytest.mark.parametrize(
    ("state", "code", "enhanced"),
    [
        (State.SEEN, 250, "2.1.5"),
        (State.REQUESTED, 250, "2.1.5"),
        (State.AGREED, 250, "2.1.5"),
        (State.REFUSED, 250, "2.1.5"),
        (State.BLOCKED, 551, "5.7.1"),
        (State.ENDED, 550, "5.1.1"),
    ],
)
async def test_the_table_with_the_roster_that_vouched(
    state: State, code: int, enhanced: str
) -> None:
    """Each state has its reply, and the roster whose word is on record is not asked again."""
    door = Door(FakeRoster())
    await door.keep("alice", state, serial=9, end=_end(state))
    judged = await door.ask("Alice+news")
    assert (judged.reply.code, judged.reply.enhanced) == (code, enhanced)
    assert door.lists_asked == 0
    assert door.roster is not None
    assert door.roster.asked == 0
    if code == 250:
        assert (judged.canonical, judged.domain) == (f"alice@{DOMAIN}", DOMAIN)
        assert judged.max_bytes == 1000
    else:
        assert judged.domain == ""


def _end(state: State) -> End | None:
    return End(EndedBy.GRANTER, NOW_US) if state is State.ENDED else None


async def test_550_where_551_is_not_to_be_told() -> None:
    """With smtp.disclose_551 = false a block does not say why."""
    door = Door(FakeRoster(), disclose=False)
    await door.keep("alice", State.BLOCKED, serial=9)
    judged = await door.ask()
    assert (judged.reply.code, judged.reply.enhanced) == (550, "5.7.1")
    assert "local" not in judged.reply.text


@pytest.mark.parametrize("slow", [False, True])
async def test_a_later_roster_proves_absence(slow: bool) -> None:
    """The one exception to "agreements first"; a trap goes on being one."""
    door = Door(FakeRoster(Finding.ABSENT))
    assert door.roster is not None
    door.roster.slow = slow
    await door.keep("alice", State.AGREED, serial=8)
    assert (await door.ask()).reply.code == 550
    door.roster.finding = Finding.VOUCHED
    judged = await door.ask()
    assert (judged.reply.code, judged.serial) == (250, 9)
    door.roster.finding = Finding.UNKNOWN  # over budget: what is on record stands
    assert (await door.ask()).reply.code == 250
    door.roster.finding = Finding.TRAP
    door.listed = Verdict(verdict.RECIPIENT_OK, DOMAIN, trap=True)
    assert (await door.ask()).trap
    door.roster.finding = Finding.ABSENT
    door.roster.expires_s = NOW_US // 1_000_000  # stale: proves nothing
    assert (await door.ask()).reply.code == 250


async def test_an_end_that_is_lifted() -> None:
    """A later roster that vouches decides; the end is over."""
    door = Door(FakeRoster(Finding.VOUCHED))
    await door.keep("alice", State.ENDED, end=End(EndedBy.ROSTER, 0, serial=8))
    door.listed = Verdict(verdict.RECIPIENT_OK, DOMAIN, f"alice@{DOMAIN}", 9)
    assert await door.ask() is door.listed
    assert door.lists_asked == 1


async def test_what_the_primary_takes_counts_too() -> None:
    """SIZE beyond the roster's limits is refused at RCPT, agreement or not."""
    door = Door(FakeRoster())
    await door.keep("alice", State.AGREED, serial=9)

    class Wish:
        size_bytes = 1001
        body = ""
        smtputf8 = False
        ret = ""
        envid = ""

    session = SessionFacts(address="192.0.2.1", network="n", mail=Wish())
    judged = door.verdicts.judge(
        Mailbox(f"alice@{DOMAIN}", "alice", DOMAIN), DOMAIN, session, lambda: door.listed
    )
    assert isinstance(judged, Verdict)
    assert judged.reply.code == 552


# --------------------------------------------------------------------------- without a roster


async def test_without_a_roster_until_agreed() -> None:
    """451 4.7.1 and negotiated at once; 250 once agreed, with another spelling another address."""
    door = Door()
    judged = await door.ask("Alice")
    assert (judged.reply.code, judged.reply.enhanced) == (451, "4.7.1")
    (wanted,) = door.sightings.wanted
    assert (wanted.canonical, wanted.address) == (f"alice@{DOMAIN}", f"Alice@{DOMAIN}")
    assert (wanted.serial, wanted.messages) == (0, 0)
    for state in (State.SEEN, State.REQUESTED, State.REFUSED):
        await door.keep("alice", state)
        assert (await door.ask()).reply.enhanced == "4.7.1"
    await door.keep("alice", State.AGREED)
    assert (await door.ask("ALICE")).reply.code == 250
    assert (await door.ask("alice+x")).reply.enhanced == "4.7.1"


async def test_without_a_roster_the_primary_has_the_word() -> None:
    """While it is up the live check decides, and a message it lets in is seen."""
    door = Door()
    door.listed = Verdict(verdict.RECIPIENT_OK, DOMAIN)
    judged = await door.ask("Alice")
    assert (judged.reply.code, judged.canonical) == (250, f"alice@{DOMAIN}")
    door.listed = Verdict(verdict.user_unknown("x"))
    assert (await door.ask()).reply.code == 550

    async def later() -> Verdict:
        return Verdict(verdict.not_verified("x"))

    door.listed = later()
    assert (await door.ask("bob")).reply.enhanced == "4.7.1"
    assert [one.canonical for one in door.sightings.wanted] == [f"bob@{DOMAIN}"]


async def test_held_ones_are_negotiated_too() -> None:
    """Where the operator takes unknown ones on hold, the agreement is asked for meanwhile."""
    door = Door()
    door.listed = Verdict(verdict.RECIPIENT_OK, DOMAIN, hold=True)
    judged = await door.ask()
    assert judged.hold
    assert judged.canonical == ""
    assert len(door.sightings.wanted) == 1


async def test_guessers_start_nothing() -> None:
    """What was refused for guessing is not negotiated."""
    door = Door()
    for reply in (verdict.too_many_guesses("x"), verdict.come_later("x")):
        door.listed = Verdict(reply)
        assert (await door.ask()).reply is reply
    assert not door.sightings.wanted


# --------------------------------------------------------------------------- after the commit


def accepted(*verdicts: Verdict) -> Accepted:
    recipients = tuple(
        Recipient(address=f"Rcpt{n}@{one.domain or DOMAIN}", domain=one.domain or DOMAIN)
        for n, one in enumerate(verdicts)
    )
    return Accepted(
        queue_id=1,
        size_bytes=4096,
        envelope=Envelope(sender="s@example.net", recipients=recipients),
        client=Client(address="192.0.2.1", port=1),
        verdicts=verdicts,
    )


async def test_what_is_seen() -> None:
    """Each vouched recipient with its spelling; no trap, no rule, nobody of another domain."""
    door = Door()
    door.verdicts.note_accepted(
        accepted(
            Verdict(verdict.RECIPIENT_OK, DOMAIN, f"alice@{DOMAIN}", 9),
            Verdict(verdict.RECIPIENT_OK, DOMAIN),  # catch_all, a rule, postmaster
            Verdict(verdict.RECIPIENT_OK, DOMAIN, f"bait@{DOMAIN}", 9, trap=True),
            Verdict(verdict.RECIPIENT_OK, "example.org", "carol@example.org", 9),
        )
    )
    (seen,) = door.sightings.messages
    assert (seen.canonical, seen.address) == (f"alice@{DOMAIN}", f"Rcpt0@{DOMAIN}")
    assert (seen.serial, seen.messages, seen.bytes) == (9, 1, 4096)
    door.verdicts.reload([], disclose_551=True)
    door.verdicts.note_accepted(accepted(Verdict(verdict.RECIPIENT_OK, DOMAIN, "a@b", 9)))
    assert len(door.sightings.messages) == 1
