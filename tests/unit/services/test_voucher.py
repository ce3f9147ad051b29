"""What was held because nobody vouched is released once somebody does."""

from __future__ import annotations

import asyncio

import pytest

from fakes.looks import Looks
from fakes.memory_spool import MemorySpool
from posthouse.domain.finding import Answer, Finding
from posthouse.domain.verdict import UNVOUCHED
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.ports_spool import Outcome, Selection, Settlement, State
from posthouse.services import voucher as voucher_module
from posthouse.services.voucher import Voucher

T0 = 1_700_000_000_000_000


class World:
    """A spool with held mail, and a list that changes."""

    def __init__(self) -> None:
        self.now_us = T0
        self.spool = MemorySpool(0, self.tick)
        self.found: dict[str, Answer] = {}
        self.moved = 0
        self.looks = Looks()
        self.voucher = Voucher(
            self.spool,
            ["example.com"],
            find=self.find,
            clock_us=self.tick,
            released=self.on_moved,
            wait=self.looks.wait,
        )

    def tick(self) -> int:
        self.now_us += 1
        return self.now_us

    def on_moved(self) -> None:
        self.moved += 1

    def find(self, domain: str, local_part: str) -> Answer:
        return self.found.get(local_part, Answer(finding=Finding.ABSENT))

    async def accept(self, *addresses: str, hold: str = UNVOUCHED) -> int:
        incoming = self.spool.begin()
        incoming.write(b"x\r\n")
        recipients = tuple(
            Recipient(address=address, domain="example.com", hold=hold) for address in addresses
        )
        await self.spool.commit(
            incoming,
            envelope=Envelope(sender="a@b.example", recipients=recipients),
            client=Client(address="192.0.2.1", port=1),
        )
        return incoming.queue_id

    async def states(self) -> dict[str, State]:
        messages = await self.spool.list_messages(Selection(), after=None, limit=1000)
        return {row.address: row.state for message in messages for row in message.recipients}


@pytest.fixture
def world() -> World:
    return World()


async def test_only_who_is_vouched_for_is_released(world: World) -> None:
    """Digest, rule and catch-all release; absence, deferral and a stale list do not."""
    for number, finding in enumerate(Finding):
        world.found[f"u{number}"] = Answer(finding=finding)
        await world.accept(f"U{number}@example.com")
    for number in range(len(Finding)):
        world.found[f"U{number}"] = world.found[f"u{number}"]
    world.found["old"] = Answer(finding=Finding.VOUCHED, stale=True)
    await world.accept("old@example.com", '"two words"@example.com')
    world.found["two words"] = Answer(finding=Finding.VOUCHED)
    assert await world.voucher.release("example.com") == 5
    freed = {address for address, state in (await world.states()).items() if state is State.QUEUED}
    vouching = (Finding.VOUCHED, Finding.CATCH_ALL, Finding.RULE, Finding.TRAP)
    assert freed == {
        '"two words"@example.com',
        *(f"U{n}@example.com" for n, finding in enumerate(Finding) if finding in vouching),
    }
    assert world.moved == 1


async def test_mail_held_for_other_reasons_stays(world: World) -> None:
    """What the primary refused, or an operator held, is not touched."""
    world.found["alice"] = Answer(finding=Finding.VOUCHED)
    queue_id = await world.accept("alice@example.com", hold="")
    await world.spool.settle([Settlement(queue_id, 0, Outcome.HELD, reason="refused")])
    assert await world.voucher.release("example.com") == 0
    assert await world.states() == {"alice@example.com": State.HELD}


async def test_pages_are_turned(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is held, all of it is looked at."""
    monkeypatch.setattr(voucher_module, "_PAGE", 2)
    for number in range(5):
        await world.accept(f"u{number}@example.com")
        world.found[f"u{number}"] = Answer(finding=Finding.VOUCHED)
    assert await world.voucher.release("example.com") == 5


async def test_a_new_list_rings(world: World) -> None:
    """The running duty looks at the start, when a list has changed, and once a minute."""
    await world.accept("alice@example.com")
    task = asyncio.create_task(world.voucher.run())
    await world.looks.let(2)
    world.found["alice"] = Answer(finding=Finding.VOUCHED)
    await world.looks.let(2)
    assert await world.states() == {"alice@example.com": State.HELD}
    world.voucher.ring("example.com")
    await world.looks.let(1)
    assert await world.states() == {"alice@example.com": State.QUEUED}
    await world.accept("bob@example.com")
    world.found["bob"] = Answer(finding=Finding.VOUCHED)
    await world.looks.let(60)
    assert (await world.states())["bob@example.com"] is State.QUEUED
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
