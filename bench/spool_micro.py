"""The embedded spool alone, without SMTP: what one message costs on its way in and out.

    python bench/spool_micro.py [--messages N] [--size OCTETS] [--sessions N] [--directory DIR]

`sessions` tasks each begin, write and commit one message after the other, as that
many SMTP sessions would; then the queue is claimed and settled 100 at a time, as
the relay does. Rates are per second of wall time; CPU is of all threads together.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.ports_spool import Cursor, Outcome, Settlement
from posthouse.storage.spool import EmbeddedSpool, SpoolSettings

CLIENT = Client(
    address="192.0.2.1", port=4711, name="mail.sender.example", helo="mail.sender.example"
)


def clock_us() -> int:
    return time.time_ns() // 1000


class Meter:
    """Wall time and CPU of a stretch."""

    def __init__(self) -> None:
        self.wall = time.perf_counter()
        self.cpu = time.process_time()

    def say(self, what: str, count: int) -> None:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        print(f"{what:28} {count / wall:9.0f}/s   {cpu / count * 1e6:7.1f} us CPU each")


async def accept(spool: EmbeddedSpool, messages: int, size: int, sessions: int) -> None:
    body = os.urandom(size)
    left = messages

    async def session(number: int) -> None:
        nonlocal left
        recipient = Recipient(address=f"user{number}@example.com", domain="example.com")
        envelope = Envelope(sender="somebody@sender.example", recipients=(recipient,))
        while left > 0:
            left -= 1
            incoming = spool.begin()
            for at in range(0, size, 65536):
                if not incoming.write(body[at : at + 65536]):
                    await incoming.drain()
            await spool.commit(incoming, envelope=envelope, client=CLIENT)

    await asyncio.gather(*(session(number) for number in range(sessions)))


async def drain(spool: EmbeddedSpool, most: int, *, settle: bool) -> int:
    cursor: Cursor | None = None
    done = 0
    pending = []
    while done < most:
        claim = await spool.claim(
            "example.com", after=cursor, now_us=clock_us(), max_messages=100, max_bytes=16 << 20
        )
        cursor = claim.cursor
        done += len(claim.messages)
        if settle:
            pending.append(
                spool.settle(
                    [
                        Settlement(m.queue_id, r.seq, Outcome.DELIVERED)
                        for m in claim.messages
                        for r in m.recipients
                    ]
                )
            )
        if claim.exhausted:
            break
    await asyncio.gather(*pending)
    return done


def disk_bytes(directory: Path) -> int:
    return sum(f.stat().st_blocks * 512 for f in directory.rglob("*") if f.is_file())


def rss_mib() -> float:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize() / (1 << 20)


async def run(arguments: argparse.Namespace) -> None:
    directory = Path(tempfile.mkdtemp(dir=arguments.directory))
    settings = SpoolSettings(compact_seconds=1.0)
    try:
        spool = await EmbeddedSpool.open(directory, shard=0, settings=settings, clock_us=clock_us)
        done = 0
        while done < arguments.messages:
            part = min(arguments.part or arguments.messages, arguments.messages - done)
            meter = Meter()
            await accept(spool, part, arguments.size, arguments.sessions)
            done += part
            meter.say(f"accept, {done} queued", part)
            if arguments.part:
                meter = Meter()
                meter.say(f"claim 10000, {done} queued", await drain(spool, 10000, settle=False))
        used = disk_bytes(directory)
        print(f"disk {used / done / arguments.size:.3f} of the octets, RSS {rss_mib():.0f} MiB")
        await spool.close()
        meter = Meter()
        spool = await EmbeddedSpool.open(directory, shard=0, settings=settings, clock_us=clock_us)
        print(f"open with {done} queued: {time.perf_counter() - meter.wall:.3f} s")
        meter = Meter()
        print(f"totals: {await spool.totals()} in {time.perf_counter() - meter.wall:.3f} s")
        meter = Meter()
        meter.say("claim", await drain(spool, done, settle=False))
        meter = Meter()
        meter.say("claim and settle", await drain(spool, done, settle=True))
        await asyncio.sleep(2)
        print(f"left on disk {disk_bytes(directory) >> 10} KiB, RSS {rss_mib():.0f} MiB")
        await spool.close()
    finally:
        shutil.rmtree(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20000)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--part", type=int, default=0, help="report after each so many")
    parser.add_argument("--directory", type=Path, default=Path("."))
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
