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


class Town:
    """A primary's process and its backup, paired by the four commands."""

    def __init__(self, folder: Path, *, next_hop: int | None = None, **primary: Any) -> None:
        self.primary = PrimaryNode(folder / "primary", **primary)
        calls = free_port()
        self.backup = PosthouseNode(
            folder / "backup",
            next_hop=[f"smtp://127.0.0.1:{next_hop or free_port()}"],
            domain_keys={"recipients": {"primary": DOMAIN}, "verify": "off"},
            sections={"https": {"listen": [f"127.0.0.1:{calls}"]}},
        )
        self.backup.primaries.append(
            {"pairing": f"pairs/{DOMAIN}.json", "own": f"pairs/{BACKUP}.json"}
        )
        self.backup.write()
        url = f"http://127.0.0.1:{calls}/"
        for offers, accepts, party, more in (
            (self.primary.file, self.backup.file, BACKUP, []),
            (self.backup.file, self.primary.file, DOMAIN, ["--base-url", url]),
        ):
            carried = folder / f"for-{party}.json"
            run_command(offers, "pair", "offer", "--to", party, "-o", str(carried), *more)
            run_command(accepts, "pair", "accept", str(carried))

    def start(self, **keys: Any) -> None:
        """Both, with a roster in force at the backup."""
        self.primary.add_backup(BACKUP, **keys)
        self.primary.start()
        self.primary.wait_log("serial")
        self.backup.start()
        wait_until(lambda: self.ask("nobody") == "550 5.1.1", what="the first roster")

    def stop(self) -> None:
        self.backup.stop()
        self.primary.stop()

    def ask(self, user: str) -> str:
        """What RCPT for `user` is answered, without the text."""
        run = swaks(
            self.backup.port, "--to", f"{user}@{DOMAIN}", "--from", "a@b.example",
            "--quit-after", "RCPT",
        )  # fmt: skip
        reply = run.transcript[run.transcript.index("RCPT TO") :].splitlines()[1]
        return " ".join(reply.lstrip("<-* ~").split()[:2])

    def send(self, user: str) -> None:
        """A message that is taken."""
        run = swaks(self.backup.port, "--to", f"{user}@{DOMAIN}", "--from", "a@b.example")
        assert run.ok, run.transcript

    def held(self, user: str = "alice") -> dict[str, Any]:
        """What the backup's book says."""
        done = self.backup.command("agreements", "show", f"{user}@{DOMAIN}", "--json")
        found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        return found

    def wait_state(self, state: str, user: str = "alice") -> dict[str, Any]:
        wait_until(lambda: self.held(user).get("state") == state, what=f"{user} to be {state}")
        return self.held(user)

    def granted(self) -> list[dict[str, Any]]:
        """What the primary's book says."""
        text = self.primary.command("agreements", "list", "--json")
        return [json.loads(line) for line in text.splitlines()]
