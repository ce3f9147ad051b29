"""Accept while the primary is down: messages a second, and how long the final dot waits."""

from __future__ import annotations

from bench import load, machine
from bench.contestants import Contestant
from bench.stage import Row, Side, Stage

ROWS = (
    Row(
        name="accept_4k_single",
        what="accept, primary down, 4 KiB, one message a connection, 20 sessions",
        unit="msg/s",
        versus="rival",
        floor=3,
        aim=5,
    ),
    Row(
        name="accept_4k_many",
        what="accept, primary down, 4 KiB, many a connection, 20 sessions",
        unit="msg/s",
        versus="rival",
        floor=5,
        aim=10,
    ),
    Row(
        name="accept_64k_many",
        what="accept, primary down, 64 KiB, many a connection, 20 sessions",
        unit="msg/s",
        versus="rival",
        floor=4,
        aim=7,
    ),
    Row(name="accept_cpu", what="the same, 4 KiB many: CPU", unit="us/msg", better="less"),
    Row(name="dot_p50", what="final dot to 250, 20 sessions, median", unit="ms", better="less"),
    Row(
        name="dot_p99",
        what="final dot to 250, 20 sessions, 99 % within",
        unit="ms",
        better="less",
        versus="rival",
        floor=2,
    ),
    Row(
        name="dot_p99_open",
        what="final dot to 250, 200 connections/s arriving evenly, 99 % within",
        unit="ms",
        better="less",
    ),
)


def measure(stage: Stage, side: Side) -> dict[str, float]:
    """All loads on one instance, one after the other; its queue grows, nothing is purged."""
    with stage.running(side, stage.sink()) as contestant:
        stage.send(contestant, 500)
        contestant.settle()
        single = _rate(stage, contestant, stage.pick(5000, 500), size=4096, reuse=False)
        cpu = machine.cpu_seconds(contestant.group())
        count = stage.pick(8000, 800) * contestant.pace
        many = _rate(stage, contestant, count, size=4096, reuse=True, multiply=False)
        cpu = machine.cpu_seconds(contestant.group()) - cpu
        large = _rate(stage, contestant, stage.pick(4000, 400), size=65536, reuse=True)
        closed = load.run(
            load.Plan(
                kind="deliver",
                port=contestant.port,
                count=stage.pick(5000, 800) * contestant.pace,
                sessions=20,
            )
        )
        contestant.settle()
        opened = load.run(
            load.Plan(
                kind="deliver",
                port=contestant.port,
                count=stage.pick(2000, 400),
                sessions=1,
                per_second=200,
            )
        )
    return {
        "accept_4k_single": single,
        "accept_4k_many": many,
        "accept_64k_many": large,
        "accept_cpu": cpu / count * 1e6,
        "dot_p50": load.percentile(closed.dot, 0.5) * 1e3,
        "dot_p99": load.percentile(closed.dot, 0.99) * 1e3,
        "dot_p99_open": load.percentile(opened.dot, 0.99) * 1e3,
    }


def _rate(
    stage: Stage,
    contestant: Contestant,
    messages: int,
    *,
    size: int,
    reuse: bool,
    multiply: bool = True,
) -> float:
    count = messages * contestant.pace if multiply else messages
    rate = count / stage.send(contestant, count, size=size, reuse=reuse)
    contestant.settle()
    return rate
