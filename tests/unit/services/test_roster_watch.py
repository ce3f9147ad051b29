"""The rosters in force, as a worker sees them, and the look-ups it runs for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from fakes.directory import SetDirectory
from fakes.looks import Looks
from fakes.roster_disk import KEYS, NOW_US, AtOnce, RosterDisk, ask
from fakes.rosters import make_roster
from fakes.vectors import DAMAGED, DELTA, DOMAIN, ROSTER, VECTORS
from posthouse.domain.finding import Finding
from posthouse.errors import RosterRefused
from posthouse.ports_recipients import RecipientDirectory
from posthouse.ports_roster import RosterNote
from posthouse.services.look_ups import LookUpPool
from posthouse.services.roster_watch import RosterWatch
from posthouse.storage.roster_directory import MappedRoster


class World:
    """A disk and one worker's view of it."""

    def __init__(self, directory: Path) -> None:
        self.disk = RosterDisk(directory / "rosters")
        self.table: dict[str, RecipientDirectory] = {"text.example": SetDirectory(["alice"])}
        self.looks = Looks()
        self.watch = RosterWatch(
            self.disk.files,
            {DOMAIN: KEYS},
            table=self.table,
            slow=AtOnce(),
            wait=self.looks.wait,
        )

    def finding(self, local_part: str) -> Finding:
        directory = self.table[DOMAIN]
        assert isinstance(directory, MappedRoster)
        return ask(directory, local_part).finding


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_swap_is_taken_up(world: World) -> None:
    """A running worker sees each new roster, whole, and tells who wants to know."""
    told: list[str] = []
    world.watch.swapped.append(told.append)
    task = asyncio.create_task(world.watch.run())
    await world.looks.let()
    assert DOMAIN not in world.table
    world.disk.take_in(ROSTER)
    await world.looks.let(2)
    assert world.finding("marta") is Finding.VOUCHED
    world.disk.take_in(DELTA)
    await world.looks.let(2)
    assert world.finding("hartley") is Finding.VOUCHED
    assert told == [DOMAIN, DOMAIN]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_waits_for_an_operator_swaps_nothing(world: World) -> None:
    """A roster that is set aside leaves the open one where it is, with all it remembers."""
    world.disk.take_in(make_roster([f"u{n}" for n in range(50)], serial=100))
    await world.watch.refresh()
    before = world.table[DOMAIN]
    world.disk.take_in(make_roster(["u1"], serial=200))
    await world.watch.refresh()
    assert world.table[DOMAIN] is before
    facts = world.watch.describe()[DOMAIN]
    assert (facts["serial"], facts["set_aside"]) == (100, 200)
    assert "are gone" in facts["set_aside_why"]


async def test_a_damaged_roster_leaves_the_open_one(world: World, tmp_path: Path) -> None:
    """Damage on disk takes no open roster out of force; the word of the control process does."""
    taken = world.disk.take_in(ROSTER)
    await world.watch.refresh()
    path = world.disk.files.find_file(DOMAIN, taken.facts)
    fresh = tmp_path / "fresh"
    fresh.write_bytes(ROSTER[:-1])
    fresh.replace(path)
    with pytest.raises(RosterRefused):
        world.disk.take_in(DAMAGED["hash"])
    (world.disk.directory / f"{DOMAIN}.state").touch()
    await world.watch.refresh()
    assert world.finding("marta") is Finding.VOUCHED
    world.disk.files.verify(KEYS)
    await world.watch.refresh()
    assert DOMAIN not in world.table
    assert world.watch.get(DOMAIN) is None


async def test_keys_that_change_count_at_once(world: World) -> None:
    """A roster whose key is void is given up; with its key back it is read again."""
    world.disk.take_in(ROSTER)
    await world.watch.refresh()
    other = msgspec.structs.replace(KEYS, roster_keys=(b"\7" * 32,))
    await world.watch.set_keys({DOMAIN: other})
    assert DOMAIN not in world.table
    both = msgspec.structs.replace(KEYS, roster_keys=(b"\7" * 32, *KEYS.roster_keys))
    await world.watch.set_keys({DOMAIN: both})
    assert world.finding("marta") is Finding.VOUCHED
    await world.watch.set_keys({})
    assert DOMAIN not in world.table
    assert "text.example" in world.table


async def test_status_shows_age_and_trouble(world: World) -> None:
    """Serial, expiry, source and what the subscriber says stand in the description."""
    assert world.watch.describe()[DOMAIN]["problem"] == "no roster yet"
    world.disk.take_in(ROSTER)
    world.disk.files.leave_note(DOMAIN, RosterNote(source="coach.example", problem="no route"))
    await world.watch.refresh()
    facts = world.watch.describe()[DOMAIN]
    assert facts["serial"] == VECTORS["roster"]["serial"]
    assert facts["expires_at"] == "2026-11-30T08:00:00Z"
    assert facts["source"] == "coach.example"
    assert facts["problem"] == "the last attempt failed: no route"
    assert facts["kind"] == "roster"


async def test_status_says_why_there_is_no_roster(world: World) -> None:
    """Where the last attempt failed, with its words, and when it is tried again."""
    due_us = NOW_US + 60_000_000
    note = RosterNote(problem="no route", stage="connect", asked_us=NOW_US, next_us=due_us)
    world.disk.files.leave_note(DOMAIN, note)
    facts = world.watch.describe()[DOMAIN]
    assert facts["problem"].startswith(
        "no roster yet; the last attempt failed (connect): no route; next"
    )
    assert facts["problem"].endswith(facts["next_at"])
    assert facts["stage"] == "connect"


@pytest.fixture
async def pool() -> AsyncIterator[LookUpPool]:
    pool = LookUpPool(threads=2, guesses_an_hour=2)
    yield pool
    pool.close()


async def test_look_ups_run_beside_the_loop(pool: LookUpPool) -> None:
    """A look-up in a thread gives its answer while the loop goes on."""
    gate = threading.Event()
    running = pool.run(lambda: gate.wait(30))
    assert running is not None
    gate.set()  # only a loop that is not blocked gets here
    assert await running is True


async def test_look_ups_are_bounded(pool: LookUpPool) -> None:
    """Beyond what threads and queue hold, the answer is: not now. Room comes back."""
    gate = threading.Event()
    started = [pool.run(lambda: gate.wait(30)) for _ in range(202)]
    assert all(one is not None for one in started)
    assert pool.run(gate.is_set) is None
    gate.set()
    await asyncio.gather(*(one for one in started if one is not None))
    again = pool.run(gate.is_set)
    assert again is not None
    assert await again


async def test_guesses_are_counted_by_network(pool: LookUpPool) -> None:
    """A network has its budget; who has no network is not counted; a hit is given back."""
    assert pool.allows("192.0.2")
    pool.refund("192.0.2")
    assert [pool.allows("192.0.2") for _ in range(3)] == [True, True, False]
    assert pool.allows("198.51.100")
    assert all(pool.allows("") for _ in range(10))
    pool.set_guesses(5)
    assert pool.allows("192.0.2")
