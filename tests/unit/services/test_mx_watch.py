"""A roster's MX set beside the one in DNS: what is told, when it is over, what is no difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.resolver import FakeResolver
from fakes.roster_alerts import StandingAlerts
from fakes.roster_disk import RosterDisk
from fakes.rosters import make_roster
from fakes.vectors import DOMAIN
from posthouse.domain.mx_set import MxSet, find_mx_differences
from posthouse.ports_roster import RosterSays
from posthouse.services.mx_watch import AGAIN_US, MX_DIFFERS, MxWatch

OURS = frozenset({"mx2.example.net"})
MEANT = ((10, "mx1.example.com"), (20, "mx2.example.net"))


@pytest.mark.parametrize(
    ("said", "published", "words"),
    [
        (MEANT, [(20, "mx2.example.net"), (10, "mx1.example.com")], []),
        (((10, "MX1.example.com."), (20, "mx2.example.net")), MEANT, []),
        (MEANT, [(10, "mx1.example.com")], ["DNS publishes 10 mx1.example.com, its", "not among"]),
        (MEANT, [*MEANT, (30, "mx3.example.org")], ["30 mx3.example.org, its roster says"]),
        (MEANT, [(10, "mx2.example.net"), (20, "mx1.example.com")], ["DNS", "is the best MX"]),
        (MEANT, [(10, "mx1.example.com"), (10, "mx2.example.net")], ["DNS", "is the best MX"]),
        (((10, "mx1.example.com"),), [(10, "mx1.example.com")], ["not among"]),
        (MEANT, [(0, "")], ["DNS publishes 0 ., ", "not among"]),
        (MEANT, [], ["DNS publishes no MX", "not among"]),
        (MEANT, None, ["does not exist"]),
    ],
)
def test_what_differs(said: MxSet, published: MxSet | None, words: list[str]) -> None:
    """Order, case and last dots do not; our own place in DNS counts too."""
    found = find_mx_differences(said, published, OURS)
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


class World:
    """A watch with a clock, a DNS and a roster that a test changes."""

    def __init__(self) -> None:
        self.now_us = 1_800_000_000_000_000
        self.says: RosterSays | None = RosterSays(serial=1, mx=MEANT)
        self.resolver = FakeResolver(mx={"example.com": list(MEANT)})
        self.alerts = StandingAlerts()
        self.watch = MxWatch(
            lambda _domain: self.says,
            self.resolver,
            alerts=self.alerts,
            now_us=lambda: self.now_us,
        )
        self.watch.set_domains(["example.com"], OURS)

    async def hour(self) -> list[str]:
        """An hour later; what stands."""
        self.now_us += AGAIN_US
        await self.watch.look()
        return self.alerts.kinds()


async def test_told_and_over() -> None:
    """A difference stands until DNS is as the roster says; no answer changes nothing."""
    world = World()
    assert await world.hour() == []
    world.resolver.mx["example.com"] = [(10, "mx1.example.com")]
    assert await world.hour() == [MX_DIFFERS]
    assert "not among" in world.alerts.standing[MX_DIFFERS, "example.com"]
    world.resolver.failing.add("example.com")
    assert await world.hour() == [MX_DIFFERS]
    world.resolver.failing.clear()
    world.resolver.mx["example.com"] = list(MEANT)
    assert await world.hour() == []
    world.resolver.failing.add("example.com")
    assert await world.hour() == []


async def test_asked_hourly_and_at_a_new_roster() -> None:
    """In between DNS is left alone; a new roster is compared at the next look."""
    world = World()
    await world.watch.look()
    await world.watch.look()
    assert len(world.resolver.questions) == 1
    world.says = RosterSays(serial=2, mx=(*MEANT, (30, "mx3.example.org")))
    await world.watch.look()
    assert world.alerts.kinds() == [MX_DIFFERS]
    world.says = RosterSays(serial=3, mx=())
    await world.watch.look()
    assert world.alerts.kinds() == []
    assert len(world.resolver.questions) == 2


async def test_a_domain_that_is_gone_has_no_alert() -> None:
    """A reload that drops it clears what was told."""
    world = World()
    world.resolver.mx["example.com"] = []
    assert await world.hour() == [MX_DIFFERS]
    world.watch.set_domains([], OURS)
    assert world.alerts.kinds() == []


def test_what_a_roster_on_disk_says(tmp_path: Path) -> None:
    """The set of its header, with the serial; nothing before there is one."""
    disk = RosterDisk(tmp_path)
    assert disk.files.read_says(DOMAIN) is None
    disk.take_in(make_roster(mx=MEANT))
    says = disk.files.read_says(DOMAIN)
    assert says is not None
    assert (says.serial, says.mx) == (disk.serial(), MEANT)
