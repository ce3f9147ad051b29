"""Is the cost of a message the same with 1,000 and with 500,000 queued?"""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench import machine
from bench.contestants import Contestant
from bench.stage import Row, Side, Stage
from peers.smtp_tools import SmtpSink

ROUNDS = 1

DEPTHS = (1000, 10_000, 100_000, 500_000)
CYCLES = 4
"""At each depth: accept some, deliver some, so often. Keeps the shallow queue shallow."""
QUICK_DEPTHS = (1000, 5000, 20_000)


def _rows(depth: int) -> tuple[Row, ...]:
    return (
        Row(
            name=f"accept_cpu_at_{depth}",
            what=f"CPU to accept with {depth:,} queued",
            unit="us/msg",
            better="less",
        ),
        Row(name=f"accept_rate_at_{depth}", what=f"accept with {depth:,} queued", unit="msg/s"),
        Row(
            name=f"drain_cpu_at_{depth}",
            what=f"CPU to deliver out of {depth:,}",
            unit="us/msg",
            better="less",
        ),
        Row(name=f"drain_rate_at_{depth}", what=f"deliver out of {depth:,}", unit="msg/s"),
    )


ROWS = (
    Row(
        name="flat_accept",
        what="CPU to accept a message: deepest queue / shallowest",
        unit="times",
        better="less",
        versus="bound",
        floor=1.2,
    ),
    Row(
        name="flat_drain",
        what="CPU to deliver a message: deepest queue / shallowest",
        unit="times",
        better="less",
        versus="bound",
        floor=1.2,
    ),
    *(row for depth in sorted({*DEPTHS, *QUICK_DEPTHS}) for row in _rows(depth)),
)


def measure(stage: Stage, side: Side) -> dict[str, float]:
    """Fill to each depth; there accept some more, and deliver some.

    Postfix stops at 10,000: each retry of a deep queue takes it minutes.
    """
    depths: tuple[int, ...] = QUICK_DEPTHS if stage.quick else DEPTHS
    if side == "postfix":
        depths = tuple(depth for depth in depths if depth <= 10_000)
    sample = stage.pick(2000, 1000)
    sink = stage.sink()
    found: dict[str, float] = {}
    queued = 0
    with stage.running(side, sink, probe_interval="1s") as contestant:
        for depth in depths:
            accepted, delivered = _Cost(), _Cost()
            for _ in range(CYCLES):
                if depth > queued:
                    stage.send(contestant, depth - queued)
                    contestant.settle()
                    queued = depth
                cpu = machine.cpu_seconds(contestant.group())
                took = stage.send(contestant, sample)
                accepted.add(sample, took, machine.cpu_seconds(contestant.group()) - cpu)
                contestant.settle()
                queued += sample - _deliver_some(contestant, sink, sample, delivered)
                contestant.settle()
            found[f"accept_cpu_at_{depth}"] = accepted.cpu / accepted.messages * 1e6
            found[f"accept_rate_at_{depth}"] = accepted.messages / accepted.seconds
            found[f"drain_cpu_at_{depth}"] = delivered.cpu / delivered.messages * 1e6
            found[f"drain_rate_at_{depth}"] = delivered.messages / delivered.seconds
    for kind in ("accept", "drain"):
        first, last = found[f"{kind}_cpu_at_{depths[0]}"], found[f"{kind}_cpu_at_{depths[-1]}"]
        found[f"flat_{kind}"] = last / first
    return found


@dataclass
class _Cost:
    """Sums over the cycles at one depth."""

    messages: int = 0
    seconds: float = 0.0
    cpu: float = 0.0

    def add(self, messages: int, seconds: float, cpu: float) -> None:
        self.messages += messages
        self.seconds += seconds
        self.cpu += cpu


def _deliver_some(contestant: Contestant, sink: SmtpSink, sample: int, cost: _Cost) -> int:
    """Open the primary until `sample` messages came; returns how many went in all.

    Counted from the first tenth on, so that the first connections do not matter.
    Postfix must be told that the primary is back; ours sees it within a second. An
    operator's "retry all" would change a row for each message queued, half a million.
    """
    sink.start()
    try:
        if contestant.name == "postfix":
            contestant.retry()
        sink.wait_messages(sample // 10, seconds=120)
        seen, then = sink.messages, time.perf_counter()
        cpu = machine.cpu_seconds(contestant.group())
        sink.wait_messages(sample, seconds=120)
        last, now = sink.messages, time.perf_counter()
        cpu = machine.cpu_seconds(contestant.group()) - cpu
    finally:
        sink.stop()
    cost.add(last - seen, now - then, cpu)
    return sink.messages
