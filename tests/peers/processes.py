"""Ports and processes of peers: chosen without collisions, waited for in bounded time, surely ended.

A peer must not outlive the test that started it, even if that test is killed.
So each one leads a process group of its own, and a guard (a shell that waits
on a pipe from us) kills that group when our end of the pipe closes, however
we ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

STOP_SECONDS: Final = 10.0
"""How long a peer may take to end by itself before it is killed."""


class PeerMissing(RuntimeError):
    """A program that the tests need is not on this machine (or may not be run by this user)."""


class PeerFailed(RuntimeError):
    """A peer did not start, did not end, or gave up; the text holds what it said."""


def find_program(name: str, package: str) -> str:
    """The path of a peer's program, /usr/sbin included. Raises PeerMissing with the cure."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin")
    if path is None:
        raise PeerMissing(
            f"{name} (Debian package {package}) is not installed; `make test` installs it"
        )
    return path


# --------------------------------------------------------------------------- ports

_reserved: Final[list[socket.socket]] = []


def free_port() -> int:
    """A TCP port on 127.0.0.1 that stays ours for the life of this process, open or closed.

    Taken from below the ephemeral range: a connection to a *closed* ephemeral
    port can, once in a while, connect to itself, and an outgoing connection
    may sit on the port when a stopped peer wants it back. An abstract socket
    named after the port keeps other test processes off it.
    """
    for _ in range(1000):
        port = random.randrange(10_000, 32_000)
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0posthouse-test-port-{port}")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        _reserved.append(claim)
        return port
    raise PeerFailed("no free TCP port between 10000 and 32000")


def answers(port: int, *, host: str = "127.0.0.1") -> bool:
    """True when something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except OSError:
        return False


# --------------------------------------------------------------------------- waiting


def wait_until(
    condition: Callable[[], bool], *, seconds: float = 20, what: str, every: float = 0.01
) -> None:
    """Wait until `condition` holds; raise PeerFailed naming `what` when it did not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise PeerFailed(f"waited {seconds:g} s for {what}")
        time.sleep(every)


async def until(
    condition: Callable[[], bool], *, seconds: float = 20, what: str, every: float = 0.01
) -> None:
    """`wait_until` for tests that run an event loop."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise PeerFailed(f"waited {seconds:g} s for {what}")
        await asyncio.sleep(every)


# --------------------------------------------------------------------------- processes


def group_members(group: int) -> list[int]:
    """Ids of the living (not zombie) processes of a process group."""
    members = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            members.append(int(entry))
    return members


def wait_gone(pid: int, seconds: float) -> bool:
    """Wait for any process, child or not, to end; False when it still runs after `seconds`."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], max(0.0, seconds))[0])
    finally:
        os.close(handle)


def end_group(group: int, *, seconds: float = STOP_SECONDS, first: int = signal.SIGTERM) -> None:
    """End every process of a group that we started: ask with `first`, then SIGKILL.

    Returns once none is left, so that its ports are free. Raises PeerFailed if one survives.
    """
    for signum, patience in ((first, seconds), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signum)
        deadline = time.monotonic() + patience
        while members := group_members(group):
            if not wait_gone(members[0], deadline - time.monotonic()):
                break
        else:
            return
    raise PeerFailed(f"process group {group} survived SIGKILL: {group_members(group)}")


class Guard:
    """Kills a process group when this process ends without having ended it."""

    def __init__(self, group: int) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; kill -KILL "-$1"', "guard", str(group)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def release(self) -> None:
        """Stand down: the group was ended in good order. Harmless when repeated."""
        if self._shell.poll() is None:
            self._shell.kill()
            self._shell.wait()
        if self._shell.stdin is not None:
            self._shell.stdin.close()


class Running:
    """One started program with its own process group. `with` it, or call `stop`.

    Its standard output and error go to `output` (a file, so that it never
    blocks on us), or to /dev/null.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        output: Path | None = None,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.arguments = tuple(arguments)
        self.output = output
        sink: IO[bytes] | int = subprocess.DEVNULL
        with contextlib.ExitStack() as stack:
            if output is not None:
                sink = stack.enter_context(open(output, "ab"))
            self._process = subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd=cwd,
                env=None if environment is None else {**os.environ, **environment},
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._guard = Guard(self.pid)

    @property
    def alive(self) -> bool:
        """True while the program itself runs."""
        return self._process.poll() is None

    def said(self) -> str:
        """What it wrote so far (the last 20,000 octets)."""
        if self.output is None or not self.output.exists():
            return ""
        return self.output.read_bytes()[-20_000:].decode("utf-8", "replace")

    def wait_answering(self, port: int, *, host: str = "127.0.0.1", seconds: float = 20) -> None:
        """Wait until it accepts connections on `host`:`port`. Raises PeerFailed with its output."""
        deadline = time.monotonic() + seconds
        while not answers(port, host=host):
            if not self.alive or time.monotonic() > deadline:
                self.stop()
                raise PeerFailed(f"{self.arguments[0]} does not answer on {port}: {self.said()}")
            time.sleep(0.005)

    def send_signal(self, signum: int) -> None:
        """Signal the program (not its group)."""
        self._process.send_signal(signum)

    def kill_group(self) -> None:
        """SIGKILL everything it started, at once: a crash."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.stop()

    def stop(self, *, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM to the program, SIGKILL to what is left of its group; returns its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self._guard.release()
        if self._process.returncode is None or group_members(self.pid):
            end_group(self.pid, seconds=1.0)
        return self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
