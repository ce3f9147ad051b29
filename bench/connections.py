"""What an idle connection costs, and a message of 50 MB on its way through."""

from __future__ import annotations

import socket
import time

from bench import machine
from bench.stage import Row, Side, Stage
from peers.processes import PeerFailed

ROUNDS = 1

ROWS = (
    Row(
        name="memory_idle_connection",
        what="memory of an idle connection (5,000; Postfix: 100, a process each), PSS",
        unit="KiB",
        better="less",
        versus="bound",
        floor=20,
    ),
    Row(
        name="memory_large_in",
        what="a message of 50 MB coming in: growth of RSS",
        unit="MiB",
        better="less",
        versus="bound",
        floor=10,
    ),
    Row(
        name="memory_large_out",
        what="a message of 50 MB going out: growth of RSS",
        unit="MiB",
        better="less",
        versus="bound",
        floor=10,
    ),
)

LARGE = 50_000_000


def measure(stage: Stage, side: Side) -> dict[str, float]:
    """One instance for the connections, then one for the message."""
    return {"memory_idle_connection": _idle(stage, side), **_large(stage, side)}


def _idle(stage: Stage, side: Side) -> float:
    count = stage.pick(5000, 1000) if side == "posthouse" else 100
    with stage.running(side, stage.sink()) as contestant:
        held: list[socket.socket] = []
        try:
            # The first ones load code and use up what lies free: not their cost.
            held += [_greeted(contestant.port) for _ in range(min(count, 2000))]
            before = machine.group_proportional_bytes(contestant.group())
            held += [_greeted(contestant.port) for _ in range(count)]
            time.sleep(1)
            after = machine.group_proportional_bytes(contestant.group())
        finally:
            for connection in held:
                connection.close()
    return (after - before) / count / 1024


def _greeted(port: int) -> socket.socket:
    """A connection that has said EHLO and got its answer."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    if not connection.recv(4096).startswith(b"220"):
        raise PeerFailed("no greeting")
    connection.sendall(b"EHLO idle.elsewhere.example\r\n")
    answer = b""
    while b"\n250 " not in answer and not answer.startswith(b"250 "):
        piece = connection.recv(4096)
        if not piece:
            raise PeerFailed(f"connection lost: {answer!r}")
        answer += piece
    return connection


def _large(stage: Stage, side: Side) -> dict[str, float]:
    size = stage.pick(LARGE, LARGE // 10)
    sink = stage.sink()
    with stage.running(side, sink) as contestant:
        stage.send(contestant, 200, size=65536)
        contestant.settle()
        sink.start()
        contestant.retry()
        sink.wait_messages(200)
        sink.stop()
        stage.send(contestant, 20)
        contestant.settle()
        before = machine.reset_peaks(contestant.group())
        stage.send(contestant, 1, size=size)
        grown_in = machine.grown_bytes(before)
        contestant.settle()
        before = machine.reset_peaks(contestant.group())
        try:
            stage.drain(contestant, sink, 21)
        finally:
            sink.stop()
        grown_out = machine.grown_bytes(before)
    return {"memory_large_in": grown_in / 2**20, "memory_large_out": grown_out / 2**20}
