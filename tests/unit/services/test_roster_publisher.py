"""When rosters are made, and what happens when they cannot be."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fakes.source import ListSource
from peers.processes import wait_until
from posthouse.domain.digests import roster_key_id
from posthouse.errors import SourceFailed, StorageBusy
from posthouse.mail.roster import RosterLimits, RosterPolicy
from posthouse.ports_publish import DigestOrder, PublishedDomain, RosterOrder, RosterReplyKind
from posthouse.proto import signing
from posthouse.services.roster_publisher import ALERT_KIND, Plan, RosterPublisher
from posthouse.storage.roster_maker import RosterMaker, Signer
from posthouse.storage.roster_offers import RosterOffers
from posthouse.storage.roster_shelf import open_shelf

KEY = bytes(range(32))
KEY_ID = roster_key_id(KEY)


class Alerts:
    """Stands for the alert desk: what stands now."""

    def __init__(self) -> None:
        self.standing: dict[tuple[str, str], tuple[str, str]] = {}
        self.raised = 0

    def raise_(
        self, kind: str, subject: str, text: str, what_to_do: str, *, since_us: int = 0
    ) -> None:
        self.standing[kind, subject] = text, what_to_do
        self.raised += 1

    def clear(self, kind: str, subject: str) -> None:
        self.standing.pop((kind, subject), None)


class Stage:
    """A publisher with a clock that is moved by hand, and one source of each kind."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_s = 1_800_000_000
        self.file = ListSource(["alice@example.com", "bob@example.com"], version="1")
        self.database = ListSource(["carol@example.com"])
        self.alerts = Alerts()
        signer = Signer(party="example.com", private_key=signing.generate_private_key())
        self.maker = RosterMaker(root, signer, now_s=lambda: self.now_s, cores=1)
        self.publisher = RosterPublisher(
            self.maker,
            RosterOffers(root),
            [self.plan(self.file)],
            alerts=self.alerts,
            now_s=lambda: self.now_s,
        )

    def plan(self, *sources: ListSource, **changes: Any) -> Plan:
        order = RosterOrder(
            domain="example.com",
            sources=sources,
            keys=(KEY,),
            limits=RosterLimits(max_message_bytes=1, smtputf8=True, eight_bit_mime=True),
            policy=RosterPolicy(blocking="allowed", when_stale="defer"),
        )
        return Plan(order=msgspec.structs.replace(order, **changes), rebuild_seconds=900)

    async def pass_time(self, seconds: int, *, looks: int = 1) -> None:
        for _ in range(looks):
            self.now_s += seconds
            await self.publisher.look()

    async def serial(self) -> int:
        reply = await self.publisher.find("example.com", KEY_ID)
        return reply.serial if reply else 0

    async def facts(self) -> PublishedDomain:
        [found] = await self.publisher.describe()
        return found


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "rosters")


async def test_made_at_the_start_and_left_alone(stage: Stage) -> None:
    """Every roster is made at once; a file that does not change is not read again soon."""
    await stage.publisher.refresh()
    first = await stage.serial()
    assert first == 1_800_000_000
    await stage.pass_time(1, looks=30)
    assert stage.file.reads == 1
    facts = await stage.facts()
    [roster] = facts.rosters
    assert (facts.name, facts.tried, facts.problem) == ("example.com", True, "")
    assert (roster.key_id, roster.serial, roster.count) == (KEY_ID, first, 3)
    assert (roster.issued_s, roster.expires_s) == (first, first + 14 * 86_400)


async def test_a_change_is_taken_up_once_it_is_quiet(stage: Stage) -> None:
    """A file is read when two looks in a row found it the same."""
    await stage.publisher.refresh()
    stage.file.addresses.append("dora@example.com")
    for version in ("2", "3"):
        stage.file.version = version
        await stage.pass_time(1)
    assert stage.file.reads == 1
    await stage.pass_time(1)
    assert stage.file.reads == 2
    [roster] = (await stage.facts()).rosters
    assert (await stage.serial(), roster.count) == (stage.now_s, 4)
    reply = await stage.publisher.find("example.com", KEY_ID, if_none_match=f'"{stage.now_s}"')
    assert reply is not None
    assert reply.kind is RosterReplyKind.NOT_MODIFIED


async def test_silent_sources_are_read_on_a_timer(stage: Stage) -> None:
    """What does not tell of changes is read every rebuild_seconds."""
    stage.publisher.set_plans([stage.plan(stage.file, stage.database)])
    await stage.publisher.refresh()
    await stage.pass_time(899)
    assert stage.database.reads == 1
    stage.database.addresses.append("dora@example.com")
    await stage.pass_time(1)
    assert stage.database.reads == 2
    assert (await stage.facts()).rosters[0].count == 5


async def test_dates_are_renewed(stage: Stage) -> None:
    """A roster that never changes is issued again every day."""
    await stage.publisher.refresh()
    first = await stage.serial()
    await stage.pass_time(3600, looks=36)
    assert await stage.serial() >= first + 86_400
    assert stage.file.reads < 20


async def test_failures_are_told_once_and_tried_again(stage: Stage) -> None:
    """The old roster stays; the same failure is one alert; pauses double; success clears it."""
    await stage.publisher.refresh()
    first = await stage.serial()
    stage.file.failing = True
    stage.file.version = "2"
    await stage.pass_time(1, looks=2)
    assert stage.file.reads == 2
    text, remedy = stage.alerts.standing[ALERT_KIND, "example.com"]
    assert "lost the connection" in text
    assert remedy
    assert text in (await stage.facts()).problem
    await stage.pass_time(10, looks=18)  # after 60 and 120 more seconds
    assert stage.file.reads == 4
    assert stage.alerts.raised == 1
    assert await stage.serial() == first
    stage.file.failing = False
    stage.file.version = "3"
    stage.file.addresses.append("dora@example.com")
    await stage.pass_time(1, looks=2)
    assert stage.alerts.standing == {}
    assert await stage.serial() == stage.now_s


async def test_a_loss_tells_how_to_accept_it(stage: Stage) -> None:
    """A roster that is held back says what to type; one that was accepted elsewhere is served."""
    await stage.publisher.refresh()
    stage.file.addresses = ["alice@example.com"]
    stage.file.version = "2"
    await stage.pass_time(1, looks=2)
    text, remedy = stage.alerts.standing[ALERT_KIND, "example.com"]
    assert "1 of 3 entries would go" in text
    assert "--accept-loss" in remedy
    stage.now_s += 1
    stage.maker.make(stage.plan(stage.file).order, accept_loss=True)
    assert await stage.serial() == stage.now_s
    await stage.pass_time(60)
    assert stage.alerts.standing == {}


async def test_a_build_by_hand_is_no_failure(stage: Stage) -> None:
    """While somebody else makes the roster, the publisher comes back a little later."""
    source = ListSource(["alice@example.com"], version="1")
    stage.publisher.set_plans([stage.plan(source)])

    async def busy() -> None:
        await stage.publisher.refresh()

    loop = asyncio.get_running_loop()
    by_hand = ListSource(
        ["alice@example.com"],
        while_reading=lambda: asyncio.run_coroutine_threadsafe(busy(), loop).result(10),
    )
    await asyncio.to_thread(stage.maker.make, stage.plan(by_hand).order)
    assert stage.alerts.raised == 0
    assert source.reads == 0
    await stage.pass_time(5)
    assert source.reads == 1


async def test_other_plans_replace_the_former(stage: Stage) -> None:
    """A reload forgets domains that are gone, their alerts too, and makes what is new."""
    stage.file.failing = True
    await stage.publisher.refresh()
    assert stage.alerts.standing
    stage.publisher.set_plans([])
    assert stage.alerts.standing == {}
    await stage.publisher.refresh()
    assert await stage.publisher.describe() == []
    with pytest.raises(SourceFailed):
        stage.maker.make(stage.plan(stage.file).order)


async def test_a_reload_forgets_no_alert(stage: Stage) -> None:
    """What failed before a reload stands after it, and is over once a roster is made."""
    stage.file.failing = True
    await stage.publisher.refresh()
    stage.publisher.set_plans([stage.plan(stage.file)])
    assert not (await stage.facts()).tried
    await stage.publisher.refresh()
    assert stage.alerts.standing
    assert (await stage.facts()).tried
    stage.file.failing = False
    stage.publisher.set_plans([stage.plan(stage.file)])
    await stage.publisher.refresh()
    assert stage.alerts.standing == {}


async def test_unknown_rosters_are_not_found(stage: Stage) -> None:
    """Who asks with a key that nothing is made for gets nothing."""
    await stage.publisher.refresh()
    assert await stage.publisher.find("example.com", "0" * 16) is None
    assert await stage.publisher.find("example.net", KEY_ID) is None


async def test_slow_digests_are_made_in_the_background(stage: Stage) -> None:
    """A roster that takes an hour keeps neither the door nor the other rosters waiting."""
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go_on.wait(20)

    held = ListSource(["alice@example.com"], version="1", while_reading=hold)
    slow = stage.plan(held, digest=DigestOrder(scheme="scrypt", n=1024))
    fast = stage.plan(ListSource(["bob@example.net"], version="1"), domain="example.net")
    stage.publisher.set_plans([slow, fast])
    await stage.publisher.refresh()
    await asyncio.to_thread(begun.wait, 20)
    assert await stage.publisher.find("example.net", KEY_ID) is not None
    assert await stage.serial() == 0
    await stage.pass_time(1, looks=3)
    assert held.reads == 1
    go_on.set()
    await stage.publisher.finish_slow()
    assert await stage.serial() > 0
    assert stage.alerts.raised == 0


async def test_a_build_under_way_stops_with_its_service(stage: Stage) -> None:
    """Cancelled, the publisher has the build end soon, and the old roster stays."""
    await stage.publisher.refresh()
    first = await stage.serial()
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go_on.wait(20)

    endless = ListSource(
        [f"user{number}" for number in range(5000)], version="1", while_reading=hold
    )
    stage.publisher.set_plans([stage.plan(endless)])
    task = asyncio.create_task(stage.publisher.refresh())
    await asyncio.to_thread(begun.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await asyncio.to_thread(_wait_unlocked, stage)
    assert await stage.serial() == first
    assert stage.alerts.raised == 0


def _wait_unlocked(stage: Stage) -> None:
    """Until the thread that was told to stop has let go of the roster."""
    shelf = open_shelf(stage.root, "example.com", KEY_ID)

    def is_free() -> bool:
        try:
            with shelf.lock():
                return True
        except StorageBusy:
            return False

    wait_until(is_free, what="the end of the build")
