from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


class Supervised:
    """A running `fakes.supervised`."""

    def __init__(self, *duties: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fakes.supervised", *duties],
            env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.seen: list[tuple[str, int, str]] = []

    def wait_for(self, name: str, event: str, *, other_than: int = 0) -> int:
        """Read on until `name` told `event`; returns its pid."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            who, pid, what = line.rstrip("\n").split(" ", 2)
            self.seen.append((who, int(pid), what))
            if (who, what) == (name, event) and int(pid) != other_than:
                return int(pid)
        raise AssertionError(f"{name} never told {event!r}: {self.seen}")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait_end(self) -> int:
        """Read to the end of output, which is when the last child is gone."""
        out, self.log = self.process.communicate()
        self.rest = out.splitlines()
        return self.process.returncode


@contextlib.contextmanager
def supervised(*duties: str, **environment: str) -> Iterator[Supervised]:
    running = Supervised(*duties, **environment)
    try:
        running.wait_for("supervisor", "begins")
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


def test_a_killed_child_is_replaced() -> None:
    """A crashed worker starts again, and the log says what happened."""
    with supervised("steady") as running:
        first = running.wait_for("steady", "serves")
        os.kill(first, signal.SIGKILL)
        assert running.wait_for("steady", "serves", other_than=first) != first
        running.send(signal.SIGTERM)
        assert running.wait_end() == 0
    assert f"steady (pid {first}) was killed by SIGKILL" in running.log


@pytest.mark.parametrize(
    ("duty", "event", "told"),
    [("broken", "fails", "ended with 3"), ("faulty", "raises", "RuntimeError: a fault of our own")],
)
def test_a_child_that_keeps_failing_keeps_being_tried(duty: str, event: str, told: str) -> None:
    """Failures of one child are told and repeated starts never stop; the others serve on."""
    with supervised("steady", duty) as running:
        first = running.wait_for(duty, event)
        second = running.wait_for(duty, event, other_than=first)
        running.wait_for(duty, event, other_than=second)
        running.send(signal.SIGTERM)
        assert running.wait_end() == 0
    assert told in running.log


def test_a_child_whose_loop_stands_still_is_replaced() -> None:
    """A hanging worker is killed and started again."""
    with supervised("stuck") as running:
        first = running.wait_for("stuck", "serves")
        running.wait_for("stuck", "serves", other_than=first)
        running.send(signal.SIGTERM)
        running.wait_end()
    assert f"stuck (pid {first}) hangs: killed" in running.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_children_finish_before_the_supervisor_ends(number: signal.Signals) -> None:
    """SIGTERM and SIGINT let every child finish; listening sockets go first."""
    with supervised("steady", "steady") as running:
        first = running.wait_for("steady", "serves")
        running.wait_for("steady", "serves", other_than=first)
        running.send(number)
        assert running.wait_end() == 0
    events = [line.split(" ", 2)[2] for line in running.rest]
    assert events == ["releases", "finished", "finished", "ends"]


def test_a_child_that_will_not_end_is_killed() -> None:
    """After the grace nobody is waited for."""
    with supervised("stubborn") as running:
        running.wait_for("stubborn", "serves")
        running.send(signal.SIGTERM)
        assert running.wait_end() == 0
    assert "not all processes ended in time: killed" in running.log


def test_reload_reaches_the_children() -> None:
    """SIGHUP reads the configuration once and is passed on to every child."""
    with supervised("steady") as running:
        child = running.wait_for("steady", "serves")
        running.send(signal.SIGHUP)
        running.wait_for("supervisor", "reads")
        assert running.wait_for("steady", "reloaded") == child


def test_a_bad_reload_stops_at_the_supervisor() -> None:
    """When the new configuration is bad the children hear nothing of it."""
    with supervised("steady", RELOAD="bad") as running:
        running.wait_for("steady", "serves")
        running.send(signal.SIGHUP)
        running.wait_for("supervisor", "reads")
        running.send(signal.SIGTERM)
        assert running.wait_end() == 0
    assert not any("reloaded" in line for line in running.rest)


def test_children_die_with_the_supervisor() -> None:
    """When the supervisor is killed no child is left behind."""
    with supervised("steady", "stubborn") as running:
        running.wait_for("stubborn", "serves")
        running.send(signal.SIGKILL)
        running.wait_end()  # the output ends when the last child is gone


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    """READY once all serve, WATCHDOG while they do, RELOADING and READY around a reload, STOPPING."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))

        def next_message() -> str:
            while True:
                message = manager.recv(4096).decode()
                if message != "WATCHDOG=1":
                    return message
                heard.append(message)

        heard: list[str] = []
        with supervised("steady", NOTIFY_SOCKET=str(tmp_path / "notify")) as running:
            assert next_message() == "READY=1"
            running.send(signal.SIGHUP)
            assert next_message().startswith("RELOADING=1\nMONOTONIC_USEC=")
            assert next_message() == "READY=1"
            running.send(signal.SIGTERM)
            assert next_message() == "STOPPING=1"
            assert running.wait_end() == 0
        assert heard


def test_the_service_manager_is_told_although_one_child_fails(tmp_path: Path) -> None:
    """A worker that cannot start does not keep the others from being of use."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        with supervised("broken", "steady", NOTIFY_SOCKET=str(tmp_path / "notify")):
            while manager.recv(4096) != b"READY=1":
                pass
