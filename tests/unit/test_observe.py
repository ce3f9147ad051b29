"""Log lines: Postfix's shape, JSON, and nothing a stranger could forge."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posthouse import log_sink, observe


@pytest.fixture(name="log")
def make_log(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "log"
    observe.configure(to=str(tmp_path / "before"))  # takes what other tests left behind
    observe.note("x", "begin")
    yield path
    observe.configure(to="stderr")


def test_text_lines(log: Path) -> None:
    """Text lines have date, host, postfix/daemon[pid]."""
    observe.configure(to=str(log), hostname="mx2.example.net")
    observe.client_connected("unknown", "192.0.2.7", 25)
    observe.message_removed("0ABC")
    first, second = log.read_text().splitlines()
    assert " mx2 postfix/smtpd[" in first
    assert first.endswith("]: connect from unknown[192.0.2.7]")
    assert second.endswith("0ABC: removed")


def test_json_lines(log: Path) -> None:
    """With format json each line is one object with the same facts."""
    observe.configure(fmt="json", to=str(log))
    observe.recipient_refused(
        "unknown", "192.0.2.7", "550 5.1.1 x", "a@b.example", "", "ESMTP", "h"
    )
    observe.client_connected("n", "192.0.2.7", 25)
    record, second = [json.loads(line) for line in log.read_text().splitlines()]
    assert record["event"] == "refused_recipient"
    assert record["recipient"] == "a@b.example"
    assert second["event"] == "connect"


def test_no_forged_lines(log: Path) -> None:
    """Control characters of a peer never reach a log."""
    observe.configure(to=str(log))
    observe.recipient_refused(
        "unknown", "192.0.2.7", "550 x", "a\nNov 1 forged", "\x1b[31m\u2028", "ESMTP", "h\r"
    )
    (line,) = log.read_text().splitlines()
    assert "a?0ANov 1 forged" in line
    assert "\x1b" not in line


def test_gathered_lines_are_written_together(log: Path) -> None:
    """With a scheduler the lines of one turn are one write, and flush writes at once."""
    observe.configure(to=str(log))
    due: list[Callable[[], None]] = []
    observe.gather_with(due.append)
    try:
        observe.message_removed("0A")
        observe.message_removed("0B")
        assert log.read_text() == ""
        assert len(due) == 1
        due[0]()
        assert len(log.read_text().splitlines()) == 2
    finally:
        observe.gather_with(None)


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    """A full log disk loses lines, counts them, and mail goes on."""
    before = observe._sink.lost
    observe.configure(to="/dev/full")
    observe.message_removed("0A")
    assert observe._sink.lost == before + 1
    observe.configure(to="stderr")


def test_what_does_not_print_is_escaped(log: Path) -> None:
    """Changes of direction, C1 controls and lone surrogates never reach a log, in a reply either."""
    observe.configure(to=str(log))
    observe.recipient_refused("n", "192.0.2.7", "550 \u202e\x9b x", "", "\udc80", "ESMTP", "h")
    assert log.read_text().isascii()
    assert "550 ?u202E?9B x" in log.read_text()


def test_a_lone_surrogate_in_json(log: Path) -> None:
    """What JSON cannot say is escaped, and the line is written."""
    observe.configure(fmt="json", to=str(log))
    observe.note("x", "\udc80")
    assert json.loads(log.read_text())["text"] == "?uDC80"


@contextlib.contextmanager
def pipe_as_stderr() -> Iterator[int]:
    """Stand a pipe in the place of standard error; yields its reading end."""
    reading, writing = os.pipe()
    kept = os.dup(2)
    os.dup2(writing, 2)
    os.close(writing)
    observe.configure(to="stderr")
    try:
        yield reading
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        observe.configure(to="stderr")
        os.close(reading)


@pytest.mark.usefixtures("log")
def test_a_reader_that_stands_still() -> None:
    """A full pipe stops nobody: lines wait, then are lost, and how many is told afterwards."""
    with pipe_as_stderr() as pipe:
        read = fill_and_read(pipe)
    lines = read.decode().splitlines()
    losses = [line for line in lines if "lines were lost" in line]
    assert len(losses) == 1, losses
    (loss,) = losses
    lost = int(loss.split("log: ")[1].split()[0])
    assert lost > 0
    numbers = [int(line.split("]: ")[1][:5]) for line in lines if line != loss]
    assert numbers == list(range(3000 - lost))


def fill_and_read(pipe: int) -> bytes:
    for number in range(3000):
        observe.note("x", f"{number:05} " + "y" * 1000)
    assert os.get_blocking(2)
    os.set_blocking(pipe, False)
    read = b""
    for _ in range(2000):
        with contextlib.suppress(BlockingIOError):
            read += os.read(pipe, 65536)
        observe.flush()
    return read


def test_syslog_that_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines reach the new socket; what was logged meanwhile is kept."""
    place = str(tmp_path / "log")
    monkeypatch.setattr(log_sink, "SYSLOG_PATH", place)
    monkeypatch.setattr(log_sink, "_RECONNECT_SECONDS", 0.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
        first.bind(place)
        observe.configure(to="syslog")
        observe.note("x", "one")
        assert first.recv(999).endswith(b": one")
    observe.note("x", "two")
    os.unlink(place)
    observe.note("x", "three")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as second:
        second.bind(place)
        observe.note("x", "four")
        told = [second.recv(999)[-5:] for _ in range(3)]
        assert told == [b": two", b"three", b" four"]
        for _ in range(5000):  # nobody reads any more
            observe.note("x", "y" * 200)
    observe.configure(to="stderr")


def test_a_named_pipe_that_nobody_reads(tmp_path: Path) -> None:
    """It is refused at once as a place for a log."""
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device"):
        observe.configure(to=str(tmp_path / "fifo"))
    observe.configure(to="stderr")
