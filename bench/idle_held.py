"""100,000 held and 100,000 waiting for a next hop that is down: what they cost others.

Ours only. CPU of the busiest process while nothing comes in; then the mail of
another domain, in and out, on that node and on an empty one.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from bench import machine
from bench.contestants import Posthouse, wait_ready
from bench.stage import Row, Side, Stage
from peers.processes import PeerFailed
from peers.smtp_tools import SmtpSink, smtp_source

ROUNDS = 1
OTHER = "other.example"

ROWS = (
    Row(
        name="idle_worker",
        what="busiest process at rest, 100,000 held and 100,000 waiting",
        unit="% core",
        better="less",
        versus="bound",
        floor=1,
    ),
    Row(
        name="idle_other",
        what="CPU for another domain's mail in and out, over the same on an empty node",
        unit="x",
        better="less",
        versus="bound",
        floor=1.2,
    ),
)


def measure(stage: Stage, side: Side) -> dict[str, float]:
    """Fill twice, hold the first half, rest for a minute, send for the other domain."""
    if side == "postfix":
        return {}
    count = stage.pick(100_000, 5000)
    with SmtpSink(stage.root) as sink:
        full, empty = _make(stage, sink.port), _make(stage, sink.port)
        try:
            for node in (full, empty):
                node.start()
                wait_ready(node)
            stage.send(full, count)
            _command(full, "hold", "--all")
            stage.send(full, count)
            _still(full)
            rest = _busiest(full, seconds=stage.pick(60, 5))
            found = [(_through(empty, stage), _through(full, stage)) for _ in range(5)]
        finally:
            full.remove()
            empty.remove()
    on_empty, on_full = (sorted(times)[len(times) // 2] for times in zip(*found, strict=True))
    return {"idle_worker": 100 * rest, "idle_other": on_full / on_empty}


def _make(stage: Stage, sink_port: int) -> Posthouse:
    recipients = stage.root / "other-recipients"
    recipients.write_text(f"user@{OTHER}\n")
    more = (
        f'[[domain]]\nname = "{OTHER}"\nnext_hop = ["smtp://127.0.0.1:{sink_port}"]\n'
        f'recipients = "{recipients}"\n'
    )
    return Posthouse(stage.root, stage.root / "recipients", 1, more=more)


def _command(node: Posthouse, *arguments: str) -> None:
    command = [node.command, "queue", arguments[0], *arguments[1:], "-c", str(node.config)]
    done = subprocess.run(command, capture_output=True, timeout=300, check=False)
    if done.returncode:
        raise PeerFailed((done.stdout + done.stderr).decode("utf-8", "replace"))


def _cpu(pid: int) -> float:
    """Seconds of CPU a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _still(node: Posthouse) -> None:
    """Wait until what the filling left to tidy is done: a second without work."""
    deadline = time.monotonic() + 60
    while _busiest(node, seconds=1) > 0.05 and time.monotonic() < deadline:
        pass


def _busiest(node: Posthouse, *, seconds: float) -> float:
    before = {pid: _cpu(pid) for pid in node.workers()}
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    return max((_cpu(pid) - used) / took for pid, used in before.items())


def _through(node: Posthouse, stage: Stage) -> float:
    """CPU of the node for each message that goes in and out, in seconds."""
    count = stage.pick(5000, 500)
    used = machine.cpu_seconds(node.group())
    run = smtp_source(node.port, messages=count, sessions=10, reuse=True, recipient=f"user@{OTHER}")
    if not run.ok:
        raise PeerFailed(run.complaint)
    return (machine.cpu_seconds(node.group()) - used) / count
