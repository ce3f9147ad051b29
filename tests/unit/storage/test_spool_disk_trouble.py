"""A full, broken or read-only disk: temporary failures, nothing answered is lost, intake returns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import apsw
import pytest

from fakes.failing_disk import (
    IO_ERROR,
    NO_SPACE,
    READ_ONLY,
    T0,
    TOO_MANY_FILES,
    DribblingDisk,
    FailingDisk,
    Ticks,
    accept,
    everything,
    open_spool,
    read_body,
    small_settings,
)
from posthouse.errors import StorageBroken, StorageError, StorageFull
from posthouse.ports_spool import Claim, Outcome, Settlement
from posthouse.storage import schema
from posthouse.storage.spool import EmbeddedSpool
from posthouse.storage.spool_batch import Batch
from posthouse.storage.spool_disk import Disk
from posthouse.storage.spool_health import Health

LARGE = 20_000


@pytest.fixture
def disk() -> FailingDisk:
    return FailingDisk()


@pytest.fixture
async def spool(tmp_path: Path, disk: FailingDisk) -> AsyncIterator[EmbeddedSpool]:
    spool = await open_spool(tmp_path / "shard", disk)
    yield spool
    disk.faults.clear()
    await spool.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something has come about (the test's time limit guards it)."""
    while not condition():
        await asyncio.sleep(0.001)


async def comes_back(spool: EmbeddedSpool) -> None:
    await until(lambda: spool.intake_problem() is None)


@pytest.mark.parametrize("size", [100, LARGE])
@pytest.mark.parametrize(
    ("method", "code", "kind"),
    [
        ("pwritev", NO_SPACE, StorageFull),
        ("pwritev", IO_ERROR, StorageBroken),
        ("flush", IO_ERROR, StorageBroken),
        ("create", TOO_MANY_FILES, StorageBroken),
        ("create", READ_ONLY, StorageBroken),
        ("flush_directory", IO_ERROR, StorageBroken),
    ],
)
async def test_a_failing_call_refuses_mail_until_it_works_again(
    disk: FailingDisk,
    tmp_path: Path,
    method: str,
    code: int,
    kind: type[StorageError],
    size: int,
) -> None:
    """The commit fails for now, no row appears, what was there stays, and intake comes back."""
    body = bytes(size)
    settings = small_settings(segment_bytes=1)  # each batch begins another
    spool = await open_spool(tmp_path / "shard", disk, settings=settings)
    kept = [await accept(spool, bytes(70_000)), await accept(spool, b"small")]
    disk.faults[method] = code
    with pytest.raises(kind):
        await accept(spool, body)
    assert spool.intake_problem() is not None
    with pytest.raises(kind):
        spool.begin()
    assert sorted(await everything(spool)) == kept
    disk.faults.clear()
    await comes_back(spool)
    kept.append(await accept(spool, body))
    await spool.close()
    again = await open_spool(tmp_path / "shard")
    assert sorted(await everything(again)) == kept
    assert await read_body(again, kept[-1]) == body
    await again.close()


async def test_a_segment_whose_flush_failed_is_never_used_again(
    spool: EmbeddedSpool, disk: FailingDisk, tmp_path: Path
) -> None:
    """The next message goes to a new file, and the refused one is cut off."""
    first = await accept(spool, b"first")
    segments = tmp_path / "shard" / "segments"
    [before] = segments.iterdir()
    size = before.stat().st_size
    disk.faults["flush"] = IO_ERROR
    with pytest.raises(StorageBroken):
        await accept(spool, b"refused")
    disk.faults.clear()
    await comes_back(spool)
    last = await accept(spool, b"last")
    assert before.stat().st_size == size
    assert len(list(segments.iterdir())) == 2
    assert sorted(await everything(spool)) == [first, last]


async def test_a_refused_message_does_not_come_back_after_a_crash(
    spool: EmbeddedSpool, disk: FailingDisk, tmp_path: Path
) -> None:
    """A start takes in no record that was cut off, also when it could not be cut."""
    kept = await accept(spool, b"kept")
    disk.faults["flush"] = IO_ERROR
    with pytest.raises(StorageBroken):
        await accept(spool, b"refused")
    await spool.close()
    again = await open_spool(tmp_path / "shard")
    assert list(await everything(again)) == [kept]
    await again.close()


async def test_a_failing_wal_fails_settlements_but_loses_no_mail(
    spool: EmbeddedSpool, disk: FailingDisk, tmp_path: Path
) -> None:
    """Settling says so; mail that was accepted stands; when the disk works, so does all."""
    ids = [await accept(spool, b"x") for _ in range(3)]
    disk.faults["flush"] = IO_ERROR
    disk.only = "-wal"
    with pytest.raises(StorageBroken):
        await spool.settle([Settlement(ids[0], 0, Outcome.DELIVERED)])
    disk.faults.clear()
    await comes_back(spool)
    await spool.settle([Settlement(ids[1], 0, Outcome.DELIVERED)])
    await spool.close()
    again = await open_spool(tmp_path / "shard")
    assert ids[2] in await everything(again)
    assert ids[1] not in await everything(again)
    await again.close()


async def test_a_large_message_is_refused_while_it_arrives(
    spool: EmbeddedSpool, disk: FailingDisk, tmp_path: Path
) -> None:
    """drain tells of a full disk, and the file goes."""
    incoming = spool.begin()
    incoming.write(bytes(LARGE))
    await incoming.drain()
    disk.faults["pwritev"] = NO_SPACE
    incoming.write(bytes(LARGE))
    with pytest.raises(StorageFull):
        await incoming.drain()
    assert incoming.write(b"more") is False
    incoming.discard()
    await spool.close()
    assert list((tmp_path / "shard" / "private").iterdir()) == []


MANY = tuple(f"a-rather-long-address-{n}@example.com" for n in range(500))


async def limit_pages(spool: EmbeddedSpool, pages: int) -> None:
    await spool._writer._put(lambda _, c: c.pragma("max_page_count", pages), in_transaction=False)


async def test_a_full_database_keeps_what_was_answered(tmp_path: Path) -> None:
    """A message whose rows SQLite cannot write stands; no other is taken until they are written."""
    spool = await open_spool(tmp_path / "shard")
    kept = [await accept(spool, b"kept")]
    heard: list[int] = []
    spool.set_accept_listener(lambda message: heard.append(message.queue_id))
    await limit_pages(spool, 1)
    kept.append(await accept(spool, b"durable", *MANY))
    await until(lambda: spool.intake_problem() is not None)
    with pytest.raises(StorageFull):
        await accept(spool, b"refused")
    assert heard == kept[1:]
    assert list(await everything(spool)) == kept[:1]
    told = f"; {len(MANY)} accepted recipients are on disk but in no list yet"
    assert (spool.intake_problem() or "").endswith(told)
    await limit_pages(spool, 1 << 30)
    await comes_back(spool)
    assert sorted(await everything(spool)) == kept
    kept.append(await accept(spool, b"taken", *MANY))
    await spool.close()
    again = await open_spool(tmp_path / "shard")
    assert sorted(await everything(again)) == kept
    await again.close()


async def test_a_start_takes_in_what_the_database_never_took(tmp_path: Path) -> None:
    """Closed with a database that is still full, the spool has the message at the next start."""
    spool = await open_spool(tmp_path / "shard")
    kept = [await accept(spool, b"kept")]
    await limit_pages(spool, 1)
    kept.append(await accept(spool, b"durable", *MANY))
    await until(lambda: spool.intake_problem() is not None)
    await spool.close()
    again = await open_spool(tmp_path / "shard")
    found = await everything(again)
    assert sorted(found) == kept
    assert len(found[kept[1]].recipients) == len(MANY)
    await again.close()


async def claim_all(spool: EmbeddedSpool) -> set[int]:
    found = await spool.claim(
        "example.com", after=None, now_us=T0 + 10**9, max_messages=1000, max_bytes=1 << 20
    )
    return {message.queue_id for message in found.messages}


async def test_what_a_start_took_in_is_due_at_once(tmp_path: Path) -> None:
    """The relay sees it though nothing else is written: no other mail need come first."""
    spool = await open_spool(tmp_path / "shard")
    await limit_pages(spool, 1)
    queue_id = await accept(spool, b"durable", *MANY)
    await spool.close()
    again = await open_spool(tmp_path / "shard", clock_us=Ticks(T0 + 1000))
    assert await claim_all(again) == {queue_id}
    await again.close()


async def test_a_full_database_does_not_keep_a_shard_shut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has is sent, what was answered waits for room, over more than one start."""
    directory = tmp_path / "shard"
    spool = await open_spool(directory)
    old = await accept(spool, b"old")
    await everything(spool)
    await limit_pages(spool, 1)
    kept = {await accept(spool, b"durable", *MANY)}
    await until(lambda: spool.intake_problem() is not None)
    await spool.close()

    def open_full(path: Path) -> apsw.Connection:
        connection = open_to_write(path)
        connection.pragma("max_page_count", 1)
        return connection

    open_to_write = schema.open_to_write
    monkeypatch.setattr(schema, "open_to_write", open_full)
    for _ in range(2):
        full = await open_spool(directory, clock_us=Ticks(T0 + 1000))
        assert full.intake_problem() is not None
        with pytest.raises(StorageFull):
            full.begin()
        assert await claim_all(full) == {old}
        await full.close()
    full = await open_spool(directory)
    await full.settle([Settlement(old, 0, Outcome.DELIVERED)])
    await limit_pages(full, 1 << 30)
    await comes_back(full)
    assert await claim_all(full) == kept
    [queue_id] = kept
    assert queue_id < (newer := await accept(full, b"newer"))
    await full.close()
    monkeypatch.undo()
    again = await open_spool(directory)
    assert set(await everything(again)) == {queue_id, newer}
    assert await read_body(again, queue_id) == b"durable"
    await again.close()


async def test_a_large_message_waits_for_its_rows_over_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No start takes its file for one that nobody names."""
    directory = tmp_path / "shard"
    spool = await open_spool(directory)
    await everything(spool)
    await limit_pages(spool, 1)
    queue_id = await accept(spool, bytes(LARGE), *MANY)
    await until(lambda: spool.intake_problem() is not None)
    await spool.close()
    insert = Batch.insert

    def refuse(*_: object, **__: object) -> None:
        raise apsw.CorruptError("a page is damaged")

    monkeypatch.setattr(Batch, "insert", refuse)
    for _ in range(2):
        broken = await open_spool(directory)
        assert broken.intake_problem() is not None
        assert await everything(broken) == {}
        await broken.close()
    monkeypatch.setattr(Batch, "insert", insert)
    again = await open_spool(directory)
    assert await read_body(again, queue_id) == bytes(LARGE)
    await again.close()


async def test_room_is_made_while_rows_cannot_be_written(tmp_path: Path) -> None:
    """Empty segments are given back, but not one with a record whose rows are to come."""
    settings = small_settings(segment_bytes=6000)
    spool = await open_spool(tmp_path / "shard", settings=settings)
    gone = [await accept(spool, bytes(7000)), await accept(spool, b"in the segment behind")]
    await everything(spool)
    await limit_pages(spool, 1)
    queue_id = await accept(spool, b"durable", *MANY)
    await until(lambda: spool.intake_problem() is not None)
    first, second = sorted((tmp_path / "shard" / "segments").iterdir())
    await spool.settle([Settlement(q, 0, Outcome.DELIVERED) for q in gone])
    await until(lambda: not first.exists())
    assert second.exists()
    await limit_pages(spool, 1 << 30)
    await comes_back(spool)
    assert await read_body(spool, queue_id) == b"durable"
    await spool.settle([Settlement(queue_id, seq, Outcome.DELIVERED) for seq in range(len(MANY))])
    await until(lambda: not second.exists())
    await spool.close()


async def test_a_fault_of_ours_costs_no_answered_mail(
    spool: EmbeddedSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong with the rows, the writer lives and writes them later."""
    insert = Batch.insert

    def stumble(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Batch, "insert", stumble)
    queue_id = await accept(spool, b"durable")
    await until(lambda: spool.intake_problem() is not None)
    monkeypatch.setattr(Batch, "insert", insert)
    await comes_back(spool)
    assert list(await everything(spool)) == [queue_id]


async def test_what_has_no_row_yet_is_not_taken_as_settled(tmp_path: Path) -> None:
    """A delivery that cannot be noted is tried again; what has its rows is settled meanwhile."""
    spool = await open_spool(tmp_path / "shard")
    first = await accept(spool, b"first")
    await everything(spool)  # its rows are written
    await limit_pages(spool, 1)
    second = await accept(spool, b"second", *MANY)
    await until(lambda: spool.intake_problem() is not None)
    both = [Settlement(first, 0, Outcome.DELIVERED)]
    both += [Settlement(second, seq, Outcome.DELIVERED) for seq in range(1, len(MANY))]
    with pytest.raises(StorageFull):
        await spool.settle(both)
    assert await everything(spool) == {}
    await limit_pages(spool, 1 << 30)
    await comes_back(spool)
    assert sorted(await everything(spool)) == [second]
    await spool.settle(both)
    assert len((await everything(spool))[second].recipients) == 1
    await spool.settle([Settlement(second, 0, Outcome.DELIVERED)])
    await spool.close()
    again = await open_spool(tmp_path / "shard")
    assert await everything(again) == {}
    await again.close()


async def test_rows_follow_by_themselves(tmp_path: Path) -> None:
    """Nobody has to ask: a moment after its 250 a message has its rows, and the mark is behind it."""
    spool = await open_spool(tmp_path / "shard")
    queue_id = await accept(spool, b"x")
    assert spool._writer.lags
    await until(lambda: not spool._writer.lags)
    assert list(await everything(spool)) == [queue_id]
    await spool.close()


async def test_one_message_that_cannot_be_stored_harms_no_other(spool: EmbeddedSpool) -> None:
    """An address no file can hold fails alone, and is no reason to stop intake."""
    results = await asyncio.gather(
        accept(spool, b"1"),
        accept(spool, b"2", "lone\udcffsurrogate@example.com"),
        accept(spool, b"3"),
        return_exceptions=True,
    )
    assert isinstance(results[1], StorageBroken)
    assert sorted(await everything(spool)) == [results[0], results[2]]
    assert spool.intake_problem() is None


async def test_short_writes_are_finished(tmp_path: Path) -> None:
    """A disk that takes a few octets at a time gets them all, in order."""
    spool = await open_spool(tmp_path / "shard", DribblingDisk())
    body = bytes(range(256)) * 3
    ids = await asyncio.gather(*(accept(spool, body) for _ in range(3)))
    assert [await read_body(spool, queue_id) for queue_id in ids] == [body] * 3
    await spool.close()


async def test_free_space_is_kept(tmp_path: Path, disk: FailingDisk) -> None:
    """Below the margin no mail is taken; the disk is asked at most once a second."""
    now = 0.0
    health = Health(tmp_path, disk, min_free_bytes=1 << 20, monotonic=lambda: now)
    assert health.problem() is None
    disk.free_bytes = 1000
    assert health.problem() is None
    now = 1.5
    problem = health.problem()
    assert isinstance(problem, StorageFull)
    disk.free_bytes = None
    now = 3.0
    assert health.problem() is None


async def test_the_margin_is_small_on_a_small_disk(tmp_path: Path, disk: FailingDisk) -> None:
    """However much is asked for, a few hundredths of the disk are enough."""
    health = Health(tmp_path, disk, min_free_bytes=1 << 62)
    room = disk.room(tmp_path)
    disk.free_bytes = room.f_blocks * room.f_frsize // 20
    assert health.problem() is None


async def test_a_disk_that_cannot_be_asked_takes_no_mail(tmp_path: Path, disk: FailingDisk) -> None:
    """A failing statvfs is a problem like any other."""
    disk.faults["room"] = IO_ERROR
    health = Health(tmp_path, disk, min_free_bytes=0)
    assert health.problem() is not None


class UnreadableDisk(Disk):
    """Opening a segment fails with `code` while it is set."""

    code = 0

    def open_to_read(self, path: Path) -> int:
        if self.code and path.suffix == ".seg":
            raise OSError(self.code, "made up")
        return super().open_to_read(path)


async def claim(spool: EmbeddedSpool) -> Claim:
    return await spool.claim("example.com", after=None, now_us=0, max_messages=9, max_bytes=1 << 20)


async def test_a_lack_of_descriptors_is_no_damage(tmp_path: Path) -> None:
    """However often it happens, the message stays in the queue and goes later."""
    disk = UnreadableDisk()
    spool = await open_spool(tmp_path, disk)
    queue_id = await accept(spool, b"x")
    disk.code = TOO_MANY_FILES
    for _ in range(5):
        with pytest.raises(StorageBroken):
            await claim(spool)
    disk.code = 0
    assert [m.queue_id for m in (await claim(spool)).messages] == [queue_id]
    await spool.close()


async def test_what_the_disk_cannot_read_repeatedly_is_held(tmp_path: Path) -> None:
    """One failing read may be chance; the third in a row sets the message aside."""
    disk = UnreadableDisk()
    spool = await open_spool(tmp_path, disk)
    queue_id = await accept(spool, b"x")
    disk.code = IO_ERROR
    for _ in range(2):
        with pytest.raises(StorageBroken):
            await claim(spool)
    assert (await claim(spool)).messages == ()
    [row] = (await everything(spool))[queue_id].recipients
    assert row.reason.startswith("damaged: ")
    await spool.close()


async def test_files_that_are_gone_are_not_kept_open(tmp_path: Path) -> None:
    """What was delivered gives its room back though a claim had read from it."""
    spool = await open_spool(tmp_path)
    ids = [await accept(spool, bytes(7000)) for _ in range(9)]
    await spool.claim("example.com", after=None, now_us=0, max_messages=9, max_bytes=1 << 20)
    kept = spool._claim_octets._files
    assert kept
    await spool.settle([Settlement(queue_id, 0, Outcome.DELIVERED) for queue_id in ids])
    await until(lambda: not kept)
    await spool.close()


async def test_a_clock_set_back_delays_no_queue(tmp_path: Path) -> None:
    """What was due before is told to be due now."""
    spool = await open_spool(tmp_path, clock_us=Ticks(T0 + 10**10))
    await accept(spool, b"x")
    await spool.close()
    clock = Ticks(T0)
    spool = await open_spool(tmp_path, clock_us=clock)
    assert (await spool.queued_domains())["example.com"] <= clock()
    await spool.close()
