"""What both books of agreements promise, engine and fake alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from fakes.books import MemoryAgreements, MemoryForwarderBook, MemoryGranterBook, MemoryReports
from posthouse.domain.agreement import AgreementView, End, EndedBy, Standing, State
from posthouse.domain.recipients import Fold
from posthouse.ports_agreements import (
    AgreementBook,
    AgreementQuery,
    ForwarderBook,
    ForwarderEntry,
    Grant,
    GranterBook,
    GrantState,
    Report,
    Reports,
    Sighting,
)
from posthouse.storage.agreement_snapshot import SnapshotReader
from posthouse.storage.forwarder_book import SqliteForwarderBook, snapshot_path
from posthouse.storage.granter_book import SqliteGranterBook
from posthouse.storage.sightings import ReportsInbox, SightingsOutbox

ALICE, BOB, CAROL = "alice@example.com", "bob@example.com", "carol@example.net"


def entry(canonical: str = ALICE, state: State = State.SEEN, **members: object) -> ForwarderEntry:
    made = ForwarderEntry(
        canonical=canonical,
        domain=canonical.partition("@")[2],
        address=canonical,
        standing=Standing(state),
        recipe_id=f"r-{canonical.partition('@')[0]}",
    )
    return msgspec.structs.replace(made, **members)


def grant(agreement_id: str = "a-1", recipe_id: str = "r-1", **members: object) -> Grant:
    made = Grant(
        forwarder_id="mx2.example.net",
        recipe_id=recipe_id,
        recipe_key="k",
        domain="example.com",
        mailbox=ALICE,
        address=ALICE,
        name="Backup MX",
        policy_url="https://mx2.example.net:8447/v1/policy",
        agreement_id=agreement_id,
        state=GrantState.GRANTED,
    )
    return msgspec.structs.replace(made, **members)


@pytest.fixture(params=["sqlite", "memory"])
async def forwarder(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ForwarderBook]:
    """A fresh forwarder book."""
    if request.param == "memory":
        yield MemoryForwarderBook()
        return
    book = await SqliteForwarderBook.open(tmp_path / "agreements")
    yield book
    await book.close()


@pytest.fixture(params=["sqlite", "memory"])
async def granter(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[GranterBook]:
    """A fresh granter book."""
    if request.param == "memory":
        yield MemoryGranterBook()
        return
    book = await SqliteGranterBook.open(tmp_path / "agreements")
    yield book
    await book.close()


async def keep(book: ForwarderBook, *entries: ForwarderEntry) -> None:
    for one in entries:
        await book.change([one.canonical], lambda _key, _old, one=one: one)  # type: ignore[misc]


# --------------------------------------------------------------------------- the forwarder book


async def test_keeps_every_member(forwarder: ForwarderBook) -> None:
    """What was written is read back, to the last member."""
    whole = entry(
        state=State.AGREED,
        granter="example.com",
        forwarder_id="mx2.example.net",
        agreement_id="a-1",
        password="p",
        former_password="f",
        one_time_password="o",
        new_password="n",
        login_refused=True,
        serial=7,
        due_us=5,
        messages=3,
        bytes=2**40,
        spellings=("Alice@example.com", "alice+x@example.com"),
    )
    await keep(forwarder, whole)
    assert await forwarder.find(ALICE) == whole
    assert await forwarder.find_recipe("r-alice") == whole
    assert await forwarder.find_agreement("a-1") == whole
    assert await forwarder.find(BOB) is None
    assert await forwarder.find_recipe("") is None
    assert await forwarder.find_agreement("") is None


async def test_change_is_whole(forwarder: ForwarderBook) -> None:
    """Each key sees what the one before wrote; a failure leaves everything as it was."""
    await keep(forwarder, entry())

    def count(key: str, old: ForwarderEntry | None) -> ForwarderEntry | None:
        return None if old is None else msgspec.structs.replace(old, tries=old.tries + 1)

    given = await forwarder.change([ALICE, BOB, ALICE], count)
    assert [one.tries for one in given] == [1, 2]

    def fail(key: str, old: ForwarderEntry | None) -> ForwarderEntry | None:
        if key == BOB:
            raise RuntimeError("in the middle")
        return entry(tries=99)

    with pytest.raises(RuntimeError):
        await forwarder.change([ALICE, BOB], fail)
    found = await forwarder.find(ALICE)
    assert found is not None
    assert found.tries == 2


async def test_reports_count_once(forwarder: ForwarderBook) -> None:
    """A report that was taken before changes nothing, whatever else comes with it."""

    def count(sighting: Sighting, old: ForwarderEntry | None) -> ForwarderEntry | None:
        known = old or entry(sighting.canonical)
        return msgspec.structs.replace(known, messages=known.messages + sighting.messages)

    def report(name: str, messages: int) -> Report:
        sighting = Sighting(
            canonical=ALICE,
            domain="example.com",
            address=ALICE,
            serial=1,
            at_us=1,
            messages=messages,
        )
        return Report(name=name, sightings=(sighting,))

    await forwarder.take([report("one", 1)], count)
    given = await forwarder.take([report("one", 1), report("two", 10)], count)
    assert [one.messages for one in given] == [11]
    assert await forwarder.take([report("two", 10)], count) == []


async def test_what_is_due(forwarder: ForwarderBook) -> None:
    """The oldest first, by domain; None is never due."""
    await keep(
        forwarder,
        entry(ALICE, due_us=20),
        entry(BOB, due_us=10),
        entry(CAROL, due_us=5),
        entry("dora@example.com"),
    )
    assert await forwarder.next_due() == {"example.com": 10, "example.net": 5}
    due = [one.canonical for one in await forwarder.due("example.com", 20, 10)]
    assert due == [BOB, ALICE]
    assert [one.canonical for one in await forwarder.due("example.com", 19, 10)] == [BOB]
    assert [one.canonical for one in await forwarder.due("example.com", 99, 1)] == [BOB]
    await keep(forwarder, entry(BOB))
    assert await forwarder.next_due() == {"example.com": 20, "example.net": 5}


async def test_what_ended_is_forgotten(forwarder: ForwarderBook) -> None:
    """Long ago, or until an instant that has come; never what is in force or still to be done."""

    def ended(name: str, at_us: int, until_us: int = 0, **members: object) -> ForwarderEntry:
        end = End(by=EndedBy.GRANTER, at_us=at_us, until_us=until_us)
        return entry(f"{name}@example.com", State.ENDED, end=end, **members)

    await keep(
        forwarder,
        entry(ALICE, State.AGREED),
        ended("old", 49),
        ended("young", 50),
        ended("old-to-hold", 49, due_us=1),
        ended("denied", 90, 100),
        ended("denied-still", 40, 101),
    )
    assert await forwarder.forget_ended(100, 50) == 2
    left = await forwarder.list(AgreementQuery(), after="", limit=10)
    assert {one.canonical.partition("@")[0] for one in left} == {
        "alice", "young", "old-to-hold", "denied-still",
    }  # fmt: skip
    assert await forwarder.forget_ended(100, 50) == 0


async def test_what_a_fast_clock_put_off_is_brought_forward(forwarder: ForwarderBook) -> None:
    """What is due later than anything can be is due now; the rest is as it was."""
    for name, due in ((ALICE, 10), (BOB, 101), (CAROL, None)):
        await keep(forwarder, msgspec.structs.replace(entry(name), due_us=due))
    assert await forwarder.bring_forward(20, 100) == 1
    found = [await forwarder.find(name) for name in (ALICE, BOB, CAROL)]
    assert [one.due_us for one in found if one is not None] == [10, 20, None]
    assert {e.canonical for e in await forwarder.due("example.com", 20, 10)} == {ALICE, BOB}
    assert await forwarder.bring_forward(20, 100) == 0


async def test_grants_that_ended_are_forgotten(granter: GranterBook) -> None:
    """Long ago only, and not those whose forwarder is still to be told."""
    made = [
        grant("a-1", "r-1", state=GrantState.ENDED, changed_us=49),
        grant("a-2", "r-2", state=GrantState.ENDED, changed_us=50),
        grant("a-3", "r-3", state=GrantState.ENDING, changed_us=1),
        grant("a-4", "r-4", state=GrantState.REFUSED, changed_us=1),
    ]
    for one in made:
        await granter.settle(one.forwarder_id, [one.recipe_id], lambda _, __, one=one: one)  # type: ignore[misc]
    assert await granter.forget_ended(50) == 1
    assert [one.agreement_id for one in await granter.list()] == ["a-2", "a-3", "a-4"]


async def test_lists_and_counts(forwarder: ForwarderBook) -> None:
    """Pages follow each other by canonical text; every condition of a query must hold."""
    await keep(forwarder, entry(BOB), entry(ALICE, State.AGREED), entry(CAROL))

    async def ask(query: AgreementQuery, after: str = "", limit: int = 10) -> list[str]:
        return [one.canonical for one in await forwarder.list(query, after=after, limit=limit)]

    assert await ask(AgreementQuery()) == [ALICE, BOB, CAROL]
    assert await ask(AgreementQuery(), limit=2) == [ALICE, BOB]
    assert await ask(AgreementQuery(), after=BOB) == [CAROL]
    assert await ask(AgreementQuery(domain="example.com", state=State.SEEN)) == [BOB]
    assert await ask(AgreementQuery(canonical=CAROL)) == [CAROL]
    assert await forwarder.counts() == {
        "example.com": {State.SEEN: 1, State.AGREED: 1},
        "example.net": {State.SEEN: 1},
    }


async def test_rosters_are_asked_about_everybody_once(forwarder: ForwarderBook) -> None:
    """Who vouched counts as asked; the others wait until it is noted."""
    await keep(forwarder, entry(ALICE, serial=7), entry(BOB, serial=3), entry(CAROL))

    async def behind(serial: int) -> list[str]:
        return [one.canonical for one in await forwarder.behind("example.com", serial, 10)]

    assert await behind(7) == [BOB]
    assert await behind(8) == [BOB, ALICE]
    await forwarder.note_asked([BOB], 8)
    assert await behind(8) == [ALICE]
    await forwarder.note_asked([BOB], 5)  # an older word takes nothing back
    assert await behind(8) == [ALICE]


async def test_workers_see_what_was_published(
    forwarder: SqliteForwarderBook | MemoryForwarderBook, tmp_path: Path
) -> None:
    """Whole text before cut one, nothing cut where no fold was told, nothing before `publish`."""

    def worker() -> AgreementBook:
        if isinstance(forwarder, MemoryForwarderBook):
            return MemoryAgreements(forwarder)
        return SnapshotReader(snapshot_path(tmp_path / "agreements"))

    await forwarder.set_folds({"example.com": Fold()})
    agreed = entry("alice+x@example.com", State.AGREED, serial=5)
    await keep(forwarder, entry(ALICE), agreed, entry(CAROL), entry("dora@example.net"))
    assert not worker().covers("example.com")
    assert worker().look_up("example.com", "alice") is None
    await forwarder.publish()
    seen = worker()
    assert seen.covers("example.com")
    assert not seen.covers("example.org")
    assert seen.find(ALICE) == AgreementView(Standing(State.SEEN))
    assert seen.find("nobody@example.com") is None

    def find(domain: str, local: str) -> str | None:
        found = seen.look_up(domain, local)
        return None if found is None else found.canonical

    assert find("example.com", "Alice+Y") == ALICE
    assert find("example.com", "ALICE+X") == "alice+x@example.com"
    assert find("example.net", "Carol") == CAROL
    assert find("example.net", "carol+x") is None
    assert find("example.org", "carol") is None
    assert find("example.com", "") is None


# --------------------------------------------------------------------------- the granter book


async def test_grants_are_kept_by_recipe(granter: GranterBook) -> None:
    """A recipe of one forwarder is found again; another forwarder's of the same name is not it."""

    def make(recipe_id: str, old: Grant | None) -> Grant | None:
        assert old is None
        return grant(f"a-{recipe_id}", recipe_id, wrong=1, one_time=b"\x00\xff")

    given = await granter.settle("mx2.example.net", ["r-1", "r-2"], make)
    assert [one.agreement_id for one in given] == ["a-r-1", "a-r-2"]
    seen: list[Grant | None] = []

    def look(recipe_id: str, old: Grant | None) -> Grant | None:
        seen.append(old)
        return None

    assert await granter.settle("mx2.example.net", ["r-2"], look) == []
    assert await granter.settle("mx3.example.org", ["r-2"], look) == []
    assert seen == [given[1], None]
    assert await granter.find("a-r-1") == given[0]
    assert await granter.find("a-r-3") is None


async def test_grants_change_whole(granter: GranterBook) -> None:
    """One agreement is changed or left alone; of a failing batch nothing stays."""
    await granter.settle("mx2.example.net", ["r-1"], lambda _id, _old: grant())
    changed = await granter.change("a-1", lambda old: msgspec.structs.replace(old, blocked=True))
    assert changed == grant(blocked=True)
    assert await granter.change("a-1", lambda old: None) is None
    assert await granter.change("a-9", lambda old: old) is None
    assert await granter.find("a-1") == grant(blocked=True)

    def fail(recipe_id: str, old: Grant | None) -> Grant | None:
        if recipe_id == "r-3":
            raise RuntimeError("in the middle")
        return grant("a-2", "r-2")

    with pytest.raises(RuntimeError):
        await granter.settle("mx2.example.net", ["r-2", "r-3"], fail)
    assert await granter.find("a-2") is None


async def test_grants_are_listed(granter: GranterBook) -> None:
    """By agreement-ID; every given condition must hold."""
    grants = {
        "r-1": grant("a-1", "r-1"),
        "r-2": grant("a-2", "r-2", mailbox=BOB, state=GrantState.PENDING),
        "r-3": grant("a-3", "r-3", state=GrantState.PENDING),
    }
    await granter.settle("mx2.example.net", list(grants), lambda recipe, _old: grants[recipe])
    assert [g.agreement_id for g in await granter.list()] == ["a-1", "a-2", "a-3"]
    assert [g.agreement_id for g in await granter.list(after="a-1", limit=1)] == ["a-2"]
    assert [g.agreement_id for g in await granter.list(mailbox=ALICE)] == ["a-1", "a-3"]
    pending = await granter.list(mailbox=ALICE, state=GrantState.PENDING, domain="example.com")
    assert [g.agreement_id for g in pending] == ["a-3"]
    assert await granter.list(forwarder_id="mx3.example.org") == []
    assert await granter.counts() == {"example.com": {GrantState.GRANTED: 1, GrantState.PENDING: 2}}


# --------------------------------------------------------------------------- reports


async def test_reports_wait_until_forgotten(tmp_path: Path) -> None:
    """What a worker hands over is there, in order, until it was taken."""
    clock = iter(range(1, 100))
    outbox = SightingsOutbox(tmp_path / "seen", source="0", clock_us=lambda: next(clock))
    sighting = Sighting(
        canonical=ALICE, domain="example.com", address=ALICE, serial=1, at_us=1, messages=1, bytes=5
    )
    outbox.note_message(sighting)
    await outbox.hand_over()
    outbox.note_message(msgspec.structs.replace(sighting, at_us=2))
    outbox.note_message(msgspec.structs.replace(sighting, at_us=3))
    outbox.note_wanted(msgspec.structs.replace(sighting, messages=0, bytes=0))
    outbox.note_refused_login("a-1", "535 no")
    await outbox.hand_over()
    await outbox.hand_over()  # nothing was learned
    inbox: Reports = ReportsInbox(tmp_path / "seen")
    first, second = inbox.read(10)
    assert [(s.messages, s.bytes, s.at_us) for s in first.sightings] == [(1, 5, 1)]
    assert [(s.messages, s.bytes, s.at_us) for s in second.sightings] == [(2, 10, 3)]
    assert [login.agreement_id for login in second.refused_logins] == ["a-1"]
    assert inbox.read(1) == [first]
    inbox.forget([first])
    assert inbox.read(10) == [second]
    inbox.forget([first, second])
    assert inbox.read(10) == []


def test_the_fake_keeps_reports_alike() -> None:
    """The fake's reports wait until they are forgotten, too."""
    fake = MemoryReports()
    sighting = Sighting(canonical=ALICE, domain="example.com", address=ALICE, serial=1, at_us=1)
    fake.put(sighting, name="one")
    fake.put(sighting, name="two")
    inbox: Reports = fake
    assert [report.name for report in inbox.read(1)] == ["one"]
    inbox.forget(inbox.read(1))
    assert [report.name for report in inbox.read(10)] == ["two"]


async def test_a_damaged_report_is_set_aside(tmp_path: Path) -> None:
    """Half a report stops no other."""
    outbox = SightingsOutbox(tmp_path, source="0", clock_us=lambda: 5)
    outbox.note_refused_login("a-1", "535")
    await outbox.hand_over()
    (tmp_path / "0.report").write_bytes(b'{"name": "0", "sigh')
    inbox = ReportsInbox(tmp_path)
    assert len(inbox.read(10)) == 1
    assert (tmp_path / "0.damaged").exists()
