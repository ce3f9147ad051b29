"""Refuse unknown recipients: pipelined batches of 50, 20 sessions, every reply checked."""

from __future__ import annotations

from bench import load, machine
from bench.stage import Row, Side, Stage

ROWS = (
    Row(
        name="rcpt_unknown",
        what="unknown recipients refused, pipelined by 50, 20 sessions",
        unit="replies/s",
        versus="rival",
        floor=8,
        aim=20,
    ),
    Row(name="rcpt_unknown_cpu", what="the same: CPU", unit="us/reply", better="less"),
)


def measure(stage: Stage, side: Side) -> dict[str, float]:
    """Two generator processes of ten sessions each; a session ends after 900 refusals."""
    with stage.running(side, stage.sink()) as contestant:
        warm = load.Plan(kind="unknown", port=contestant.port, count=4000, sessions=20)
        load.run(warm, processes=2)
        count = stage.pick(100_000, 20_000) * contestant.pace * 2
        cpu = machine.cpu_seconds(contestant.group())
        tally = load.run(
            load.Plan(kind="unknown", port=contestant.port, count=count, sessions=20), processes=2
        )
        cpu = machine.cpu_seconds(contestant.group()) - cpu
    return {
        "rcpt_unknown": tally.done / (tally.ended - tally.began),
        "rcpt_unknown_cpu": cpu / count * 1e6,
    }
