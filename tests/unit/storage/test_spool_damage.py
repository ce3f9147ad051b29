"""Damaged rows, records and pages: set aside with a reason while the rest goes on."""

from __future__ import annotations

import random
from pathlib import Path

import apsw
import pytest

from fakes.failing_disk import T0, Ticks, accept, everything, open_spool, read_body
from posthouse.errors import BodyDamaged, StorageError
from posthouse.mail.queueid import make_queue_id
from posthouse.ports_spool import (
    Claim,
    Cursor,
    OperatorAction,
    Outcome,
    Selection,
    Settlement,
    State,
)
from posthouse.storage.segments import Layout
from posthouse.storage.spool import EmbeddedSpool
from posthouse.storage.spool_batch import Batch
from posthouse.storage.spool_disk import Disk
from posthouse.storage.spool_unsettled import Unsettled


async def claim(spool: EmbeddedSpool, after: Cursor | None = None) -> Claim:
    return await spool.claim(
        "example.com", after=after, now_us=0, max_messages=100, max_bytes=1 << 20
    )


def harm_rows(directory: Path, statement: str) -> None:
    """Change the database behind the engine's back, with nothing open."""
    connection = apsw.Connection(str(Layout(directory).database))
    connection.execute(statement)
    connection.close()


async def three(directory: Path) -> list[int]:
    spool = await open_spool(directory)
    ids = [await accept(spool, b"body %d" % n, f"u{n}@example.com") for n in range(3)]
    await spool.close()
    return ids


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        ("UPDATE recipient SET address = 'v1@example.com' WHERE queue_id = {}", "differs"),
        ("UPDATE recipient SET address = CAST(x'FFFE' AS TEXT) WHERE queue_id = {}", "row"),
        ("DELETE FROM message WHERE queue_id = {}", "missing"),
        ("UPDATE message SET at = at + 1 WHERE queue_id = {}", "header"),
        ("UPDATE message SET at = 0 WHERE queue_id = {}", "another record"),
        ("UPDATE message SET size = size + 1 WHERE queue_id = {}", "another record"),
        ("UPDATE message SET segment = 999 WHERE queue_id = {}", "missing"),
        ("UPDATE message SET segment = 0 WHERE queue_id = {}", "missing"),
    ],
)
async def test_a_damaged_row_is_held_and_others_go_on(tmp_path: Path, harm: str, why: str) -> None:
    """No mail goes to an address the record does not vouch for; the reason is told."""
    ids = await three(tmp_path)
    harm_rows(tmp_path, harm.format(ids[1]))
    spool = await open_spool(tmp_path)
    found = await claim(spool)
    assert [m.queue_id for m in found.messages] == [ids[0], ids[2]]
    assert [m.body for m in found.messages] == [b"body 0", b"body 2"]
    if "FFFE" not in harm:
        [row] = (await everything(spool))[ids[1]].recipients
        assert row.state is State.HELD
        assert row.reason.startswith("damaged: ")
        assert why in row.reason
    assert (await claim(spool, found.cursor)).messages == ()
    await spool.close()


@pytest.mark.parametrize("part", ["header", "body", "envelope", "end"])
async def test_a_damaged_record_is_held_and_others_go_on(tmp_path: Path, part: str) -> None:
    """Wherever a bit of a record flips, or its end is cut off, only it is set aside."""
    ids = await three(tmp_path)
    [segment] = Layout(tmp_path).segments.iterdir()
    data = bytearray(segment.read_bytes())
    at = data.index(b"body 2")
    if part == "end":
        del data[-1]
    else:
        data[at + {"header": -20, "body": 3, "envelope": 10}[part]] ^= 0x10
    segment.write_bytes(data)
    spool = await open_spool(tmp_path)
    assert [m.queue_id for m in (await claim(spool)).messages] == ids[:2]
    [row] = (await everything(spool))[ids[2]].recipients
    assert (row.state, row.reason[:9]) == (State.HELD, "damaged: ")
    if part in {"header", "body"}:
        with pytest.raises(BodyDamaged):
            await read_body(spool, ids[2])
    else:
        assert await read_body(spool, ids[2]) == b"body 2"
    await spool.close()


async def test_a_released_damaged_message_is_held_again(tmp_path: Path) -> None:
    """Releasing does not send what is damaged."""
    ids = await three(tmp_path)
    harm_rows(tmp_path, f"UPDATE message SET segment = 999 WHERE queue_id = {ids[0]}")
    spool = await open_spool(tmp_path)
    first = await claim(spool)
    assert await spool.act(Selection(), OperatorAction.RELEASE, now_us=1) == 1
    assert (await claim(spool, first.cursor)).messages == ()
    assert (await everything(spool))[ids[0]].recipients[0].state is State.HELD
    await spool.close()


def root_page(directory: Path, name: str) -> int:
    connection = apsw.Connection(str(Layout(directory).database))
    page: int = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).get
    connection.close()
    return page


def leaf_pages(directory: Path, name: str) -> list[int]:
    connection = apsw.Connection(str(Layout(directory).database))
    statement = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf'"
    pages = [int(str(row[0])) for row in connection.execute(statement, (name,))]
    connection.close()
    return pages


def overwrite_page(directory: Path, page: int) -> None:
    with Layout(directory).database.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(random.Random(page).randbytes(4096))


async def fill(directory: Path, count: int) -> list[int]:
    spool = await open_spool(directory)
    ids = [await accept(spool, b"x", f"u{n}@example.com") for n in range(count)]
    await spool.close()
    return ids


async def read_all(spool: EmbeddedSpool) -> set[int]:
    """Claim to the end, as the relay does, going on after failures a few times."""
    seen: set[int] = set()
    after: Cursor | None = None
    for _ in range(50):
        try:
            found = await claim(spool, after)
        except StorageError:
            continue
        seen |= {m.queue_id for m in found.messages}
        after = found.cursor
        if found.exhausted:
            break
    return seen


async def test_a_damaged_page_of_messages_costs_only_its_own(tmp_path: Path) -> None:
    """Messages on other pages are delivered; the engine lives."""
    ids = await fill(tmp_path, 400)
    pages = leaf_pages(tmp_path, "message")
    assert len(pages) > 3
    overwrite_page(tmp_path, pages[1])
    spool = await open_spool(tmp_path)
    seen = await read_all(spool)
    assert len(ids) / 2 < len(seen) < len(ids)
    await accept(spool, b"new mail is still taken")
    await spool.close()


async def test_a_damaged_index_is_written_afresh(tmp_path: Path) -> None:
    """The queues are rebuilt from the rows and everything is delivered."""
    ids = await fill(tmp_path, 400)
    overwrite_page(tmp_path, leaf_pages(tmp_path, "waiting")[0])
    spool = await open_spool(tmp_path)
    with pytest.raises(StorageError):
        await claim(spool)
    await accept(spool, b"stands behind the repair")
    assert await read_all(spool) > set(ids)
    await spool.close()


async def test_an_index_that_takes_no_rows_is_written_afresh(tmp_path: Path) -> None:
    """Its last page is where new mail goes: answered mail must not wait for a reader to see it."""
    ids = await fill(tmp_path / "shard", 400)
    overwrite_page(tmp_path / "shard", leaf_pages(tmp_path / "shard", "waiting")[-1])
    spool = await open_spool(tmp_path / "shard", clock_us=Ticks(T0 + 1_000_000))
    ids.append(await accept(spool, b"new"))
    await spool._writer.put_rows()
    assert not spool._writer.lags
    assert await read_all(spool) == set(ids)
    await spool.close()


@pytest.mark.parametrize("restart", ["none", "damaged", "sound"])
async def test_rows_that_a_damaged_page_refuses_do_not_stop_settling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: str
) -> None:
    """What was delivered is remembered, over a restart too, and gone once rows can be written."""
    spool = await open_spool(tmp_path)
    old = await accept(spool, b"old")
    await everything(spool)
    insert = Batch.insert

    def refuse(*_: object, **__: object) -> None:
        raise apsw.CorruptError("a page is damaged")

    monkeypatch.setattr(Batch, "insert", refuse)
    gone = await accept(spool, b"gone")
    partly = await accept(spool, b"partly", "a@example.com", "b@example.com")
    keys = [(old, 0), (gone, 0), (partly, 1)]
    await spool.settle([Settlement(*key, Outcome.DELIVERED) for key in keys])
    assert await everything(spool) == {}
    if restart != "none":
        await spool.close()
        if restart == "sound":
            monkeypatch.setattr(Batch, "insert", insert)
        spool = await open_spool(tmp_path)
        assert restart == "sound" or await everything(spool) == {}
    monkeypatch.setattr(Batch, "insert", insert)
    found = await everything(spool)
    assert list(found) == [partly]
    assert [r.seq for r in found[partly].recipients] == [0]
    await spool.close()


async def test_a_database_that_is_none_is_refused_as_broken(tmp_path: Path) -> None:
    """A start over garbage fails with StorageBroken, and leaves it as it was."""
    await three(tmp_path)
    database = Layout(tmp_path).database
    database.write_bytes(b"garbage" * 1000)
    with pytest.raises(StorageError):
        await open_spool(tmp_path)
    assert database.read_bytes() == b"garbage" * 1000


@pytest.mark.parametrize("table", ["message", "recipient", "waiting"])
async def test_a_page_that_takes_no_change_does_not_stop_settling(
    tmp_path: Path, table: str
) -> None:
    """What was delivered and cannot be removed is remembered: never sent again, also later."""
    ids = await fill(tmp_path, 400)
    spool = await open_spool(tmp_path)
    found = await claim_many(spool, len(ids))
    assert [m.queue_id for m in found.messages] == ids
    await spool.close()
    overwrite_page(tmp_path, leaf_pages(tmp_path, table)[1])
    spool = await open_spool(tmp_path)
    await spool.settle([Settlement(queue_id, 0, Outcome.DELIVERED) for queue_id in ids])
    assert await read_all(spool) == set()
    fresh = await accept(spool, b"goes on")
    await spool.close()
    spool = await open_spool(tmp_path)
    assert await read_all(spool) == {fresh}
    await spool.close()
    assert (Layout(tmp_path).unsettled.exists()) == (table != "waiting")


async def claim_many(spool: EmbeddedSpool, count: int) -> Claim:
    return await spool.claim(
        "example.com", after=None, now_us=0, max_messages=count, max_bytes=1 << 20
    )


async def test_a_torn_line_of_what_is_remembered_harms_no_other(tmp_path: Path) -> None:
    """A file cut in the middle of a line, or overwritten, says what it still can."""
    path = tmp_path / "unsettled"
    unsettled = Unsettled(path, Disk())
    assert unsettled.keys == set()
    keys = [(make_queue_id(T0 + n, 0), n) for n in range(3)]
    unsettled.remember(keys[:2])
    path.write_bytes(path.read_bytes()[:-2])
    unsettled.remember(keys[2:])
    assert Unsettled(path, Disk()).keys == {keys[0], keys[2]}


@pytest.mark.parametrize("part", ["header", "body", "envelope"])
async def test_a_rotten_record_behind_the_mark_costs_only_itself(tmp_path: Path, part: str) -> None:
    """A start that the database lost takes in what lies behind it, and keeps the file."""
    empty = await open_spool(tmp_path)
    await empty.close()
    layout = Layout(tmp_path)
    database = layout.database.read_bytes()
    forged = b"PHm1" + bytes(60)
    spool = await open_spool(tmp_path)
    ids = [await accept(spool, b"body %d" % n + forged) for n in range(4)]
    await spool.close()
    layout.database.write_bytes(database)
    [segment] = layout.segments.iterdir()
    data = bytearray(segment.read_bytes())
    at = data.index(b"body 1")
    data[at + {"header": -20, "body": 3, "envelope": 6 + len(forged) + 4}[part]] ^= 0x10
    segment.write_bytes(data)
    again = await open_spool(tmp_path)
    assert sorted(await everything(again)) == [ids[0], *ids[2:]]
    await again.close()
    assert segment.with_suffix(".spoilt").read_bytes() == bytes(data)


async def test_a_record_inside_a_body_is_never_taken_in(tmp_path: Path) -> None:
    """Whoever writes a sound record into a message cannot make mail of it, whatever rots."""
    layout = Layout(tmp_path)
    first = await open_spool(tmp_path)
    await first.close()
    database = layout.database.read_bytes()
    spool = await open_spool(tmp_path)
    await accept(spool, b"looks sound")
    await spool.close()
    [segment] = layout.segments.iterdir()
    record = segment.read_bytes()
    segment.unlink()
    layout.database.write_bytes(database)
    spool = await open_spool(tmp_path, clock_us=Ticks(T0 + 10**6))
    ids = [await accept(spool, b"Subject: x\r\n\r\n" + record) for _ in range(2)]
    await spool.close()
    layout.database.write_bytes(database)
    [segment] = layout.segments.iterdir()
    data = bytearray(segment.read_bytes())
    data[5] ^= 1
    segment.write_bytes(data)
    spool = await open_spool(tmp_path)
    assert sorted(await everything(spool)) == ids[1:]
    await spool.close()
