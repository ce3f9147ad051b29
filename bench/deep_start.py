"""A start with a million queued: first greeting, first delivery, memory, and the whole way home."""

from __future__ import annotations

import time

from bench import machine
from bench.contestants import wait_greeting
from bench.stage import Row, Side, Stage

ROUNDS = 1

ROWS = (
    Row(name="deep_greeting", what="start with 1,000,000 queued: first greeting", unit="s",
        better="less", versus="bound", floor=5),
    Row(name="deep_delivery", what="start with 1,000,000 queued: first delivery", unit="s",
        better="less", versus="bound", floor=5),
    Row(name="deep_memory", what="largest process of that start and drain, peak RSS", unit="MiB",
        better="less", versus="bound", floor=80),
    Row(name="deep_drain", what="drain of 1,000,000 x 4 KiB", unit="msg/s"),
)  # fmt: skip


def measure(stage: Stage, side: Side) -> dict[str, float]:
    """Ours only: a Postfix queue of this depth takes the better part of an hour to fill."""
    if side != "posthouse":
        return {}
    count = stage.pick(1_000_000, 20_000)
    sink = stage.sink()
    with stage.running(side, sink) as contestant:
        stage.send(contestant, count)
        contestant.stop()
        sink.start()
        began = time.perf_counter()
        contestant.start()
        wait_greeting(contestant)
        greeting = time.perf_counter() - began
        sink.wait_messages(1)
        delivery = time.perf_counter() - began
        early, then = sink.messages, time.perf_counter()
        sink.wait_messages(count, seconds=60 + count / 1000)
        drain = (count - early) / (time.perf_counter() - then)
        memory = max(machine.peak_bytes(pid) for pid in contestant.workers()) / 2**20
        sink.stop()
    return {
        "deep_greeting": greeting,
        "deep_delivery": delivery,
        "deep_memory": memory,
        "deep_drain": drain,
    }
