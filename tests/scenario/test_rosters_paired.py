"""Both sides of ours: `primary serve` publishes, `serve` fetches, over HTTPS with a pin."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from fakes.http_server import Certificate
from peers.node import PosthouseNode
from peers.primary import PrimaryNode, run_command
from peers.processes import free_port, wait_until
from peers.smtp_tools import swaks

pytestmark = pytest.mark.peers

DOMAIN, BACKUP = "example.com", "mx2.example.net"


class World:
    """A paired primary and backup; the primary's mail server is down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.primary = PrimaryNode(
            folder / "primary",
            users=["alice", "bob"],
            certificate=Certificate(trustme.CA(), "127.0.0.1"),
        )
        self.node = PosthouseNode(
            folder / "backup",
            next_hop=[f"smtp://127.0.0.1:{free_port()}"],
            domain_keys={"recipients": {"primary": DOMAIN}, "verify": "off"},
            sections={"https": {"listen": [f"127.0.0.1:{free_port()}"]}},
        )
        self._carried = 0

    def carry(self, *more: str, to_backup: bool) -> None:
        """An offer is made on one side, carried, and accepted on the other."""
        self._carried += 1
        file = self.folder / f"{self._carried}.json"
        ends = (self.primary.file, self.node.file)
        (there, here), party = (ends, BACKUP) if to_backup else (ends[::-1], DOMAIN)
        pin = ["--pin"] if to_backup else []
        run_command(there, "pair", "offer", "--to", party, "-o", str(file), *pin, *more)
        run_command(here, "pair", "accept", str(file), *more)

    def pair(self) -> None:
        self.carry(to_backup=True)
        self.carry(to_backup=False)
        self.primary.add_backup(BACKUP)
        self.node.primaries.append(
            {"pairing": f"pairs/{DOMAIN}.json", "own": f"pairs/{BACKUP}.json"}
        )
        self.node.write()

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.node.status()["domains"][0]["recipients"]
        return facts

    def takes(self, user: str) -> bool:
        arguments = ("--to", f"{user}@{DOMAIN}", "--from", "a@b.example", "--quit-after", "RCPT")
        transcript = swaks(self.node.port, *arguments).transcript
        assert "250 2.1.5" in transcript or "550 5.1.1" in transcript, transcript
        return "250 2.1.5" in transcript

    def await_entries(self, count: int) -> None:
        """Ask until the roster of so many users (and postmaster) is in force."""

        def is_there() -> bool:
            self.node.command("roster", "fetch")
            return bool(self.facts()["entries"] == count + 1)

        wait_until(is_there, what=f"a roster of {count} users")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.pair()
    with world.primary:
        world.primary.wait_log("serial")
        with world.node:
            yield world


def test_users_come_and_go_keys_change_and_the_primary_goes(world: World) -> None:
    """A new user and a new key reach the verdict; what is in force outlives the publisher."""
    assert world.takes("alice+news")
    assert not world.takes("carol")
    before = world.facts()["serial"]
    world.carry("--rotate", to_backup=True)
    world.primary.reload()
    world.node.running.send_signal(signal.SIGHUP)
    world.primary.set_users(["alice", "bob", "carol"])
    world.await_entries(3)
    assert world.takes("carol")
    assert world.facts()["serial"] > before
    assert world.facts()["problem"] == ""
    world.primary.stop()
    assert "onnect" in world.node.command("roster", "fetch", DOMAIN).stdout
    world.node.stop()
    world.node.start()
    assert world.takes("carol")
    assert not world.takes("nobody")
