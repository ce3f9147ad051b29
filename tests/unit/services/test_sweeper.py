"""Expired mail is put on hold and told; everything else is left alone."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.relay_world import MX, World
from fakes.timers import turn_over
from posthouse import observe
from posthouse.errors import StorageBroken
from posthouse.ports_spool import State
from posthouse.services.sweeper import Sweeper

DAY_US = 86_400_000_000


@pytest.fixture
def alerts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(observe, "alert", lambda kind, text, **_: told.append((kind, text)))
    return told


def make(world: World, **keep_days: float) -> Sweeper:
    keep_for = {name.replace("_", "."): int(days * DAY_US) for name, days in keep_days.items()}
    clock_us = world.timers.clock_us
    return Sweeper(spool=world.spool, keep_for=keep_for, clock_us=clock_us, elapsed_us=clock_us)


async def test_mail_is_held_after_its_time(
    alerts: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of keep_for a recipient is held with a log line, and one alert sums up."""
    lines: list[dict[str, Any]] = []
    monkeypatch.setattr(observe, "recipient_settled", lambda *a, **k: lines.append(k))
    world = World({"example.com": MX})
    sweeper = make(world, example_com=21)
    old = await world.accept("a@example.com", "b@example.com")
    await world.timers.advance(86_400)
    young = await world.accept()
    await world.timers.advance(20 * 86_400 - 10)
    assert await sweeper.sweep() == 0
    await world.timers.advance(20)
    assert await sweeper.sweep() == 2
    rows = await world.rows()
    assert rows[old, 0].state is State.HELD
    assert rows[old, 1].state is State.HELD
    assert rows[young, 0].state is State.QUEUED
    assert [line["status"] for line in lines] == ["held", "held"]
    assert lines[0]["text"] == "expired after 21 days"
    assert lines[0]["dsn"] == "4.4.7"
    assert len(alerts) == 1
    assert alerts[0][0] == "expired"
    assert "example.com: 2" in alerts[0][1]
    assert await sweeper.sweep() == 0
    assert len(alerts) == 1


async def test_each_domain_has_its_own_time(alerts: list[tuple[str, str]]) -> None:
    """keep_for counts per domain, and a domain that is not configured is not touched."""
    world = World({})
    sweeper = make(world, short_example=1, long_example=9)
    for name in ("short.example", "long.example", "gone.example"):
        await world.accept(f"u@{name}")
    await world.timers.advance(2 * 86_400)
    assert await sweeper.sweep() == 1
    held = [r.domain for r in (await world.rows()).values() if r.state is State.HELD]
    assert held == ["short.example"]
    sweeper.reload({"gone.example": DAY_US})
    assert await sweeper.sweep() == 1


async def test_many_expire_in_batches(alerts: list[tuple[str, str]]) -> None:
    """However many there are, all are moved, a batch at a time, with one alert."""
    world = World({})
    sweeper = make(world, example_com=1)
    await world.accept_many(1203)
    await world.timers.advance(2 * 86_400)
    assert await sweeper.sweep() == 1203
    assert len(alerts) == 1


async def test_broken_spool_is_survived(
    alerts: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spool that fails ends the round, not the sweeper."""
    world = World({})
    sweeper = make(world, example_com=1)
    await world.accept()
    await world.timers.advance(2 * 86_400)

    async def broken(*_: object, **__: object) -> None:
        raise StorageBroken("read-only file system")

    monkeypatch.setattr(world.spool, "expire", broken)
    assert await sweeper.sweep() == 0
    monkeypatch.undo()
    assert await sweeper.sweep() == 1


async def test_runs_by_itself_until_stopped(alerts: list[tuple[str, str]]) -> None:
    """`start` sweeps at once; `stop` ends it."""
    world = World({})
    sweeper = make(world, example_com=1)
    await world.accept()
    await world.timers.advance(2 * 86_400)
    sweeper.start()
    await turn_over()
    await sweeper.stop()
    assert next(iter((await world.rows()).values())).state is State.HELD


async def test_a_clock_that_leaps_expires_nothing_at_once(alerts: list[tuple[str, str]]) -> None:
    """An hour is left to set it right, and again after each leap; a start counts as one."""
    world = World({"example.com": MX})
    leap = [0]
    sweeper = Sweeper(
        spool=world.spool,
        keep_for={"example.com": 21 * DAY_US},
        clock_us=lambda: world.timers.clock_us() + leap[0],
        elapsed_us=world.timers.clock_us,
    )
    await world.accept()
    await world.timers.advance(2 * 3_600)
    assert await sweeper.sweep() == 0
    leap[0] = 365 * DAY_US
    assert await sweeper.sweep() == 0
    leap[0] = 0
    await world.timers.advance(3 * 3_600)
    assert await sweeper.sweep() == 0
    leap[0] = 365 * DAY_US
    assert await sweeper.sweep() == 0
    await world.timers.advance(3_599)
    assert await sweeper.sweep() == 0
    await world.timers.advance(2)
    assert await sweeper.sweep() == 1
    assert len(alerts) == 1
