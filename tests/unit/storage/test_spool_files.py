"""The files of a shard: given back, compacted, locked, cleaned at a start, read after a restart."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import apsw
import pytest

from fakes.failing_disk import (
    CLIENT,
    T0,
    Ticks,
    accept,
    everything,
    open_spool,
    read_body,
    small_settings,
)
from posthouse.errors import StorageBroken, StorageBusy
from posthouse.mail.envelope import Envelope, Recipient
from posthouse.mail.queueid import format_queue_id
from posthouse.ports_spool import OperatorAction, Outcome, Selection, Settlement
from posthouse.storage import schema
from posthouse.storage.segments import Layout
from posthouse.storage.spool import EmbeddedSpool
from posthouse.storage.spool_disk import Disk


async def deliver(spool: EmbeddedSpool, *ids: int) -> None:
    await spool.settle([Settlement(queue_id, 0, Outcome.DELIVERED) for queue_id in ids])


async def rest(spool: EmbeddedSpool) -> None:
    """Wait until the writer has done its upkeep (the test's time limit guards it)."""
    await spool._writer.put_call(lambda batch, connection: None)
    while not spool._writer.resting:
        await asyncio.sleep(0.001)


def segments(directory: Path) -> list[str]:
    return sorted(path.name for path in Layout(directory).segments.iterdir())


async def test_segments_are_given_back_when_empty(tmp_path: Path) -> None:
    """After a drain no private file is left, and of segments at most a small open one."""
    spool = await open_spool(tmp_path)
    ids = [await accept(spool, bytes(7000)) for _ in range(40)]
    ids += [await accept(spool, bytes(50_000)) for _ in range(3)]
    assert len(segments(tmp_path)) > 3
    assert len(list(Layout(tmp_path).private.iterdir())) == 3
    await deliver(spool, *ids)
    await rest(spool)
    left = list(Layout(tmp_path).segments.iterdir())
    assert sum(path.stat().st_size for path in left) < 8 << 10
    assert list(Layout(tmp_path).private.iterdir()) == []
    assert await accept(spool, b"and it goes on") > ids[-1]
    await spool.close()


async def test_deleting_gives_back_too(tmp_path: Path) -> None:
    """What an operator deletes frees its octets."""
    spool = await open_spool(tmp_path)
    for _ in range(20):
        await accept(spool, bytes(7000))
    assert len(segments(tmp_path)) > 1
    assert await spool.act(Selection(), OperatorAction.DELETE, now_us=T0) == 20
    await rest(spool)
    assert len(segments(tmp_path)) <= 1
    await spool.close()


async def test_survivors_of_a_nearly_empty_segment_are_copied_on(tmp_path: Path) -> None:
    """A few held messages do not keep big files alive, and read as before."""
    spool = await open_spool(tmp_path)
    bodies = {}
    for n in range(60):
        body = b"%d" % n + bytes(6000)
        bodies[await accept(spool, body)] = body
    kept = list(bodies)[::20]
    await deliver(spool, *(queue_id for queue_id in bodies if queue_id not in kept))
    await rest(spool)
    before = segments(tmp_path)
    assert len(before) >= 3
    assert await spool.compact() == 3
    await rest(spool)
    after = segments(tmp_path)
    assert len(set(before) & set(after)) <= 1
    for queue_id in kept:
        assert await read_body(spool, queue_id) == bodies[queue_id]
    found = await spool.claim(
        "example.com", after=None, now_us=T0, max_messages=9, max_bytes=1 << 20
    )
    assert [m.body for m in found.messages] == [bodies[queue_id] for queue_id in kept]
    assert await spool.compact() == 0
    await deliver(spool, *kept)
    await spool.close()
    again = await open_spool(tmp_path)
    assert await everything(again) == {}
    assert segments(tmp_path) == []
    await again.close()


async def test_full_segments_are_left_alone(tmp_path: Path) -> None:
    """Compaction copies nothing that is mostly alive."""
    spool = await open_spool(tmp_path)
    ids = [await accept(spool, bytes(6000)) for _ in range(30)]
    await deliver(spool, *ids[::3])
    assert await spool.compact() == 0
    await spool.close()


async def test_compaction_leaves_a_damaged_record_where_it_is(tmp_path: Path) -> None:
    """What can perhaps still be saved by hand is not thrown away."""
    spool = await open_spool(tmp_path)
    ids = [await accept(spool, b"%03d" % n + bytes(6000)) for n in range(30)]
    path = Layout(tmp_path).segments / segments(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[0] ^= 0xFF
    path.write_bytes(data)
    await deliver(spool, *ids[1:])
    await rest(spool)
    assert await spool.compact() == 0
    assert path.exists()
    await spool.close()


async def test_a_shard_has_one_owner(tmp_path: Path) -> None:
    """A second opener is told so; when the first has closed, it may."""
    first = await open_spool(tmp_path)
    with pytest.raises(StorageBusy):
        await open_spool(tmp_path)
    await first.close()
    await (await open_spool(tmp_path)).close()


async def test_nobody_else_may_read_the_mail(tmp_path: Path) -> None:
    """Directories and files are for the owner alone."""
    spool = await open_spool(tmp_path / "shard")
    await accept(spool, b"small")
    await accept(spool, bytes(50_000))
    for path in [tmp_path / "shard", *(tmp_path / "shard").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    await spool.close()


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    """Bodies, states, due times, attempts and replies outlive the process."""
    spool = await open_spool(tmp_path)
    small = await accept(spool, b"small", "a@example.com", "b@example.net")
    large = await accept(spool, bytes(50_000))
    await spool.settle(
        [
            Settlement(small, 0, Outcome.DEFERRED, due_us=T0 + 99, reason="r", reply="451 x"),
            Settlement(small, 1, Outcome.HELD, reason="h", reply="550 y"),
        ]
    )
    before = await everything(spool)
    await spool.close()
    again = await open_spool(tmp_path)
    assert await everything(again) == before
    assert await read_body(again, small) == b"small"
    assert await read_body(again, large) == bytes(50_000)
    await again.close()


async def test_queue_ids_ascend_over_a_restart_with_the_clock_set_back(tmp_path: Path) -> None:
    """Also when nothing is left in the queue; and the new mail is due."""
    spool = await open_spool(tmp_path, clock_us=Ticks(T0 + 10**9))
    first = await accept(spool, bytes(50_000))
    await deliver(spool, first)
    await spool.close()
    clock = Ticks(T0)
    again = await open_spool(tmp_path, clock_us=clock)
    second = await accept(again, b"x")
    assert second > first
    found = await again.claim(
        "example.com", after=None, now_us=clock(), max_messages=9, max_bytes=100
    )
    assert [m.queue_id for m in found.messages] == [second]
    await again.close()


async def test_a_start_removes_files_that_no_row_names(tmp_path: Path) -> None:
    """Half-written large messages and stray segments go; nothing else."""
    spool = await open_spool(tmp_path)
    kept = await accept(spool, bytes(50_000))
    small = await accept(spool, b"x")
    await spool.close()
    layout = Layout(tmp_path)
    layout.private_path(kept + 256).write_bytes(b"half a message")
    layout.segment_path(77).write_bytes(b"PHm1 torn")
    again = await open_spool(tmp_path)
    assert [p.name for p in layout.private.iterdir()] == [f"{format_queue_id(kept)}.msg"]
    assert not layout.segment_path(77).exists()
    assert sorted(await everything(again)) == [kept, small]
    await again.close()


async def test_a_discarded_large_message_leaves_no_file(tmp_path: Path) -> None:
    """Its private file is removed at once."""
    spool = await open_spool(tmp_path)
    incoming = spool.begin()
    incoming.write(bytes(50_000))
    await incoming.drain()
    assert list(Layout(tmp_path).private.iterdir())
    incoming.write(bytes(50_000))
    incoming.discard()
    await spool.close()
    assert list(Layout(tmp_path).private.iterdir()) == []


async def test_writing_asks_for_a_rest_when_much_waits(tmp_path: Path) -> None:
    """About a mebibyte may wait for the disk, not more."""
    spool = await open_spool(tmp_path)
    incoming = spool.begin()
    piece = bytes(64 << 10)
    written = 0
    while incoming.write(piece):
        written += len(piece)
    assert written <= 2 << 20
    await incoming.drain()
    assert incoming.write(piece)
    incoming.discard()
    await spool.close()


class CountingDisk(Disk):
    """Counts flushes of segments."""

    flushes = 0

    def flush(self, fd: int) -> None:
        self.flushes += ".seg" in os.readlink(f"/proc/self/fd/{fd}")
        super().flush(fd)


async def test_messages_that_come_in_together_share_a_flush(tmp_path: Path) -> None:
    """A flush waits a moment for what is being received, and not for one that takes its time."""
    disk = CountingDisk()
    spool = await open_spool(tmp_path, disk)
    envelope = Envelope(
        sender="", recipients=(Recipient(address="a@example.com", domain="example.com"),)
    )
    first, second, slow = spool.begin(), spool.begin(), spool.begin()
    one = spool.commit(first, envelope=envelope, client=CLIENT)
    two = spool.commit(second, envelope=envelope, client=CLIENT)
    slow.discard()
    await asyncio.gather(one, two)
    assert disk.flushes == 1
    slow, third = spool.begin(), spool.begin()
    await spool.commit(third, envelope=envelope, client=CLIENT)
    assert disk.flushes == 2
    slow.discard()
    await spool.close()


async def test_closing_finishes_what_was_handed_over(tmp_path: Path) -> None:
    """Commits and settlements under way are durable when close returns."""
    spool = await open_spool(tmp_path)
    envelope = Envelope(
        sender="", recipients=(Recipient(address="a@example.com", domain="example.com"),)
    )
    waiting = []
    for size in (10, 50_000):
        incoming = spool.begin()
        incoming.write(bytes(size))
        waiting.append(spool.commit(incoming, envelope=envelope, client=CLIENT))
    await spool.close()
    for future in waiting:
        await future
    assert spool.intake_problem() is not None
    with pytest.raises(StorageBroken):
        spool.begin()
    again = await open_spool(tmp_path)
    assert len(await everything(again)) == 2
    await again.close()


async def test_the_database_shrinks_after_a_great_drain(tmp_path: Path) -> None:
    """Pages are given back in small portions once most of them are free."""
    spool = await open_spool(tmp_path, settings=small_settings(wal_pages=20))
    addresses = [f"a-fairly-long-mailbox-name-{n}@example.com" for n in range(1000)]
    ids = [await accept(spool, b"x", *addresses) for _ in range(60)]
    await spool._writer.put_call(lambda batch, connection: None)
    database = Layout(tmp_path).database
    full = database.stat().st_size
    await spool.act(Selection(), OperatorAction.DELETE, now_us=T0)
    while database.stat().st_size > full / 2:
        await asyncio.sleep(0.001)
    assert len(ids) == 60
    assert await accept(spool, b"x") > ids[-1]
    await spool.close()


def test_an_old_sqlite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions with the WAL-reset bug are not trusted with mail."""
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    with pytest.raises(StorageBroken):
        schema.check_library()
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.3")
    schema.check_library()


async def test_a_database_of_another_layout_is_refused(tmp_path: Path) -> None:
    """A newer Posthouse's files are not touched."""
    await (await open_spool(tmp_path)).close()
    connection = apsw.Connection(os.fspath(Layout(tmp_path).database))
    connection.pragma("user_version", schema.LAYOUT_VERSION + 1)
    connection.close()
    with pytest.raises(StorageBroken):
        await open_spool(tmp_path)


async def test_files_that_a_power_cut_brings_back_bring_no_mail_back(tmp_path: Path) -> None:
    """Unlinking is durable before it is noted, and a file that returns is known by its row."""
    spool = await open_spool(tmp_path)
    ids = [await accept(spool, bytes(4000)) for _ in range(40)]
    before = {path: path.read_bytes() for path in Layout(tmp_path).segments.iterdir()}
    await deliver(spool, *ids)
    await rest(spool)
    await spool.close()
    for path, content in before.items():
        path.write_bytes(content)
    again = await open_spool(tmp_path)
    assert await everything(again) == {}
    await again.close()


async def test_a_copy_whose_move_was_not_committed_does_not_come_back(tmp_path: Path) -> None:
    """A start takes in no copies: their messages may have been delivered meanwhile."""
    spool = await open_spool(tmp_path)
    ids = [await accept(spool, bytes(4000)) for _ in range(40)]
    await deliver(spool, *ids[1:16])
    copies = spool._compactor.next_copies()
    assert [place.queue_id for place, _ in copies] == ids[:1]
    # As if the process died between the flush of the copies and the commit of the move.
    await spool._writer.put_call(
        lambda batch, connection: spool._writer._segments.append([copies[0][1]]) and None
    )
    await deliver(spool, ids[0])
    await spool.close()
    again = await open_spool(tmp_path)
    assert sorted(await everything(again)) == ids[16:]
    await again.close()


async def test_what_was_settled_while_it_was_copied_is_not_moved(tmp_path: Path) -> None:
    """The writer looks again; and a move that fails takes its copies back."""
    spool = await open_spool(tmp_path)
    ids = [await accept(spool, bytes(4000)) for _ in range(40)]
    await deliver(spool, *ids[2:15])
    copies = spool._compactor.next_copies()
    await deliver(spool, ids[0])
    await spool._writer.put_copies(copies)
    appended = spool._writer._segments
    number, end = appended.number, appended.end
    assert await read_body(spool, ids[1]) == bytes(4000)
    await spool._writer.put_copies(copies)  # moved before: nothing to do
    assert (appended.number, appended.end) == (number, end)
    await deliver(spool, *ids[16:30])
    await spool._writer.put_call(
        lambda batch, c: (
            c.execute(
                "CREATE TEMP TRIGGER no BEFORE UPDATE ON main.message BEGIN "
                "SELECT raise(ABORT, 'no'); END"
            )
            and None
        )
    )
    copies = spool._compactor.next_copies()
    assert copies
    with pytest.raises(StorageBroken):
        await spool._writer.put_copies(copies)
    assert not appended.is_open
    assert Layout(tmp_path).segment_path(number).stat().st_size == end
    await spool.close()


async def test_unfinished_messages_share_a_bounded_memory(tmp_path: Path) -> None:
    """What exceeds it goes to the disk at once; what is finished or given up makes room."""
    spool = await open_spool(tmp_path, settings=small_settings(memory_bytes=10_000))
    many = [spool.begin() for _ in range(5)]
    for incoming in many:
        incoming.write(bytes(4000))
    assert [incoming.spill is None for incoming in many] == [True, True, False, False, False]
    envelope = Envelope(
        sender="", recipients=(Recipient(address="a@example.com", domain="example.com"),)
    )
    for incoming in many[1:4]:
        await spool.commit(incoming, envelope=envelope, client=CLIENT)
    many[0].discard()
    many[4].discard()
    assert spool._memory.used == 0
    found = await everything(spool)
    assert len(found) == 3
    for queue_id in found:
        assert await read_body(spool, queue_id) == bytes(4000)
    await spool.close()


async def test_a_large_commit_that_is_cancelled_leaves_no_file(tmp_path: Path) -> None:
    """Its private file goes once nothing writes to it, unless the message was taken."""
    spool = await open_spool(tmp_path / "not" / "there" / "yet")
    incoming = spool.begin()
    incoming.write(bytes(50_000))
    envelope = Envelope(
        sender="", recipients=(Recipient(address="a@example.com", domain="example.com"),)
    )
    commit = asyncio.ensure_future(spool.commit(incoming, envelope=envelope, client=CLIENT))
    await asyncio.sleep(0)
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit
    found = await everything(spool)
    await spool.close()
    left = list(Layout(tmp_path / "not" / "there" / "yet").private.iterdir())
    assert len(left) == len(found) == 0


async def test_mail_that_passes_through_leaves_no_row(tmp_path: Path) -> None:
    """What is delivered to all before its rows were written never gets any, and does not come back."""
    spool = await open_spool(tmp_path)
    rows: list[int] = []
    spool._opened.connection.set_update_hook(
        lambda kind, database, table, row: rows.append(row) if table == "message" else None
    )
    first, second, third = await asyncio.gather(
        accept(spool, b"1"),
        accept(spool, b"2", "a@example.com", "b@example.com"),
        accept(spool, b"3"),
    )
    await spool.settle(
        [
            Settlement(first, 0, Outcome.DELIVERED),
            Settlement(second, 1, Outcome.DELIVERED),
            Settlement(third, 0, Outcome.DEFERRED, due_us=T0),
        ]
    )
    found = await everything(spool)
    assert sorted(found) == [second, third]
    assert [row.address for row in found[second].recipients] == ["a@example.com"]
    assert first not in rows
    await spool.settle([Settlement(second, 0, Outcome.DELIVERED)])
    await spool.settle([Settlement(third, 0, Outcome.DELIVERED)])
    last = await accept(spool, b"4")
    await spool.settle([Settlement(last, 0, Outcome.DELIVERED)])
    await spool.close()
    again = await open_spool(tmp_path)
    assert await everything(again) == {}
    assert await accept(again, b"5") > last
    assert not [name for name in (tmp_path / "segments").iterdir() if name.stat().st_size > 1000]
    await again.close()
