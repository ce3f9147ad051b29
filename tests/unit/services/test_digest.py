"""The digest of held mail: once a day at most, only for what is new, remembered durably."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fakes.memory_spool import MemorySpool
from posthouse.errors import TellingFailed
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.mail.queueid import format_queue_id
from posthouse.ports_spool import (
    OperatorAction,
    Outcome,
    QueuedMessage,
    Selection,
    Settlement,
    State,
)
from posthouse.services.digest import Digest
from posthouse.storage.alert_store import SqliteAlertStore

MINUTE = 60_000_000
DAY = 1440 * MINUTE
UNKNOWN = "550 5.1.1 <bob@example.com>: no such user"


class Desk:
    """A digest over a spool in memory, with a clock that is moved by hand."""

    def __init__(self, directory: Path) -> None:
        self.now_us = 1_700_000_000_000_000
        self.path = directory / "alerts.db"
        self.spool = MemorySpool(clock_us=lambda: self.now_us)
        self.sent: list[tuple[str, str]] = []
        self.failure: TellingFailed | None = None
        self.listings = 0
        self.open()

    def open(self) -> None:
        self.store = SqliteAlertStore.open(self.path)
        self.digest = Digest(
            self.store,
            node="mx2.example.net",
            list_held=self.list_held,
            send=self.send,
            clock_us=lambda: self.now_us,
            interval_us=DAY,
            delay_us=15 * MINUTE,
        )

    async def list_held(self) -> AsyncIterator[QueuedMessage]:
        self.listings += 1
        held = Selection(state=State.HELD)
        for message in await self.spool.list_messages(held, after=None, limit=10_000):
            yield message

    async def send(self, subject: str, text: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.sent.append((subject, text))

    async def hold(
        self, *addresses: str, reply: str = UNKNOWN, reason: str = "unknown", sender: str = "x@y.z"
    ) -> int:
        incoming = self.spool.begin()
        incoming.write(b"Subject: s\r\n\r\n")
        await self.spool.commit(
            incoming,
            envelope=Envelope(
                sender=sender,
                recipients=tuple(
                    Recipient(address=one, domain=one.rpartition("@")[2]) for one in addresses
                ),
            ),
            client=Client(address="192.0.2.7", port=4711, name="client.example"),
        )
        await self.spool.settle(
            [
                Settlement(incoming.queue_id, seq, Outcome.HELD, reason=reason, reply=reply)
                for seq in range(len(addresses))
            ]
        )
        return incoming.queue_id

    async def after(self, span_us: int = 0) -> None:
        self.now_us += span_us
        held = sum(row.held for row in await self.spool.totals())
        hint = [(row.domain, row.held) for row in await self.spool.totals()]
        await self.digest.tick(held, hint)


@pytest.fixture(name="desk")
def make_desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.store.close()


async def test_it_tells_what_is_new_and_how_to_act(desk: Desk) -> None:
    """How many, for whom, from whom claimed, which reply, and commands to copy."""
    one = await desk.hold("bob@example.com", sender="forged@bank.example")
    await desk.hold("ann@example.com", reply=UNKNOWN.replace("bob", "ann"))
    await desk.hold("x@example.org", reply="", reason="expired", sender="")
    await desk.after()
    await desk.after(15 * MINUTE)
    ((subject, text),) = desk.sent
    assert subject == "[mx2.example.net] 3 recipients put on hold"
    assert "2  example.com  unknown: 550 5.1.1 <…>: no such user" in text
    assert "1  example.org  expired" in text
    assert f"{format_queue_id(one)}  to bob@example.com, claimed from forged@bank.example" in text
    assert "by client.example[192.0.2.7], held 2023-11-14" in text
    assert "claimed from (nobody)" in text
    assert "posthouse queue release --domain example.com --reply 550 --dry-run" in text


async def test_at_most_one_a_day_and_only_when_something_is_new(desk: Desk) -> None:
    """What came meanwhile waits for the next; a day without news is a day without mail."""
    await desk.hold("bob@example.com")
    await desk.after()
    await desk.after(15 * MINUTE)
    await desk.hold("ann@example.com")
    for _ in range(23):
        await desk.after(60 * MINUTE)
    assert len(desk.sent) == 1
    await desk.after(60 * MINUTE)
    await desk.after(15 * MINUTE)
    assert [subject for subject, _ in desk.sent] == [
        "[mx2.example.net] 1 recipients put on hold",
        "[mx2.example.net] 1 recipients put on hold",
    ]
    assert "2 are on hold in all" in desk.sent[1][1]
    assert "to bob@" not in desk.sent[1][1]
    for _ in range(5):
        await desk.after(DAY)
    assert len(desk.sent) == 2


async def test_what_was_told_is_remembered_over_a_restart(desk: Desk) -> None:
    """Nothing is told twice; what was released and is held again is new."""
    one = await desk.hold("bob@example.com")
    await desk.after()
    await desk.after(15 * MINUTE)
    desk.store.close()
    desk.open()
    await desk.after(2 * DAY)
    await desk.after(DAY)
    assert len(desk.sent) == 1
    await desk.spool.act(Selection(), OperatorAction.RELEASE, now_us=desk.now_us)
    await desk.after(MINUTE)
    await desk.spool.settle([Settlement(one, 0, Outcome.HELD, reason="unknown", reply=UNKNOWN)])
    await desk.after()
    await desk.after(15 * MINUTE)
    assert len(desk.sent) == 2


async def test_a_digest_that_cannot_be_sent_goes_missing_nowhere(desk: Desk) -> None:
    """It is tried again some minutes later, with what came meanwhile."""
    await desk.hold("bob@example.com")
    await desk.after()
    desk.failure = TellingFailed("no route")
    await desk.after(15 * MINUTE)
    listings = desk.listings
    await desk.after(MINUTE)
    assert desk.listings == listings
    desk.failure = None
    await desk.hold("ann@example.com")
    await desk.after(10 * MINUTE)
    ((subject, _),) = desk.sent
    assert "2 recipients" in subject


async def test_what_the_operator_held_is_no_news(desk: Desk) -> None:
    """Who did it knows."""
    await desk.hold("bob@example.com")
    await desk.spool.act(Selection(), OperatorAction.RELEASE, now_us=desk.now_us)
    await desk.spool.act(Selection(), OperatorAction.HOLD, now_us=desk.now_us)
    for _ in range(3):
        await desk.after(DAY)
    assert desk.sent == []


async def test_nothing_is_listed_while_nothing_moves(desk: Desk) -> None:
    """Held mail at rest costs nothing, however much there is."""
    await desk.after()
    assert desk.listings == 0
    await desk.hold("bob@example.com")
    await desk.after()
    await desk.after(15 * MINUTE)
    listings = desk.listings
    for _ in range(50):
        await desk.after(DAY)
    assert desk.listings == listings


async def test_what_strangers_wrote_stays_on_its_line(desk: Desk) -> None:
    """Control characters and long replies do no harm; thousands are summed up."""
    await desk.hold("b\x1b[31mob@example.com", reply="550 " + "x" * 5000 + "\r\nposthouse evil")
    for number in range(300):
        await desk.hold(f"u{number}@example.com", reply=f"550 number {number}")
    await desk.after()
    await desk.after(15 * MINUTE)
    ((_, text),) = desk.sent
    assert "\x1b" not in text
    assert "\nposthouse evil" not in text
    assert max(map(len, text.splitlines())) < 700
    assert len(text) < 40_000
    assert "and 251 more" in text
    assert "other reasons" in text
