"""What every spool promises of recipients that are stored on hold."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fakes.memory_spool import MemorySpool
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.ports_spool import OperatorAction, QueuedMessage, Selection, Spool, State
from posthouse.storage.spool import EmbeddedSpool, SpoolSettings

T0 = 1_700_000_000_000_000


@pytest.fixture(params=["embedded", "memory"])
async def spool(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Spool]:
    engine: Spool
    ticks = itertools.count(T0)
    if request.param == "memory":
        engine = MemorySpool(0, lambda: next(ticks))
    else:
        settings = SpoolSettings(spill_bytes=4096, min_free_bytes=0)
        engine = await EmbeddedSpool.open(
            tmp_path / "shard", shard=0, settings=settings, clock_us=lambda: next(ticks)
        )
    yield engine
    await engine.close()


async def accept(spool: Spool, *recipients: Recipient) -> int:
    incoming = spool.begin()
    incoming.write(b"Subject: x\r\n\r\nhello\r\n")
    envelope = Envelope(sender="a@sender.example", recipients=recipients)
    await spool.commit(incoming, envelope=envelope, client=Client(address="192.0.2.1", port=1))
    return incoming.queue_id


ALICE = Recipient(address="alice@example.com", domain="example.com")
GHOST = Recipient(address="ghost@example.com", domain="example.com", hold="nobody vouches")


async def test_a_recipient_on_hold_waits_for_its_release(spool: Spool) -> None:
    """It is stored HELD with its reason, no claim gives it, and a release puts it in the queue."""
    await accept(spool, ALICE, GHOST)
    (message,) = await spool.list_messages(Selection(), after=None, limit=9)
    rows = {row.address: (row.state, row.reason) for row in message.recipients}
    assert rows == {
        "alice@example.com": (State.QUEUED, ""),
        "ghost@example.com": (State.HELD, "nobody vouches"),
    }
    found = await spool.claim(
        "example.com", after=None, now_us=T0 + 1000, max_messages=9, max_bytes=1 << 20
    )
    assert [row.address for row in found.messages[0].recipients] == ["alice@example.com"]
    (totals,) = await spool.totals()
    assert (totals.queued, totals.held) == (1, 1)
    held = Selection(recipient="ghost@example.com", state=State.HELD)
    assert await spool.act(held, OperatorAction.RELEASE, now_us=T0 + 1000) == 1
    found = await spool.claim(
        "example.com", after=None, now_us=T0 + 2000, max_messages=9, max_bytes=1 << 20
    )
    assert len([row for message in found.messages for row in message.recipients]) == 2


async def test_the_bell_leaves_out_what_is_on_hold(spool: Spool) -> None:
    """The relay hears of the others alone, and not at all when there are none."""
    heard: list[QueuedMessage] = []
    spool.set_accept_listener(lambda message: heard.append(message))
    both = await accept(spool, GHOST, ALICE)
    await accept(spool, GHOST)
    assert [message.queue_id for message in heard] == [both]
    assert [(row.seq, row.address) for row in heard[0].recipients] == [(1, "alice@example.com")]
