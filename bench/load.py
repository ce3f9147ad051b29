"""A small load generator: many SMTP sessions in one epoll loop, latencies kept.

For what smtp-source cannot do: pipelining, checking every reply, and the time
from the final dot to its 250. Run as a process of its own
(`python -m bench.load '{"kind": …}'`), so that it never shares an interpreter
with the harness; `run` starts several and adds up what they print.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path

Script = Generator[tuple[bytes, int], list[bytes], None]
"""One session: yields (octets to send, replies to wait for), is sent the replies."""


class Refused(Exception):
    """A reply that the script did not expect: the run is void."""


@dataclass(kw_only=True)
class Plan:
    """One run. kind: "deliver" or "unknown". start_at: wall clock, the same for all processes.

    per_second: open loop, one new session at each tick, latency from the tick
    on; 0: closed loop with `sessions` at a time.
    """

    kind: str
    port: int
    count: int
    sessions: int
    reuse: bool = False
    payload_bytes: int = 4096
    batch: int = 50
    per_second: float = 0.0
    first: int = 1
    start_at: float = 0.0
    give_up_after: float = 120.0


@dataclass(kw_only=True)
class Tally:
    """What came of it, in seconds.

    dot: from the final dot to its 250; whole: from connect (or tick) to that 250.
    """

    done: int = 0
    began: float = 0.0
    ended: float = 0.0
    dot: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


# --------------------------------------------------------------------------- scripts


def _expect(replies: list[bytes], code: bytes) -> None:
    for reply in replies:
        if not reply.startswith(code):
            raise Refused(reply.decode("utf-8", "replace"))


class Work:
    """Hands out numbers to sessions and collects what they measured."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally()
        self.next = plan.first
        self.left = plan.count
        head = b"From: <sender@elsewhere.example>\r\nMessage-Id: <load@elsewhere.example>\r\n"
        line = b"x" * 70 + b"\r\n"
        fill = plan.payload_bytes - len(head) - 2
        body = line * (fill // len(line)) + b"x" * max(0, fill % len(line) - 2) + b"\r\n"
        self.message = head + b"\r\n" + body + b".\r\n"

    def take(self, wanted: int) -> tuple[int, int]:
        """(first number, how many): at most `wanted`, 0 when nothing is left."""
        got = min(wanted, self.left)
        self.left -= got
        self.next += got
        return self.next - got, got

    def deliver(self, due: float | None) -> Script:
        """Connect, one message (or all that are left, one by one, with reuse), QUIT."""
        clock = time.perf_counter
        began = clock() if due is None else due
        _expect((yield b"", 1), b"220")
        _expect((yield b"EHLO load.elsewhere.example\r\n", 1), b"250")
        tally = self.tally
        while True:
            number, got = self.take(1)
            if not got:
                break
            _expect((yield b"MAIL FROM:<sender@elsewhere.example>\r\n", 1), b"250")
            _expect((yield b"RCPT TO:<%duser@example.com>\r\n" % number, 1), b"250")
            _expect((yield b"DATA\r\n", 1), b"354")
            sent = clock()
            _expect((yield self.message, 1), b"250")
            now = clock()
            tally.dot.append(now - sent)
            tally.whole.append(now - began)
            tally.done += 1
            if not self.plan.reuse:
                break
            began = clock()
        _expect((yield b"QUIT\r\n", 1), b"221")

    def unknown(self, _due: float | None) -> Script:
        """Pipelined batches of recipients that do not exist, 900 a session (limit on errors)."""
        _expect((yield b"", 1), b"220")
        _expect((yield b"EHLO load.elsewhere.example\r\n", 1), b"250")
        _expect((yield b"MAIL FROM:<sender@elsewhere.example>\r\n", 1), b"250")
        for _ in range(900 // self.plan.batch):
            number, got = self.take(self.plan.batch)
            if not got:
                break
            batch = b"".join(
                b"RCPT TO:<nobody%d@example.com>\r\n" % n for n in range(number, number + got)
            )
            _expect((yield batch, got), b"550 5.1.1 ")
            self.tally.done += got
        _expect((yield b"QUIT\r\n", 1), b"221")


# --------------------------------------------------------------------------- the loop


class _Wire:
    __slots__ = ("buffer", "need", "out", "script", "socket")

    def __init__(self, port: int, script: Script) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.script = script
        self.buffer = b""
        self.out, self.need = next(script)

    def send(self) -> None:
        if self.out:
            try:
                self.out = self.out[self.socket.send(self.out) :]
            except BlockingIOError:
                pass

    def replies(self) -> list[bytes] | None:
        """The replies waited for, once all are here. Continuation lines are dropped."""
        data = self.socket.recv(262_144)
        if not data:
            raise Refused(f"connection lost; last: {self.buffer!r}")
        self.buffer += data
        if self.buffer.count(b"\n") < self.need:
            return None
        lines = self.buffer.split(b"\r\n")
        final = [line for line in lines if line[3:4] == b" "]
        if len(final) < self.need or lines[-1]:
            return None
        self.buffer = b""
        return final


def drive(plan: Plan) -> Tally:
    """Run a plan in this process. Raises Refused on any reply it does not expect."""
    work = Work(plan)
    wires: dict[int, _Wire] = {}
    time.sleep(max(0.0, plan.start_at - time.time()))
    work.tally.began = time.time()
    try:
        with select.epoll() as poll:
            _drive(plan, work, wires, poll)
    finally:
        for wire in wires.values():
            wire.socket.close()
    work.tally.ended = time.time()
    return work.tally


def _drive(plan: Plan, work: Work, wires: dict[int, _Wire], poll: select.epoll) -> None:
    make: Callable[[float | None], Script] = getattr(work, plan.kind)
    origin = time.perf_counter()
    opened = 0

    def launch(due: float | None) -> None:
        wire = _Wire(plan.port, make(due))
        wires[wire.socket.fileno()] = wire
        poll.register(wire.socket.fileno(), select.EPOLLIN)

    while time.perf_counter() - origin < plan.give_up_after:
        wait = 1.0
        if not plan.per_second:
            while len(wires) < plan.sessions and work.left:
                launch(None)
        while plan.per_second and opened < plan.count:
            due = origin + opened / plan.per_second
            wait = due - time.perf_counter()
            if wait > 0:
                break
            launch(due)
            opened += 1
        if not wires and not work.left:
            return
        for number, _event in poll.poll(max(0.0, min(1.0, wait))):
            _advance(wires, number, poll)
    raise Refused(f"not done after {plan.give_up_after:g} s: {work.tally.done} of {plan.count}")


def _advance(wires: dict[int, _Wire], number: int, poll: select.epoll) -> None:
    wire = wires[number]
    if wire.out:
        wire.send()
        if not wire.out:
            poll.modify(number, select.EPOLLIN)
        return
    replies = wire.replies()
    if replies is None:
        return
    try:
        wire.out, wire.need = wire.script.send(replies)
    except StopIteration:
        poll.unregister(number)
        del wires[number]
        wire.socket.close()
        return
    wire.send()
    if wire.out:
        poll.modify(number, select.EPOLLOUT)


# --------------------------------------------------------------------------- several processes


def run(plan: Plan, *, processes: int = 1) -> Tally:
    """Split a plan over processes of their own and add up what they saw."""
    plan.start_at = time.time() + 0.4
    parts = []
    for index in range(processes):
        share = plan.count // processes + (index < plan.count % processes)
        part = asdict(plan) | {
            "count": share,
            "sessions": max(1, plan.sessions // processes),
            "per_second": plan.per_second / processes,
            "first": plan.first + index * (plan.count // processes + 1),
        }
        command = [sys.executable, "-m", "bench.load", json.dumps(part)]
        parts.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=Path(__file__).resolve().parents[1],
            )
        )
    whole = Tally(began=float("inf"))
    try:
        for part_process in parts:
            out, err = part_process.communicate(timeout=plan.give_up_after + 30)
            if part_process.returncode:
                raise Refused(err.decode("utf-8", "replace").strip().splitlines()[-1])
            one = Tally(**json.loads(out))
            whole.done += one.done
            whole.began = min(whole.began, one.began)
            whole.ended = max(whole.ended, one.ended)
            whole.dot += one.dot
            whole.whole += one.whole
    finally:
        for part_process in parts:
            if part_process.poll() is None:
                part_process.kill()
                part_process.wait()
    return whole


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0..1) of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


if __name__ == "__main__":
    json.dump(asdict(drive(Plan(**json.loads(sys.argv[1])))), sys.stdout)
