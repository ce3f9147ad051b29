"""The power fails at every step of the spool's work: nothing answered is lost, nothing torn."""

from __future__ import annotations

import shutil
from pathlib import Path

from fakes.failing_disk import (
    CutDisk,
    Image,
    accept,
    everything,
    open_spool,
    read_body,
    small_settings,
)
from posthouse.ports_spool import Outcome, Settlement
from posthouse.storage.spool import EmbeddedSpool


def make_body(number: int, size: int) -> bytes:
    return (b"%08d:" % number) + bytes((number + n) % 251 for n in range(size))


class Life:
    """Some mail comes, some goes; what was answered is noted as it is."""

    def __init__(self, spool: EmbeddedSpool, disk: CutDisk) -> None:
        self.spool = spool
        self.disk = disk
        self.bodies: dict[int, bytes] = {}

    async def accept(self, *sizes: int) -> list[int]:
        ids = []
        for size in sizes:
            body = make_body(len(self.bodies), size)
            queue_id = await accept(self.spool, body)
            self.bodies[queue_id] = body
            self.disk.promised.add(queue_id)
            self.disk.snap("accepted")
            ids.append(queue_id)
        return ids

    async def deliver(self, *ids: int) -> None:
        self.disk.promised.difference_update(ids)
        await self.spool.settle([Settlement(q, 0, Outcome.DELIVERED) for q in ids])
        self.disk.removed.update(ids)
        self.disk.snap("delivered")


async def check(image: Image, bodies: dict[int, bytes], directory: Path) -> None:
    image.restore(directory)
    spool = await open_spool(directory)
    try:
        found = await everything(spool)
        missing = image.promised - set(found)
        assert not missing, f"{image.step}: lost {missing}"
        back = image.removed & set(found)
        assert not back, f"{image.step}: came back {back}"
        for queue_id, message in found.items():
            [row] = message.recipients
            assert (row.address, row.reason) == ("user@example.com", ""), image.step
            # A message under way when the power failed may be there, but only whole.
            body = await read_body(spool, queue_id)
            expected = bodies.get(queue_id)
            assert expected is None or body == expected, image.step
            assert make_body(int(body[:8]), len(body) - 9) == body, image.step
    finally:
        await spool.close()
    shutil.rmtree(directory)


async def run(tmp_path: Path, story: str) -> None:
    directory = tmp_path / "shard"
    disk = CutDisk(directory)
    spool = await open_spool(directory, disk, settings=small_settings(segment_bytes=6000))
    life = Life(spool, disk)
    disk.begin()
    if story == "small":
        await life.accept(10, 2000, 2000, 2000, 2000)
    elif story == "large":
        await life.accept(100, 20_000, 100)
    else:
        ids = await life.accept(2000, 2000, 2000, 100, 20_000, 50)
        await life.deliver(ids[0], ids[2])
        more = await life.accept(1000, 3000)
        await life.deliver(ids[1], ids[4])
        await spool.compact()
        disk.snap("compacted")
        await life.accept(1000)
        await life.deliver(more[0], ids[3])
    await spool.close()
    assert len(disk.images) > 20
    for number, image in enumerate(disk.images):
        await check(image, life.bodies, tmp_path / f"cut{number}")


async def test_small_messages_survive_a_cut_at_every_step(tmp_path: Path) -> None:
    """Appending, flushing, committing, rolling to a new segment."""
    await run(tmp_path, "small")


async def test_a_large_message_survives_a_cut_at_every_step(tmp_path: Path) -> None:
    """Its own file, the record that points to it, its rows."""
    await run(tmp_path, "large")


async def test_coming_and_going_survives_a_cut_at_every_step(tmp_path: Path) -> None:
    """Settling, giving files back and compaction neither lose nor bring back anything."""
    await run(tmp_path, "both")


THREE = ("a@example.com", "b@example.com", "a@example.net")


def keys_of(queue_id: int, *seqs: int) -> set[int]:
    """One number for each of these recipients."""
    return {queue_id * 10 + seq for seq in seqs or range(len(THREE))}


async def recipients_of(spool: EmbeddedSpool) -> set[int]:
    found = await everything(spool)
    return {key for m in found.values() for r in m.recipients for key in keys_of(m.queue_id, r.seq)}


async def test_recipients_settled_apart_survive_a_cut_at_every_step(tmp_path: Path) -> None:
    """Partly settled before there are rows, or all of it; and a cut again during the start."""
    directory = tmp_path / "shard"
    disk = CutDisk(directory)
    spool = await open_spool(directory, disk, settings=small_settings(segment_bytes=2000))
    disk.begin()

    async def take(size: int) -> int:
        queue_id = await accept(spool, make_body(0, size), *THREE)
        disk.promised |= keys_of(queue_id)
        disk.snap("accepted")
        return queue_id

    async def settle(queue_id: int, *seqs: int) -> None:
        disk.promised -= keys_of(queue_id, *seqs)
        await spool.settle([Settlement(queue_id, seq, Outcome.DELIVERED) for seq in seqs])
        disk.removed |= keys_of(queue_id, *seqs)
        disk.snap("settled")

    for size in (600, 9000):
        partly, through = await take(size), await take(size)
        await settle(partly, 1)
        await settle(await take(size), 0, 1, 2)
        await settle(through, 0, 1, 2)
        if size < 1000:
            await settle(partly, 0, 2)
    await spool.close()
    kinds = {
        (frozenset(i.files.items()), i.promised, i.removed): i for i in disk.images
    }  # many are alike
    assert len(kinds) > 50
    for number, image in enumerate(kinds.values()):
        once, twice = tmp_path / f"once{number}", tmp_path / f"twice{number}"
        image.restore(once)
        again = await open_spool(once)
        if number % 4 == 0:  # the power fails anew before anything else is written
            shutil.copytree(once, twice)
            await again.close()
            again = await open_spool(twice)
        there = await recipients_of(again)
        assert image.promised <= there, f"{image.step}: lost"
        assert not image.removed & there, f"{image.step}: came back"
        for queue_id in {key // 10 for key in there}:
            body = await read_body(again, queue_id)
            assert body == make_body(0, len(body) - 9), image.step
        await again.close()
