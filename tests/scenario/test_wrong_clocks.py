"""The backup's clock is wrong, or becomes so: people are told, and all is well when it is set right.

Both sides are real processes; only the backup's clock is moved (peers.wrong_clock).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.processes import free_port, wait_until
from peers.smtp_tools import SmtpSink
from peers.town import DOMAIN, Town
from peers.wrong_clock import WrongClock

pytestmark = pytest.mark.peers

DAY = 86_400_000_000
YEAR = 365 * DAY


class Stage:
    """A town whose backup lives by a clock of its own."""

    def __init__(self, folder: Path) -> None:
        self.sink = SmtpSink(folder, port=free_port())
        self.town = Town(folder, next_hop=self.sink.port, users=["alice", "bob"])
        self.clock = WrongClock(folder / "clock")
        self.node = self.town.backup
        self.node.program = self.clock.program
        self.node.settings["alerts"]["delay"] = "0s"
        self.node.write()

    def alerts(self) -> dict[str, list[str]]:
        """The texts of what stands, by kind."""
        found: dict[str, list[str]] = {}
        for line in self.node.command("alerts", "--json").stdout.splitlines():
            alert = json.loads(line)
            found.setdefault(alert["kind"], []).append(alert["text"])
        return found

    def wait_clock(self, words: str) -> None:
        wait_until(lambda: words in str(self.alerts().get("clock")), what=f"an alert: {words}")

    def states(self) -> set[str]:
        """Of all recipients in the queue."""
        return {r["state"] for m in self.node.queue() for r in m["recipients"]}

    def wait_home(self, count: int) -> None:
        """The primary is back: everything goes there."""
        with self.sink:
            self.sink.wait_messages(count)
            self.node.wait_queue(0)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.town.stop()


@pytest.mark.parametrize("leap", [YEAR, -DAY])
def test_set_wrong_and_right_again(stage: Stage, leap: int) -> None:
    """While it runs: known people are taken, nobody is refused by what looks expired, no mail is
    held; set right, it is as before."""
    town = stage.town
    town.start()
    town.send("alice")
    town.wait_state("agreed")
    stage.clock.set(leap)
    stage.wait_clock("was set")
    assert town.ask("alice") == "250 2.1.5"
    assert town.ask("bob") == "250 2.1.5"
    assert town.ask("nobody") == ("451 4.4.3" if leap == YEAR else "550 5.1.1")
    town.send("bob")
    assert stage.states() == {"queued"}
    stage.clock.set(0)
    wait_until(lambda: town.ask("nobody") == "550 5.1.1", what="the roster to count again")
    wait_until(lambda: "clock" not in stage.alerts(), what="the all-clear")
    assert "list-stale" not in stage.alerts()
    stage.wait_home(2)


@pytest.mark.parametrize("wrong", [YEAR, -YEAR])
def test_started_with_a_wrong_clock(stage: Stage, wrong: int) -> None:
    """No roster can be taken in, and it is said why; the promise is asked for instead. Started
    again with the right time nothing waits for next year, least of all a denial."""
    town = stage.town
    stage.clock.set(wrong)
    town.primary.add_backup("mx2.example.net")
    town.primary.start()
    town.primary.wait_log("serial")
    town.backup.start()
    stage.wait_clock(f"{'ahead of' if wrong > 0 else 'behind'} that of {DOMAIN}")
    assert "roster-refused" in stage.alerts()
    assert town.ask("alice") == "451 4.7.1"
    assert town.ask("carol") == "451 4.7.1"
    wait_until(lambda: town.ask("alice") == "250 2.1.5", what="the promise")
    wait_until(lambda: town.ask("carol") == "550 5.1.1", what="the denial")
    town.send("alice")
    town.backup.stop()
    stage.clock.set(0)
    town.primary.set_users(["alice", "bob", "carol"])
    town.primary.reload()
    town.backup.start()
    wait_until(lambda: town.ask("nobody") == "550 5.1.1", what="the roster")
    wait_until(lambda: town.ask("carol") == "250 2.1.5", what="the newcomer")
    wait_until(lambda: "clock" not in stage.alerts(), what="the all-clear")
    assert stage.states() == {"queued"}
    stage.wait_home(1)
