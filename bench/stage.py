"""Where figures are taken: recipients, messages, a sink, fresh instances of both sides.

A figure module has ROWS (what it yields and what is demanded) and
`measure(stage, side) -> {row name: value}`, called once a round for each side,
in turn: ours, Postfix, ours, Postfix …
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from bench import machine
from bench.contestants import Contestant, Posthouse, Rival, raise_file_limit, wait_ready
from peers.postfix import make_recipient_map
from peers.processes import PeerFailed
from peers.smtp_tools import SmtpSink, source_arguments

Side = Literal["posthouse", "postfix"]
SIDES: tuple[Side, ...] = ("posthouse", "postfix")

KNOWN = 200_000
"""Recipients both sides know: 1user@example.com …, as smtp-source -N numbers them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    better: whether more or less is better. versus: "rival" demands `floor` and
    `aim` of the ratio (always made so that above 1 is better for us); "bound"
    demands that our own value stays within `floor`; None: for information.
    """

    name: str
    what: str
    unit: str
    better: Literal["more", "less"] = "more"
    versus: Literal["rival", "bound"] | None = None
    floor: float | None = None
    aim: float | None = None


class Stage:
    """Holds what all runs share. `with Stage(...) as stage`."""

    def __init__(self, directory: Path, *, quick: bool) -> None:
        """Clear what a killed run left. Raises PeerFailed while another one runs there."""
        self.quick = quick
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PeerFailed(f"another benchmark runs in {directory}") from error
        for leftover in directory.glob("run-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self.root = Path(tempfile.mkdtemp(prefix="run-", dir=directory))
        self.root.chmod(0o755)
        self._recipients = self.root / "recipients"

    def __enter__(self) -> Self:
        raise_file_limit()
        self._recipients.write_text(
            "".join(f"{number}user@example.com x\n" for number in range(KNOWN + 1))
        )
        make_recipient_map(self._recipients)
        for size in (4096, 65536):
            self.message(size)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        os.close(self._lock)

    def pick(self, full: int, quick: int) -> int:
        """A size for a full run or for --quick."""
        return quick if self.quick else full

    def message(self, size: int) -> Path:
        """A file for smtp-source -F that makes a message of exactly `size` octets on the wire."""
        path = self.root / f"message-{size}"
        if not path.exists():
            head = (
                b"From: Sender <sender@elsewhere.example>\nTo: user@example.com\n"
                b"Date: Mon, 02 Nov 2026 10:00:00 +0000\nSubject: a message of the benchmark\n"
                b"Message-Id: <20261102100000.1@elsewhere.example>\nMIME-Version: 1.0\n"
                b"Content-Type: text/plain; charset=us-ascii\n\n"
            )
            left = size - len(head) - head.count(b"\n")
            line = b"The mail must get through, whatever the weather on the road is like.\n"
            body = line * (left // (len(line) + 1))
            rest = left - len(body) - body.count(b"\n")
            body += b"x" * (rest - 2) + b"\n" if rest >= 2 else b""
            path.write_bytes(head + body)
        return path

    def make(
        self,
        side: Side,
        sink_port: int,
        *,
        connections: int = 20,
        probe_interval: str = "30s",
        roster: Mapping[str, str] | None = None,
    ) -> Contestant:
        """A fresh, stopped instance. probe_interval: how soon ours sees a primary return.

        roster: where ours takes its recipients from, instead of the text file.
        """
        if side == "postfix":
            return Rival(self.root, self._recipients, sink_port, connections=connections)
        return Posthouse(
            self.root,
            self._recipients,
            sink_port,
            connections=connections,
            workers=1 if connections == 1 else 0,
            probe_interval=probe_interval,
            roster=roster,
        )

    @contextlib.contextmanager
    def running(
        self,
        side: Side,
        sink: SmtpSink,
        *,
        connections: int = 20,
        probe_interval: str = "30s",
        roster: Mapping[str, str] | None = None,
    ) -> Iterator[Contestant]:
        """A fresh instance that relays to `sink` (up or down), warmed up by a few refusals.

        roster: ours takes its recipients from it instead of the text file.
        """
        contestant = self.make(
            side, sink.port, connections=connections, probe_interval=probe_interval, roster=roster
        )
        try:
            contestant.start()
            wait_ready(contestant)
            yield contestant
        finally:
            contestant.remove()

    def sink(self) -> SmtpSink:
        """A stopped smtp-sink on a port of its own."""
        return SmtpSink(self.root)

    def send(
        self,
        contestant: Contestant,
        messages: int,
        *,
        size: int = 4096,
        sessions: int = 20,
        reuse: bool = True,
        seconds: float = 900,
    ) -> float:
        """Send by smtp-source, each to another of the known recipients; returns seconds.

        Raises PeerFailed when a single message is refused.
        """
        took = 0.0
        left = messages
        while left:
            part = min(left, KNOWN)
            left -= part
            command = source_arguments(
                contestant.port,
                messages=part,
                sessions=min(sessions, part),
                file=self.message(size),
                reuse=reuse,
                numbered=True,
            )
            began = time.perf_counter()
            done = subprocess.run(
                command, capture_output=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL
            )
            took += time.perf_counter() - began
            said = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
            if done.returncode or said:
                raise PeerFailed(f"smtp-source against {contestant.name}: {said}")
        return took

    def drain(self, contestant: Contestant, sink: SmtpSink, count: int) -> Drained:
        """Start the sink, have the queue tried, wait until `count` messages are there."""
        sink.start()
        cpu = machine.cpu_seconds(contestant.group())
        began = time.perf_counter()
        contestant.retry()
        asked = time.perf_counter()
        first = half = 0.0
        deadline = began + 60 + count / 100
        while (seen := sink.messages) < count:
            now = time.perf_counter()
            if seen and not first:
                first, early = now, seen
            if not half and 2 * seen >= count:
                half = now
            if now > deadline:
                raise PeerFailed(f"{contestant.name} drained {seen} of {count}")
            time.sleep(0.002)
        ended = time.perf_counter()
        if not first:
            first, early = ended - 0.002, 0
        return Drained(
            count=count,
            seconds=ended - began,
            command_seconds=asked - began,
            first_seconds=first - began,
            ramp=(ended - first) / max(1e-3, 2 * (ended - (half or first))),
            rate=(count - early) / max(1e-3, ended - first),
            cpu_seconds=machine.cpu_seconds(contestant.group()) - cpu,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """One drain. rate: messages a second from the first arrival to the last.

    ramp: that time over what it had been at the speed of the second half.
    """

    count: int
    seconds: float
    command_seconds: float
    first_seconds: float
    rate: float
    ramp: float
    cpu_seconds: float
