"""Rosters are kept current, and whoever must know is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from fakes.looks import Looks
from fakes.peer import Answer, Call, FakePeer, refuse, respond
from fakes.roster_alerts import StandingAlerts
from fakes.roster_disk import KEYS, NOW_US, RosterDisk, ask
from fakes.rosters import make_roster
from fakes.vectors import DAMAGED, DELTA, DELTA_RESULT, DOMAIN, ROSTER, VECTORS
from posthouse.domain.finding import Finding
from posthouse.errors import PeerFailure
from posthouse.ports_https import PeerResponse
from posthouse.ports_roster import RosterSource
from posthouse.services.roster_sources import PeerRosters, UrlRosters
from posthouse.services.subscriber import Subscriber, Subscription
from posthouse.storage.roster_local import LocalRoster

SERIAL = VECTORS["roster"]["serial"]
PATH = f"v1/rosters/{DOMAIN}"


class World:
    """A primary that answers as scripted, a disk, and one subscriber."""

    def __init__(self, directory: Path) -> None:
        self.disk = RosterDisk(directory / "rosters")
        self.peer = FakePeer(DOMAIN, "https://mail.coach.example:8447/")
        self.alerts = StandingAlerts()
        self.looks = Looks()
        self.start(PeerRosters(self.peer, DOMAIN))

    def start(self, source: RosterSource) -> None:
        self.subscriber = Subscriber(
            self.disk.files,
            [Subscription(keys=KEYS, source=source)],
            alerts=self.alerts,
            now_us=lambda: self.disk.now_us,
            dice=lambda: 0.5,
            wait=self.looks.wait,
        )

    def script(self, *answers: Answer) -> None:
        """What the next requests are answered."""
        self.peer.calls.clear()
        self.peer.answers[PATH] = answers

    async def refresh(self) -> str:
        return (await self.subscriber.refresh())[DOMAIN]

    def wait_seconds(self) -> float:
        """Until the next attempt."""
        return (self.disk.files.read_note(DOMAIN).next_us - self.disk.now_us) / 1e6

    def calls(self) -> Sequence[Call]:
        return self.peer.calls


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_the_first_roster_is_put_in_force(world: World) -> None:
    """Without a roster the whole file is asked for, unconditionally, and put in force."""
    world.script(respond(200, ROSTER, etag=f'"{SERIAL}"'))
    assert await world.refresh() == f"serial {SERIAL} in force, 5 entries"
    assert [(call.path, dict(call.headers)) for call in world.calls()] == [(PATH, {})]
    assert ask(world.disk.get(), "marta").finding is Finding.VOUCHED
    assert world.wait_seconds() == 3600
    assert world.alerts.kinds() == []


async def test_a_delta_is_asked_for_and_applied(world: World) -> None:
    """With a roster in force its serial is named twice; the delta that comes is applied."""
    world.disk.take_in(ROSTER)
    world.script(respond(200, DELTA))
    assert await world.refresh() == f"serial {VECTORS['delta']['to_serial']} in force, 5 entries"
    (call,) = world.calls()
    assert call.path == f"{PATH}?since={SERIAL}"
    assert call.headers == {"If-None-Match": f'"{SERIAL}"'}
    facts = world.disk.files.get_state(DOMAIN).in_force
    assert facts is not None
    assert world.disk.files.find_file(DOMAIN, facts).read_bytes() == DELTA_RESULT


@pytest.mark.parametrize(
    "damage", [DELTA[:-1], DELTA + b"x", DELTA.replace(b'"added":1', b'"added":2')]
)
async def test_a_delta_that_does_not_fit_is_followed_by_the_whole(
    world: World, damage: bytes
) -> None:
    """A truncated or wrong delta costs one more request, in the same attempt, and no alert."""
    world.disk.take_in(ROSTER)
    world.script(respond(200, damage), respond(200, DELTA_RESULT))
    await world.refresh()
    assert [call.path for call in world.calls()] == [f"{PATH}?since={SERIAL}", PATH]
    assert world.disk.serial() == VECTORS["delta"]["to_serial"]
    assert world.alerts.raised == []


async def test_304_keeps_and_extends_nothing(world: World) -> None:
    """Not modified: the next attempt is planned; the roster expires at its own time all the same."""
    world.disk.take_in(ROSTER)
    world.script(respond(304))
    assert await world.refresh() == "not modified"
    assert world.disk.files.read_note(DOMAIN).answered_us == NOW_US
    world.disk.now_us = NOW_US + 40 * 86_400 * 1_000_000
    await world.refresh()
    assert world.alerts.kinds() == ["list-stale"]
    assert ask(world.disk.get(), "nobody").stale


async def test_a_fresh_roster_ends_the_alert(world: World) -> None:
    """The alert of a stale roster is over when a newer one is in force."""
    world.disk.take_in(ROSTER)
    world.script(respond(304), respond(200, make_roster(["marta", "zoë", "ops", "x"])))
    world.disk.now_us = NOW_US + 22 * 86_400 * 1_000_000
    await world.refresh()
    assert world.alerts.kinds() == ["list-stale"]
    world.disk.now_us = NOW_US + 86_400 * 1_000_000
    await world.refresh()
    assert world.alerts.kinds() == []


@pytest.mark.parametrize("check", DAMAGED)
async def test_a_refused_roster_changes_nothing_and_is_told(world: World, check: str) -> None:
    """A damaged file leaves the old one in force, raises one alert, and is tried again soon."""
    world.disk.take_in(ROSTER)
    world.script(respond(200, DAMAGED[check]))
    said = await world.refresh()
    assert said.startswith(f"refused ({check})")
    assert world.disk.serial() == SERIAL
    assert world.wait_seconds() == 60
    await world.refresh()
    assert world.wait_seconds() == 120
    assert world.alerts.kinds() == ["roster-refused"]
    assert len(world.alerts.raised) == 1
    assert check in world.disk.files.read_note(DOMAIN).problem
    world.script(respond(200, DELTA_RESULT))
    await world.refresh()
    assert world.alerts.kinds() == []
    assert world.disk.files.read_note(DOMAIN).problem == ""


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (refuse(404), 60),
        (refuse(503, retry_after_seconds=900), 900),
        (PeerFailure("no route", stage="connect"), 60),
        (PeerFailure("301", stage="redirect", status=301), 60),
        (PeerFailure("too large", stage="too_large"), 60),
    ],
)
async def test_a_failed_attempt_keeps_the_old(
    world: World, answer: PeerFailure, seconds: int
) -> None:
    """Whatever fails on the way: the roster of before stays in force, and it is tried again."""
    world.disk.take_in(ROSTER)
    world.script(answer)
    assert await world.refresh() == answer.detail
    assert world.disk.files.read_note(DOMAIN).stage == answer.stage
    assert world.disk.serial() == SERIAL
    assert world.wait_seconds() == seconds
    polite = answer.retry_after_seconds is not None  # asked to wait: no alert for the first time
    assert world.alerts.kinds() == ([] if polite else ["roster-not-fetched"])
    world.script(answer)
    await world.refresh()
    assert world.alerts.kinds() == ["roster-not-fetched"]
    assert list((world.disk.directory / "incoming").iterdir()) == []


async def test_roll_back_and_another_of_the_same_serial_are_refused(world: World) -> None:
    """A primary that serves an older file, or the same serial with other octets, is told of."""
    world.disk.take_in(make_roster(["alice"], serial=200))
    for other in (make_roster(["bob"], serial=100), make_roster(["bob"], serial=200)):
        world.script(respond(200, other))
        assert (await world.refresh()).startswith("refused (serial)")
        assert ask(world.disk.get(), "alice").finding is Finding.VOUCHED


async def test_what_is_set_aside_waits_for_the_operator(world: World) -> None:
    """One alert, also when it comes again or after a restart; accepted, it is in force."""
    world.disk.take_in(make_roster([f"u{n}" for n in range(50)], serial=100))
    small = make_roster(["u1"], serial=200)
    world.script(respond(200, small))
    assert "set aside" in await world.refresh()
    assert world.alerts.kinds() == ["roster-set-aside"]
    assert world.wait_seconds() == 3600
    assert await world.refresh() == "not modified"
    assert [call.path for call in world.calls()] == [f"{PATH}?since=100"] * 2
    world.alerts.standing.clear()
    world.start(PeerRosters(world.peer, DOMAIN))
    await world.refresh()
    assert world.alerts.kinds() == ["roster-set-aside"]
    assert len(set(world.alerts.raised)) == 1
    with pytest.raises(KeyError):
        await world.subscriber.accept(DOMAIN, 150)
    with pytest.raises(KeyError):
        await world.subscriber.accept("other.example", 200)
    await world.subscriber.accept(DOMAIN, 200)
    assert world.alerts.kinds() == []
    assert world.disk.serial() == 200


async def test_reset_serial_lets_an_older_one_pass(world: World) -> None:
    """After a primary was restored from a backup an operator lets its lower serial pass."""
    world.disk.take_in(make_roster(["alice"], serial=200))
    world.script(respond(200, make_roster(["alice"], serial=100)))
    await world.refresh()
    assert world.disk.serial() == 200
    await world.subscriber.reset_serial(DOMAIN)
    await world.refresh()
    assert world.disk.serial() == 100


async def test_a_roster_of_a_key_we_lost_is_asked_for_anew(world: World) -> None:
    """After the roster key was replaced the file in force is of no use: no serial is named."""
    world.disk.take_in(ROSTER)
    keys = msgspec.structs.replace(KEYS, roster_keys=(b"\7" * 32,))
    world.subscriber.set_subscriptions(
        [Subscription(keys=keys, source=PeerRosters(world.peer, DOMAIN))]
    )
    world.script(respond(200, ROSTER))
    assert (await world.refresh()).startswith("refused (key)")
    assert [(call.path, dict(call.headers)) for call in world.calls()] == [(PATH, {})]


async def test_damage_on_disk_is_found_and_mended(world: World) -> None:
    """A file that rotted is noticed at the start and fetched again."""
    taken = world.disk.take_in(ROSTER)
    path = world.disk.files.find_file(DOMAIN, taken.facts)
    path.write_bytes(ROSTER[:-1] + b"\0")
    world.script(respond(200, ROSTER))
    await world.refresh()
    assert dict(world.calls()[0].headers) == {}
    assert path.read_bytes() == ROSTER


async def test_a_local_file_is_watched(world: World, tmp_path: Path) -> None:
    """A roster file is read when it changes; a bad one is refused once, and looked at when new."""
    path = tmp_path / "coach.roster"
    world.start(LocalRoster(path))
    assert "No such file" in await world.refresh()
    path.write_bytes(ROSTER)
    assert "in force" in await world.refresh()
    assert world.wait_seconds() == 2
    assert await world.refresh() == "not modified"
    fresh = tmp_path / "fresh"
    fresh.write_bytes(DAMAGED["postmaster"])
    os.replace(fresh, path)
    for _ in range(3):
        assert (await world.refresh()).startswith("refused (postmaster)")
    assert world.alerts.kinds() == ["roster-refused"]
    assert len(world.alerts.raised) == 2  # the file that was not there, the one that is bad
    fresh.write_bytes(DELTA_RESULT)
    os.replace(fresh, path)
    assert "in force" in await world.refresh()
    assert world.alerts.kinds() == []


async def test_a_url_is_asked_with_its_own_etag(world: World) -> None:
    """A plain web server's ETag is given back for what was good, never for what was refused."""
    url = "https://mail.coach.example:8447/files/coach.roster"
    world.start(UrlRosters(world.peer, url))
    world.peer.answers["files/coach.roster"] = [
        respond(200, DAMAGED["hash"], etag='"bad"'),
        respond(200, ROSTER, etag='W/"good"'),
        respond(304),
    ]
    assert (await world.refresh()).startswith("refused (hash)")
    assert "in force" in await world.refresh()
    assert await world.refresh() == "not modified"
    assert [dict(call.headers) for call in world.calls()] == [
        {},
        {},
        {"If-None-Match": 'W/"good"'},
    ]


async def test_it_asks_by_itself_when_it_is_time(world: World) -> None:
    """The running duty asks at once, then not before the time that the roster names."""
    world.script(respond(200, ROSTER), respond(304))
    task = asyncio.create_task(world.subscriber.run())
    while world.disk.serial() != SERIAL or world.subscriber.describe()[DOMAIN]["next_us"] == 0:
        await world.looks.let()
    world.disk.now_us += 3_599_000_000
    await world.looks.let(3)
    assert len(world.calls()) == 1
    world.disk.now_us += 2_000_000
    while len(world.calls()) < 2:
        await world.looks.let()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_domains_that_are_gone_are_forgotten(world: World) -> None:
    """A domain without a subscription loses its rosters and its alerts."""
    world.script(refuse(404))
    await world.refresh()
    world.subscriber.set_subscriptions([])
    assert await world.subscriber.refresh() == {}
    assert world.alerts.kinds() == []
    world.disk.take_in(ROSTER)
    await world.subscriber.refresh()
    assert world.disk.open() is None


async def test_our_own_fault_ends_nothing(world: World) -> None:
    """A source that breaks its promise is a failed attempt, not the end of the duty."""

    def break_(call: Call) -> PeerResponse:
        raise ZeroDivisionError

    world.script(break_, respond(200, ROSTER))
    assert "ZeroDivisionError" in await world.refresh()
    assert "in force" in await world.refresh()
