"""Log lines: Postfix's shape, JSON, and nothing a stranger could forge."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posthouse import observe


@pytest.fixture(name="log")
def make_log(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "log"
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
