"""The spool and the recipient look-up without SMTP, to see what is left for the rest.

Ours only: Postfix's queue has no such door. The speed of the bare hash stands
beside the look-up, as its lower bound.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from bench.stage import KNOWN, Row, Side, Stage
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.ports_spool import Outcome, QueuedMessage, Settlement
from posthouse.storage.recipient_lists import RecipientIndexes
from posthouse.storage.spool import EmbeddedSpool, SpoolSettings

ROUNDS = 1

ROWS = (
    Row(name="spool_accept", what="spool alone: accept 4 KiB, 20 at a time", unit="msg/s"),
    Row(name="spool_accept_64k", what="spool alone: accept 64 KiB, 20 at a time", unit="msg/s"),
    Row(name="spool_claim", what="spool alone: claim with bodies, 4 KiB", unit="msg/s"),
    Row(name="spool_settle", what="spool alone: settle as delivered, 100 at a time", unit="msg/s"),
    Row(name="lookup_known", what="recipient look-up, known", unit="ns", better="less"),
    Row(name="lookup_unknown", what="recipient look-up, unknown", unit="ns", better="less"),
    Row(name="lookup_hash", what="the hash alone (BLAKE2b, 16 octets)", unit="ns", better="less"),
    Row(name="lookup_build", what="recipient list of 200,000: build", unit="s", better="less"),
)

_CLIENT = Client(address="192.0.2.1", port=40000, helo="client.example", protocol="ESMTP")
_SESSIONS = 20


def measure(stage: Stage, side: Side) -> dict[str, float]:
    """A shard in the run's directory, in this process."""
    if side != "posthouse":
        return {}
    count = stage.pick(20_000, 2000)
    found = asyncio.run(_spool(stage.root / "shard", count, stage.pick(2000, 300)))
    return {**found, **_lookups(stage)}


def _now_us() -> int:
    return time.time_ns() // 1000


async def _spool(directory: Path, count: int, large: int) -> dict[str, float]:
    spool = await EmbeddedSpool.open(directory, shard=0, settings=SpoolSettings(), clock_us=_now_us)
    try:
        took_large = await _accept(spool, large, b"y" * 65536)
        taken = await _claim(spool, large)
        await _settle(spool, taken[0])
        took = await _accept(spool, count, b"x" * 4096)
        messages, claiming = await _claim(spool, count)
        settling = await _settle(spool, messages)
    finally:
        await spool.close()
    return {
        "spool_accept": count / took,
        "spool_accept_64k": large / took_large,
        "spool_claim": count / claiming,
        "spool_settle": count / settling,
    }


async def _accept(spool: EmbeddedSpool, count: int, body: bytes) -> float:
    left = count

    async def session() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            envelope = Envelope(
                sender="sender@elsewhere.example",
                recipients=(Recipient(address=f"{left}user@example.com", domain="example.com"),),
            )
            incoming = spool.begin()
            if not incoming.write(body):
                await incoming.drain()
            await spool.commit(incoming, envelope=envelope, client=_CLIENT)

    began = time.perf_counter()
    await asyncio.gather(*(session() for _ in range(_SESSIONS)))
    return time.perf_counter() - began


async def _claim(spool: EmbeddedSpool, count: int) -> tuple[list[QueuedMessage], float]:
    messages: list[QueuedMessage] = []
    cursor = None
    began = time.perf_counter()
    while len(messages) < count:
        claim = await spool.claim(
            "example.com", after=cursor, now_us=_now_us(), max_messages=200, max_bytes=8 << 20
        )
        messages += claim.messages
        cursor = claim.cursor
        if claim.exhausted:
            break
    return messages, time.perf_counter() - began


async def _settle(spool: EmbeddedSpool, messages: list[QueuedMessage]) -> float:
    began = time.perf_counter()
    for start in range(0, len(messages), 100):
        await spool.settle(
            [
                Settlement(message.queue_id, row.seq, Outcome.DELIVERED)
                for message in messages[start : start + 100]
                for row in message.recipients
            ]
        )
    return time.perf_counter() - began


def _lookups(stage: Stage) -> dict[str, float]:
    indexes = RecipientIndexes(stage.root / "indexes")
    indexes.prepare()
    began = time.perf_counter()
    indexes.publish(
        "example.com", str(stage.root / "recipients"), now_us=_now_us(), refuse_empty=True
    )
    building = time.perf_counter() - began
    directory = indexes.open("example.com")
    assert directory is not None
    count = stage.pick(KNOWN, 20_000)
    known = [f"{number}user" for number in range(count)]
    unknown = [f"nobody{number}" for number in range(count)]
    base = hashlib.blake2b(key=b"k" * 32, digest_size=16)

    def digest(text: str) -> None:
        one = base.copy()
        one.update(text.encode())
        one.digest()

    return {
        "lookup_known": _each(directory.find, known),
        "lookup_unknown": _each(directory.find, unknown),
        "lookup_hash": _each(digest, known),
        "lookup_build": building,
    }


def _each(work: Callable[[str], object], values: list[str]) -> float:
    began = time.perf_counter()
    for value in values:
        work(value)
    return (time.perf_counter() - began) / len(values) * 1e9
