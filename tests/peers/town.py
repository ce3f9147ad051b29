"""A primary's process and its backup, paired by the four commands: real processes, no mail server.

::

    town = Town(tmp_path, users=["alice"])
    town.start()
    town.send("alice")
    town.wait_state("agreed")
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peers.node import PosthouseNode
from peers.primary import PrimaryNode, run_command
from peers.processes import free_port, wait_until
from peers.smtp_tools import swaks

DOMAIN, BACKUP = "example.com", "mx2.example.net"


def ask(node: PosthouseNode, user: str, domain: str = DOMAIN) -> str:
    """What RCPT for `user` is answered, without the text."""
    run = swaks(
        node.port, "--to", f"{user}@{domain}", "--from", "a@b.example", "--quit-after", "RCPT"
    )
    reply = run.transcript[run.transcript.index("RCPT TO") :].splitlines()[1]
    return " ".join(reply.lstrip("<-* ~").split()[:2])


def send(node: PosthouseNode, user: str) -> None:
    """A message that is taken."""
    run = swaks(node.port, "--to", f"{user}@{DOMAIN}", "--from", "a@b.example")
    assert run.ok, run.transcript


def wait_roster(node: PosthouseNode) -> None:
    """Until it knows who does not exist."""
    wait_until(lambda: ask(node, "nobody") == "550 5.1.1", what="the first roster")


def held(node: PosthouseNode, user: str = "alice") -> dict[str, Any]:
    """What a backup's book says."""
    done = node.command("agreements", "show", f"{user}@{DOMAIN}", "--json")
    found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    return found


def wait_state(node: PosthouseNode, state: str, user: str = "alice") -> dict[str, Any]:
    wait_until(lambda: held(node, user).get("state") == state, what=f"{user} to be {state}")
    return held(node, user)


def make_backup(
    primary: PrimaryNode, directory: Path, name: str = BACKUP, *, next_hop: int | None = None
) -> PosthouseNode:
    """A backup that is paired with the primary by the four commands."""
    calls = free_port()
    backup = PosthouseNode(
        directory,
        next_hop=[f"smtp://127.0.0.1:{next_hop or free_port()}"],
        top={"hostname": name},
        domain_keys={"recipients": {"primary": DOMAIN}, "verify": "off"},
        sections={"https": {"listen": [f"127.0.0.1:{calls}"]}},
    )
    backup.primaries.append({"pairing": f"pairs/{DOMAIN}.json", "own": f"pairs/{name}.json"})
    backup.write()
    for offers, accepts, party, more in (
        (primary.file, backup.file, name, []),
        (backup.file, primary.file, DOMAIN, ["--base-url", f"http://127.0.0.1:{calls}/"]),
    ):
        carried = directory / f"for-{party}.json"
        run_command(offers, "pair", "offer", "--to", party, *more, "-o", str(carried))
        run_command(accepts, "pair", "accept", str(carried))
    return backup


class Town:
    """A primary's process and its backup, paired by the four commands."""

    def __init__(self, folder: Path, *, next_hop: int | None = None, **primary: Any) -> None:
        self.primary = PrimaryNode(folder / "primary", **primary)
        self.backup = make_backup(self.primary, folder / "backup", next_hop=next_hop)

    def start(self, **keys: Any) -> None:
        """Both, with a roster in force at the backup."""
        self.primary.add_backup(BACKUP, **keys)
        self.primary.start()
        self.primary.wait_log("serial")
        self.backup.start()
        wait_roster(self.backup)

    def stop(self) -> None:
        self.backup.stop()
        self.primary.stop()

    def ask(self, user: str) -> str:
        """What RCPT for `user` is answered, without the text."""
        return ask(self.backup, user)

    def send(self, user: str) -> None:
        """A message that is taken."""
        send(self.backup, user)

    def held(self, user: str = "alice") -> dict[str, Any]:
        """What the backup's book says."""
        return held(self.backup, user)

    def wait_state(self, state: str, user: str = "alice") -> dict[str, Any]:
        """Until its book says so."""
        return wait_state(self.backup, state, user)

    def granted(self) -> list[dict[str, Any]]:
        """What the primary's book says."""
        text = self.primary.command("agreements", "list", "--json")
        return [json.loads(line) for line in text.splitlines()]
