"""Accept and relay with the primary up: from the first connection to the last arrival."""

from __future__ import annotations

import time

from bench import machine
from bench.stage import Row, Side, Stage

ROWS = (
    Row(
        name="relay_4k_single",
        what="accept and relay end to end, 4 KiB, one message a connection, 20 sessions",
        unit="msg/s",
        versus="rival",
        floor=3,
        aim=5,
    ),
    Row(
        name="relay_4k_many",
        what="accept and relay end to end, 4 KiB, many a connection, 20 sessions",
        unit="msg/s",
        versus="rival",
        floor=3,
        aim=5,
    ),
    Row(name="relay_cpu", what="the same, many: CPU", unit="us/msg", better="less"),
)


def measure(stage: Stage, side: Side) -> dict[str, float]:
    """smtp-source → contestant → smtp-sink, until the sink has all."""
    with stage.sink() as sink, stage.running(side, sink) as contestant:
        stage.send(contestant, 500)
        sink.wait_messages(500)
        rates = []
        for reuse in (False, True):
            count = stage.pick(5000, 600) * contestant.pace
            already = sink.messages
            cpu = machine.cpu_seconds(contestant.group())
            began = time.perf_counter()
            stage.send(contestant, count, reuse=reuse)
            sink.wait_messages(already + count, seconds=120)
            rates.append(count / (time.perf_counter() - began))
            cpu = machine.cpu_seconds(contestant.group()) - cpu
    return {
        "relay_4k_single": rates[0],
        "relay_4k_many": rates[1],
        "relay_cpu": cpu / count * 1e6,
    }
