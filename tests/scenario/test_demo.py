"""`posthouse demo`, as a new user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from posthouse.cli.demo_mail import find_faults, get_recipient, make_message, send_messages
from posthouse.cli.demo_stage import Stage

TRACE = b"Received: from client by mx2\r\n\tfor <alice@example.com>; now\r\n"


def start_demo(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from posthouse.cli.main import main; main()", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(directory), "PYTHONUNBUFFERED": "1"},
    )


def processes_about(directory: Path) -> list[str]:
    """Command lines that name the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
            except OSError:
                continue
            if str(directory) in command:
                found.append(command.replace("\0", " "))
    return found


def test_rehearsal_succeeds_and_cleans_up(tmp_path: Path) -> None:
    """The rehearsal ends well, told in plain lines, and leaves neither files nor processes."""
    demo = start_demo(tmp_path, "--messages", "60")
    told, complained = demo.communicate(timeout=100)
    assert demo.returncode == 0, told + complained
    assert complained == ""
    for fact in (
        "550 5.1.1",
        "60 accepted by the backup          queue:   60",
        "queue:   60: nothing is lost",
        "63 of 63 at the primary            queue:    0",
        "63 of 63 identical",
        "posthouse check -c posthouse.toml",
    ):
        assert fact in told, told
    assert "\x1b" not in told
    assert "\r" not in told
    assert list(tmp_path.iterdir()) == []
    assert processes_about(tmp_path) == []


def test_interrupted_rehearsal_cleans_up(tmp_path: Path) -> None:
    """A rehearsal that is told to stop ends its servers and removes its files."""
    demo = start_demo(tmp_path)
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("3. "):
            break
    demo.send_signal(signal.SIGTERM)
    demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert list(tmp_path.iterdir()) == []
    assert processes_about(tmp_path) == []


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


def test_primary_stores_the_octets_it_gets(stage: Stage) -> None:
    """What the primary of the rehearsal stores is what was sent, whatever the kind."""
    stage.start_primary()
    send_messages(stage.primary_port, range(8))
    stored = sorted(stage.arrived.glob("*.eml"))
    assert len(stored) == 8
    for number, path in enumerate(stored):
        envelope, _, octets = path.read_bytes().partition(b"\n")
        assert envelope.decode() == f"friend@example.org {get_recipient(number)}"
        assert octets == make_message(number)


WHOLE = {number: (number, TRACE + make_message(number)) for number in range(4)}


def store(directory: Path, deliveries: Iterable[tuple[int, bytes]]) -> list[str]:
    """Store (message whose envelope it has, octets) and compare with messages 0 to 3."""
    for place, (number, octets) in enumerate(deliveries):
        envelope = f"friend@example.org {get_recipient(number)}\n".encode()
        (directory / f"{place}.eml").write_bytes(envelope + octets)
    return find_faults(directory, 4)


def test_whole_delivery_has_no_fault(tmp_path: Path) -> None:
    """Messages with nothing but trace fields on top pass, in any order."""
    assert store(tmp_path, reversed(WHOLE.values())) == []


@pytest.mark.parametrize(
    ("delivery", "fault"),
    [
        ((0, TRACE + make_message(0)[:-1]), "message 0 is not what was sent"),
        ((0, make_message(0)), "message 0 is not what was sent"),
        ((0, TRACE + b"X-Scanned: yes\r\n" + make_message(0)), "message 0 is not what was sent"),
        ((0, TRACE + make_message(0).replace(b"\n..\r", b"\n.\r")), "message 0 is not"),
        ((0, TRACE + make_message(5)), "nobody sent this"),
        ((0, b""), "nobody sent this"),
        ((0, TRACE + make_message(1)), "message 1 came with the envelope"),
        ((1, TRACE + make_message(1)), "message 1 arrived twice"),
        ((1, TRACE + make_message(1)), "message 0 did not arrive"),
    ],
)
def test_every_fault_is_found(tmp_path: Path, delivery: tuple[int, bytes], fault: str) -> None:
    """A damaged, foreign, missing, doubled or misdirected message fails the rehearsal."""
    faults = store(tmp_path, (WHOLE | {0: delivery}).values())
    assert any(line.startswith(fault) or line.endswith(fault) for line in faults), faults
