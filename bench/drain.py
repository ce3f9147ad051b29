"""Bring 20,000 queued messages home once the primary is back."""

from __future__ import annotations

from bench.stage import Drained, Row, Side, Stage

ROWS = (
    Row(
        name="drain",
        what="drain of 20,000 x 4 KiB, up to 20 connections",
        unit="msg/s",
        versus="rival",
        floor=5,
        aim=15,
    ),
    Row(name="drain_first", what="the same: retry asked to first arrival", unit="s", better="less"),
    Row(name="drain_cpu", what="the same: CPU", unit="us/msg", better="less"),
    Row(
        name="drain_ramp",
        what="the same: canary and slow start, over a drain at the speed of its second half",
        unit="x",
        better="less",
        versus="bound",
        floor=1.3,
    ),
    Row(
        name="drain_one",
        what="drain of 5,000 x 4 KiB over one connection",
        unit="msg/s",
        versus="rival",
        floor=5,
        aim=15,
    ),
)


def measure(stage: Stage, side: Side) -> dict[str, float]:
    """Fill with the port closed, start the sink, ask for a retry of all; rate at the sink."""
    many = _drained(stage, side, count=stage.pick(20_000, 3000), connections=20)
    one = _drained(stage, side, count=stage.pick(5000, 1000), connections=1)
    return {
        "drain": many.rate,
        "drain_first": many.first_seconds,
        "drain_cpu": many.cpu_seconds / many.count * 1e6,
        "drain_ramp": many.ramp,
        "drain_one": one.rate,
    }


def _drained(stage: Stage, side: Side, *, count: int, connections: int) -> Drained:
    sink = stage.sink()
    with stage.running(side, sink, connections=connections) as contestant:
        stage.send(contestant, count)
        contestant.settle()
        try:
            return stage.drain(contestant, sink, count)
        finally:
            sink.stop()
