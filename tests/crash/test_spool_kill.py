"""kill -9 under load: every acknowledged message is there, none torn, none that went comes back.

Run as a program, this file is the victim: it accepts and delivers, and says so on
standard output, a line for each fact.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.ports_spool import Outcome, Selection, Settlement
from posthouse.storage.spool import EmbeddedSpool, SpoolSettings

SETTINGS = SpoolSettings(
    segment_bytes=256 << 10,
    spill_bytes=16 << 10,
    min_free_bytes=0,
    wal_pages=50,
    compact_seconds=0.02,
    compact_bytes=1 << 10,
)
CLIENT = Client(address="192.0.2.1", port=4711)
ROUNDS = 6


def clock_us() -> int:
    return time.time_ns() // 1000


async def open_spool(directory: Path) -> EmbeddedSpool:
    return await EmbeddedSpool.open(directory, shard=0, settings=SETTINGS, clock_us=clock_us)


# --------------------------------------------------------------------------- the victim


def say(fact: str, queue_id: int) -> None:
    os.write(1, f"{fact} {queue_id}\n".encode())


async def live(directory: Path) -> None:
    spool = await open_spool(directory)
    dice = random.Random()

    async def receive() -> None:
        while True:
            content = dice.randbytes(dice.choice((10, 500, 4000, 4000, 40_000)))
            body = hashlib.sha256(content).hexdigest().encode() + content
            incoming = spool.begin()
            for at in range(0, len(body), 5000):
                if not incoming.write(body[at : at + 5000]):
                    await incoming.drain()
            recipients = tuple(
                Recipient(address=f"u{n}@example.com", domain="example.com")
                for n in range(dice.choice((1, 1, 3)))
            )
            envelope = Envelope(sender="a@sender.example", recipients=recipients)
            await spool.commit(incoming, envelope=envelope, client=CLIENT)
            say("accepted", incoming.queue_id)

    async def deliver() -> None:
        while True:
            claim = await spool.claim(
                "example.com", after=None, now_us=clock_us(), max_messages=9, max_bytes=1 << 20
            )
            going = [m for m in claim.messages if m.queue_id % 5]  # some stay: compaction
            for message in going:
                say("going", message.queue_id)
            await spool.settle(
                [
                    Settlement(m.queue_id, r.seq, Outcome.DELIVERED)
                    for m in going
                    for r in m.recipients
                ]
            )
            for message in going:
                say("gone", message.queue_id)

    await asyncio.gather(deliver(), *(receive() for _ in range(12)))


# --------------------------------------------------------------------------- the test


async def check(directory: Path, facts: dict[str, set[int]]) -> None:
    spool = await open_spool(directory)
    after: int | None = None
    found = set()

    while page := await spool.list_messages(Selection(), after=after, limit=500):
        after = page[-1].queue_id
        for message in page:
            found.add(message.queue_id)
            body = await spool.open_body(message.queue_id)
            digest, content = await body.read(64), b""
            while piece := await body.read(1 << 20):
                content += piece
            body.close()
            assert hashlib.sha256(content).hexdigest().encode() == digest
            assert all(row.reason == "" for row in message.recipients)
    await spool.close()
    assert not facts["accepted"] - facts["going"] - found
    assert not facts["gone"] & found


async def test_nothing_acknowledged_is_lost_to_kill_9(tmp_path: Path) -> None:
    """After each of several kills at random moments the spool holds what it promised."""
    directory = tmp_path / "shard"
    facts: dict[str, set[int]] = {"accepted": set(), "going": set(), "gone": set()}
    for _ in range(ROUNDS):
        enough = random.randrange(1, 1500)
        victim = await asyncio.create_subprocess_exec(
            sys.executable, __file__, str(directory), stdout=subprocess.PIPE
        )
        assert victim.stdout is not None
        lines = 0
        killed = False
        while line := await victim.stdout.readline():
            lines += 1
            if lines >= enough and not killed:
                killed = True
                victim.kill()
            if line.endswith(b"\n"):
                fact, queue_id = line.split()
                facts[fact.decode()].add(int(queue_id))
        await victim.wait()
        assert killed, "the victim ended by itself"
        await check(directory, facts)
    assert facts["accepted"]


if __name__ == "__main__":
    asyncio.run(live(Path(sys.argv[1])))
