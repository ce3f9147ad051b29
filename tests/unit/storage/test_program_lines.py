"""Programs that list something: whole or not at all."""

from __future__ import annotations

import sys

import pytest

from peers.processes import group_members, wait_until
from posthouse.errors import SourceFailed
from posthouse.storage.program_lines import MAX_LINE_BYTES, read_program_lines


def lines_of(program: str, **limits: float) -> list[str]:
    return list(read_program_lines([sys.executable, "-c", program], **limits))


def test_lines_come_whole() -> None:
    """Lines are whole however they were written; the last needs no line feed."""
    program = (
        "import sys\nfor i in range(30000): sys.stdout.write(f'user{i}\\n')\nprint('é', end='')"
    )
    lines = lines_of(program)
    assert lines == [*(f"user{i}" for i in range(30000)), "é"]


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("print('alice'); raise SystemExit(3)", r"failed \(3\): it did not say why"),
        ("import sys; print('a'); sys.exit('no such\\x1b[1m map')", r"no such\?\[1m map"),
        (f"print('x' * {MAX_LINE_BYTES * 9})", "more than can be taken"),
        ("import os; os.kill(os.getpid(), 9)", r"failed \(-9\)"),
    ],
)
def test_failures_are_no_lists(program: str, said: str) -> None:
    """An exit code, a signal or too much output raise, whatever was listed before."""
    with pytest.raises(SourceFailed, match=said):
        lines_of(program)


def test_silence_is_bounded() -> None:
    """A program that says nothing, or goes on for ever, is ended."""
    with pytest.raises(SourceFailed, match="took too long"):
        lines_of("import time; time.sleep(60)", silence=0.05)
    with pytest.raises(SourceFailed, match="took too long"):
        lines_of("while True: print('x', flush=True)", timeout=0.2)
    with pytest.raises(SourceFailed, match="does not end"):
        lines_of("import os, time; os.close(1); time.sleep(60)", silence=0.5)


def test_missing_program_is_named() -> None:
    """What cannot be run says so."""
    with pytest.raises(SourceFailed, match="no-such-program cannot be run"):
        list(read_program_lines(["no-such-program"]))


def test_nothing_is_left_behind() -> None:
    """A program is ended with its reader, and so is what it started."""
    program = (
        "import os, subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(os.getpid(), flush=True)\nimport time\ntime.sleep(60)"
    )
    lines = read_program_lines([sys.executable, "-c", program])
    group = int(next(iter(lines)))
    assert group_members(group)
    lines.close()  # type: ignore[attr-defined]
    wait_until(lambda: not group_members(group), what="the end of all of them")


def test_environment_is_ours_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of our environment goes to the program but where programs are."""
    monkeypatch.setenv("PGPASSWORD", "secret")
    names = lines_of("import os\nfor name in os.environ: print(name)")
    assert set(names) <= {"PATH", "LC_ALL"}
