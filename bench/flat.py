"""Is the cost of a message the same with 1,000 and with 500,000 queued?"""

from __future__ import annotations

import time

from bench import machine
from bench.contestants import Contestant
from bench.stage import Row, Side, Stage
from peers.processes import PeerFailed
from peers.smtp_tools import SmtpSink

ROUNDS = 1

DEPTHS = (1000, 10_000, 100_000, 500_000)
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

    Postfix stops at 100,000: half a million would take it ten minutes.
    """
    depths: tuple[int, ...] = QUICK_DEPTHS if stage.quick else DEPTHS
    if side == "postfix":
        depths = tuple(depth for depth in depths if depth <= 100_000)
    sample = stage.pick(8000, 2000)
    sink = stage.sink()
    found: dict[str, float] = {}
    queued = 0
    with stage.running(side, sink) as contestant:
        stage.send(contestant, 500)
        contestant.settle()
        queued += 500
        for depth in depths:
            if depth > queued:
                stage.send(contestant, depth - queued)
                contestant.settle()
                queued = depth
            cpu = machine.cpu_seconds(contestant.group())
            took = stage.send(contestant, sample)
            cpu = machine.cpu_seconds(contestant.group()) - cpu
            found[f"accept_cpu_at_{depth}"] = cpu / sample * 1e6
            found[f"accept_rate_at_{depth}"] = sample / took
            contestant.settle()
            queued += sample
            rate, cost, gone = _deliver_some(contestant, sink, sample)
            found[f"drain_cpu_at_{depth}"] = cost * 1e6
            found[f"drain_rate_at_{depth}"] = rate
            queued -= gone
            contestant.settle()
    for kind in ("accept", "drain"):
        first, last = found[f"{kind}_cpu_at_{depths[0]}"], found[f"{kind}_cpu_at_{depths[-1]}"]
        found[f"flat_{kind}"] = last / first if first else 0.0
    return found


def _deliver_some(contestant: Contestant, sink: SmtpSink, sample: int) -> tuple[float, float, int]:
    """Open the primary until `sample` messages came; (rate, CPU seconds each, messages gone).

    Measured from the first tenth on, so that neither the operator's command nor
    the first connections count.
    """
    sink.start()
    try:
        contestant.retry()
        early = sample // 10
        sink.wait_messages(early, seconds=120)
        seen, then = sink.messages, time.perf_counter()
        cpu = machine.cpu_seconds(contestant.group())
        sink.wait_messages(sample, seconds=120)
        last, now = sink.messages, time.perf_counter()
        cpu = machine.cpu_seconds(contestant.group()) - cpu
    finally:
        sink.stop()
    if last <= seen:
        raise PeerFailed("the sample was gone before it could be measured")
    return (last - seen) / (now - then), cpu / (last - seen), sink.messages
