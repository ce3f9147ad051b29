"""Alerts given to a program."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from peers.processes import wait_until
from posthouse.errors import TellingFailed
from posthouse.ports_alerts import Notice
from posthouse.transports.alert_command import AlertCommand

NOTICE = Notice(node="mx2.example.net", number=4, alerts=(), made_us=1)


def command(script: str, *more: str, seconds: float = 30.0) -> AlertCommand:
    return AlertCommand(
        [sys.executable, "-c", script, *more],
        document=lambda notice: {"node": notice.node, "text": "; rm -rf / $(x)"},
        run_seconds=seconds,
    )


async def test_the_notice_is_on_standard_input(tmp_path: Path) -> None:
    """JSON on standard input; the words of the configuration as they are; no shell."""
    kept = tmp_path / "kept"
    script = "import sys; open(sys.argv[1], 'w').write(sys.stdin.read() + repr(sys.argv[2:]))"
    await command(script, str(kept), "$HOME", "a b;c").deliver(NOTICE)
    line, words = kept.read_text().split("\n")
    assert json.loads(line) == {"node": "mx2.example.net", "text": "; rm -rf / $(x)"}
    assert words == "['$HOME', 'a b;c']"


async def test_a_program_need_not_read() -> None:
    """Exit status 0 is enough."""
    await command("import os; os.close(0)").deliver(NOTICE)


async def test_why_it_failed() -> None:
    """Exit status and the first line of standard error, made printable and bounded."""
    script = "import sys; sys.stderr.write('no\\x1b way\\nmore' + 'x' * 100000); sys.exit(3)"
    with pytest.raises(TellingFailed, match=r"exit status 3 no\?1B way$"):
        await command(script).deliver(NOTICE)
    with pytest.raises(TellingFailed, match="No such file"):
        await AlertCommand(["/nonexistent/x"], document=lambda _: {}).deliver(NOTICE)


async def test_its_time_is_bounded_and_nothing_is_left(tmp_path: Path) -> None:
    """A program that hangs is killed with all it started."""
    pids = tmp_path / "pids"
    script = (
        "import os, sys, time\n"
        "child = os.fork()\n"
        "if child: open(sys.argv[1], 'w').write(f'{os.getpid()} {child}')\n"
        "time.sleep(600)"
    )
    with pytest.raises(TellingFailed, match="took over"):
        await command(script, str(pids), seconds=1.0).deliver(NOTICE)
    for pid in map(int, pids.read_text().split()):
        wait_until(lambda pid=pid: not _runs(pid), what=f"the end of {pid}")  # type: ignore[misc]


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_it_hears_signals() -> None:
    """The program does not inherit what a node's processes block."""
    script = "import signal, sys; sys.exit(len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
    await command(script).deliver(NOTICE)
