"""A backlog of 100,000 messages: memory, disk, restart, drain, and what is left on the disk."""

from __future__ import annotations

import time

from bench import machine
from bench.contestants import Contestant, wait_greeting
from bench.stage import Row, Side, Stage

ROUNDS = 1
"""Filling Postfix takes minutes, and these values hardly scatter."""

ROWS = (
    Row(
        name="memory_backlog",
        what="largest process with 100,000 queued, RSS",
        unit="MiB",
        better="less",
        versus="bound",
        floor=80,
    ),
    Row(
        name="memory_all",
        what="all processes with 100,000 queued, PSS",
        unit="MiB",
        better="less",
    ),
    Row(
        name="disk_4k",
        what="disk for a message of 4 KiB, 100,000 queued",
        unit="x size",
        better="less",
        versus="bound",
        floor=1.5,
    ),
    Row(
        name="disk_64k",
        what="disk for a message of 64 KiB",
        unit="x size",
        better="less",
        versus="bound",
        floor=1.3,
    ),
    Row(
        name="restart_greeting",
        what="restart with 100,000 queued: first greeting",
        unit="s",
        better="less",
        versus="bound",
        floor=1,
    ),
    Row(
        name="restart_delivery",
        what="restart with 100,000 queued: first delivery",
        unit="s",
        better="less",
        versus="bound",
        floor=2,
    ),
    Row(name="backlog_drain", what="drain of those 100,000", unit="msg/s"),
    Row(
        name="memory_drained",
        what="largest process after that drain, peak RSS",
        unit="MiB",
        better="less",
    ),
    Row(
        name="disk_left",
        what="disk after the drain, beyond that of an empty spool",
        unit="x mail",
        better="less",
        versus="bound",
        floor=0.1,
    ),
)


def measure(stage: Stage, side: Side) -> dict[str, float]:
    """Fill, look, stop, start, drain, look."""
    count = stage.pick(100_000, 5000)
    sink = stage.sink()
    with stage.running(side, sink) as contestant:
        stage.send(contestant, 100)
        contestant.settle()
        empty = machine.allocated_bytes(contestant.spool())
        stage.send(contestant, count - 100)
        contestant.settle()
        found = {
            "memory_backlog": _largest(contestant),
            "memory_all": machine.group_proportional_bytes(contestant.group()) / 2**20,
            "disk_4k": (machine.allocated_bytes(contestant.spool()) - empty) / count / 4096,
        }
        contestant.stop()
        # The primary is back when the node comes up again.
        sink.start()
        began = time.perf_counter()
        contestant.start()
        wait_greeting(contestant)
        found["restart_greeting"] = time.perf_counter() - began
        if side == "postfix":  # ours tries what it finds by itself
            contestant.retry()
        sink.wait_messages(1)
        found["restart_delivery"] = time.perf_counter() - began
        early, then = sink.messages, time.perf_counter()
        sink.wait_messages(count, seconds=60 + count / 100)
        found["backlog_drain"] = (count - early) / (time.perf_counter() - then)
        found["memory_drained"] = (
            max(machine.peak_bytes(pid) for pid in contestant.workers()) / 2**20
        )
        left = _smallest_disk(contestant, enough=empty, seconds=30)
        found["disk_left"] = max(0.0, left - empty) / (count * 4096)
        sink.stop()
    found["disk_64k"] = _disk_large(stage, side)
    return found


def _disk_large(stage: Stage, side: Side) -> float:
    count = stage.pick(4000, 300)
    with stage.running(side, stage.sink()) as contestant:
        empty = machine.allocated_bytes(contestant.spool())
        stage.send(contestant, count, size=65536)
        contestant.settle()
        return (machine.allocated_bytes(contestant.spool()) - empty) / count / 65536


def _largest(contestant: Contestant) -> float:
    return max(machine.resident_bytes(pid) for pid in contestant.workers()) / 2**20


def _smallest_disk(contestant: Contestant, *, enough: int, seconds: float) -> int:
    """What the spool shrinks to while it tidies up, until it is `enough` or time is over."""
    deadline = time.monotonic() + seconds
    least = machine.allocated_bytes(contestant.spool())
    while least > enough and time.monotonic() < deadline:
        time.sleep(1)
        least = min(least, machine.allocated_bytes(contestant.spool()))
    return least
