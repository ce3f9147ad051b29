"""The snapshot of agreements: whole, swapped, fast to miss; and the passwords beside it."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from posthouse.domain.agreement import AgreementView, End, EndedBy, Standing, State
from posthouse.domain.recipients import Fold
from posthouse.errors import StorageBroken
from posthouse.ports_agreements import ForwarderEntry
from posthouse.storage.agreement_secrets import BookSecrets
from posthouse.storage.agreement_snapshot import AgreementSnapshot, SnapshotReader
from posthouse.storage.forwarder_book import SqliteForwarderBook, book_path, snapshot_path
from posthouse.storage.sightings import ReportsInbox, SightingsOutbox


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[SqliteForwarderBook]:
    opened = await SqliteForwarderBook.open(tmp_path)
    yield opened
    await opened.close()


def entry(canonical: str, state: State = State.SEEN, **members: object) -> ForwarderEntry:
    made = ForwarderEntry(
        canonical=canonical,
        domain=canonical.partition("@")[2],
        address=canonical,
        standing=Standing(state),
    )
    return msgspec.structs.replace(made, **members)


async def keep(book: SqliteForwarderBook, *entries: ForwarderEntry) -> None:
    known = {one.canonical: one for one in entries}
    await book.change(list(known), lambda key, _old: known[key])


async def test_every_agreement_is_found(book: SqliteForwarderBook, tmp_path: Path) -> None:
    """Large and small: each text has its view, others have none."""
    for count in (1, 7, 9000):
        entries = [entry(f"user{n}@d{n % 3}.example", serial=n + 1) for n in range(count)]
        await keep(book, *entries)
        await book.publish()
        snapshot = AgreementSnapshot(snapshot_path(tmp_path))
        assert snapshot.size == count
        for one in entries:
            assert snapshot.find(one.canonical) == AgreementView(one.standing, one.serial)
        assert snapshot.find(f"user{count}@d0.example") is None
        assert snapshot.covers("d0.example")
        assert not snapshot.covers("d9.example")


async def test_views_are_whole(book: SqliteForwarderBook, tmp_path: Path) -> None:
    """A block keeps what it goes back to, an end what lifts it."""
    blocked = entry("a@example.com", standing=Standing(State.BLOCKED, State.REFUSED), serial=2**40)
    ended = entry("b@example.com", State.ENDED, end=End(EndedBy.GRANTER, 2**52, 7, 9))
    await keep(book, blocked, ended)
    await book.publish()
    reader = SnapshotReader(snapshot_path(tmp_path))
    assert reader.find("a@example.com") == AgreementView(blocked.standing, 2**40)
    assert reader.find("b@example.com") == AgreementView(ended.standing, 0, ended.end)


async def test_looked_up_as_the_primary_reads(book: SqliteForwarderBook, tmp_path: Path) -> None:
    """The whole text comes before the cut one; without a roster nothing is cut."""
    await book.set_folds({"example.com": Fold()})
    await keep(
        book,
        entry("alice@example.com"),
        entry("alice+x@example.com", State.AGREED),
        entry("bob@example.net"),
    )
    await book.publish()
    reader = SnapshotReader(snapshot_path(tmp_path))

    def find(domain: str, local: str) -> tuple[str, State] | None:
        found = reader.look_up(domain, local)
        return None if found is None else (found.canonical, found.view.standing.state)

    assert find("example.com", "Alice+Y") == ("alice@example.com", State.SEEN)
    assert find("example.com", "Alice+X") == ("alice+x@example.com", State.AGREED)
    assert find("example.com", "carol") is None
    assert find("example.net", "Bob") == ("bob@example.net", State.SEEN)
    assert find("example.net", "bob+x") is None
    assert find("example.org", "bob") is None
    assert find("example.com", "") is None


async def test_swapped_when_a_view_changes(book: SqliteForwarderBook, tmp_path: Path) -> None:
    """A change of state is seen after the next look; counting messages swaps nothing."""
    path = snapshot_path(tmp_path)
    reader = SnapshotReader(path)
    assert reader.find("a@example.com") is None
    await keep(book, entry("a@example.com"))
    await book.publish()
    assert reader.refresh()
    assert not reader.refresh()
    before = path.stat().st_ino
    await keep(book, entry("a@example.com", messages=5, due_us=7))
    await book.publish()
    assert path.stat().st_ino == before
    await keep(book, entry("a@example.com", State.AGREED))
    await book.publish()
    assert reader.refresh()
    view = reader.find("a@example.com")
    assert view is not None
    assert view.standing.state is State.AGREED


async def test_what_another_process_wrote_is_published(
    book: SqliteForwarderBook, tmp_path: Path
) -> None:
    """A command that changes the book beside a running node is seen."""
    await book.publish()
    other = await SqliteForwarderBook.open(tmp_path)
    await keep(other, entry("a@example.com"))
    await other.close()
    await book.publish()
    assert SnapshotReader(snapshot_path(tmp_path)).find("a@example.com") is not None


async def test_damage_is_noticed(book: SqliteForwarderBook, tmp_path: Path) -> None:
    """Whichever octet is flipped, the snapshot is refused and the loaded one stays."""
    await keep(book, entry("a@example.com"), entry("b@example.com"))
    await book.publish()
    path = snapshot_path(tmp_path)
    reader = SnapshotReader(path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(StorageBroken):
            AgreementSnapshot(path)
    for end in (0, 5, 40, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(StorageBroken):
            AgreementSnapshot(path)
    assert not reader.refresh()
    assert reader.find("a@example.com") is not None


async def test_only_the_node_reads_passwords(book: SqliteForwarderBook, tmp_path: Path) -> None:
    """The book and what SQLite keeps beside it have mode 0600."""
    await keep(book, entry("a@example.com", password="p"))
    names = [path for path in tmp_path.iterdir() if path.name.startswith("forwarder.db")]
    assert len(names) == 3
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in names)


async def test_passwords_of_agreed_ones(book: SqliteForwarderBook, tmp_path: Path) -> None:
    """Found by any spelling of the recipient; not while unsettled, refused or blocked behind."""
    await book.set_folds({"example.com": Fold()})
    agreed = entry(
        "alice@example.com",
        State.AGREED,
        agreement_id="a-1",
        password="p1",
        granter="example.com",
        forwarder_id="mx2.example.net",
    )
    await keep(book, agreed, entry("bob@example.com", State.REQUESTED, password="x"))
    await book.publish()
    outbox = SightingsOutbox(tmp_path / "seen", source="0", clock_us=lambda: 1)
    reader = SnapshotReader(snapshot_path(tmp_path))
    owners = {"example.com": "example.com"}
    secrets = BookSecrets(book_path(tmp_path), reader, outbox, owners)
    for address in ("alice@example.com", "ALICE+x@Example.COM", '"alice"@example.com'):
        found = secrets.find(address)
        assert found is not None, address
        assert (found.agreement_id, found.password) == ("a-1", "p1")
        assert found.forwarder_id == "mx2.example.net"
    for address in ("bob@example.com", "carol@example.com", "alice", "alice@example.net", '"@"'):
        assert secrets.find(address) is None
    secrets.needs_completion("a-1", "535 5.7.8 no")
    assert secrets.find("alice@example.com") is None
    await outbox.hand_over()
    (report,) = ReportsInbox(tmp_path / "seen").read(5)
    assert [login.why for login in report.refused_logins] == ["535 5.7.8 no"]
    await keep(book, msgspec.structs.replace(agreed, password="p2"))
    found = secrets.find("alice@example.com")
    assert found is not None
    assert found.password == "p2"
    owners["example.com"] = "another primary"
    assert secrets.find("alice@example.com") is None
    owners["example.com"] = "example.com"
    await keep(book, msgspec.structs.replace(agreed, password="p3", login_refused=True))
    assert secrets.find("alice@example.com") is None
    secrets.close()
