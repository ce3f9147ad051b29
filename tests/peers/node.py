"""A whole Posthouse node for scenario tests: its configuration, its processes, its commands.

::

    with PosthouseNode(tmp_path, next_hop=[f"smtp://127.0.0.1:{primary.port}"]) as node:
        swaks(node.port, "--to", "user@example.com")
        node.wait_queue(0)
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from peers.processes import PeerFailed, Running, free_port, wait_until

POSTHOUSE = Path(sys.executable).parent / "posthouse"


class PosthouseNode:
    """A node in `directory`; `with` starts and stops it, `start`, `crash`, `stop` do so by hand."""

    def __init__(
        self,
        directory: Path,
        *,
        next_hop: str | Sequence[str] = "mx",
        users: Iterable[str] = ("user", "postmaster"),
        domain: str = "example.com",
        workers: int = 2,
        smtp: Mapping[str, object] | None = None,
        relay: Mapping[str, object] | None = None,
        top: Mapping[str, object] | None = None,
        domain_keys: Mapping[str, object] | None = None,
        dns: str | None = None,
        sections: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self.file = directory / "posthouse.toml"
        self.log_file = directory / "mail.log"
        self.recipients = directory / f"{domain}.recipients"
        self.recipients.write_text("".join(f"{user}@{domain}\n" for user in users))
        self.settings: dict[str, dict[str, object]] = {
            "": {
                "hostname": "mx2.example.net",
                "data_dir": str(directory / "data"),
                "contact": "ops@elsewhere.example",
                "workers": workers,
                "shutdown_grace": "5s",
                **(top or {}),
            },
            "smtp": {
                "listen": [f"127.0.0.1:{self.port}"],
                "reverse_dns": False,
                **(smtp or {}),
            },
            "relay": {"probe_interval": "1s", **(relay or {})},
            "dns": {"servers": [dns], "timeout": "2s"} if dns else {"timeout": "2s"},
            "log": {"to": str(self.log_file)},
            "spool": {"min_free": "1MB"},
            # Nobody is told by mail unless a test wants it: that asks DNS.
            "alerts": {"mail": False},
        }
        for section, keys in (sections or {}).items():
            self.settings.setdefault(section, {}).update(keys)
        self.domains: list[dict[str, object]] = [
            {
                "name": domain,
                "next_hop": next_hop if isinstance(next_hop, str) else list(next_hop),
                "recipients": str(self.recipients),
                **(domain_keys or {}),
            }
        ]
        self.pulls: list[dict[str, object]] = []
        self.primaries: list[dict[str, object]] = []
        self.backups: list[dict[str, object]] = []
        self._running: Running | None = None
        self.program = [str(POSTHOUSE)]
        self.write()

    def write(self) -> None:
        """Write the configuration as it now stands."""
        lines: list[str] = []
        for section, keys in self.settings.items():
            if section:
                lines.append(f"\n[{section}]")
            lines += [f"{key} = {_to_toml(value)}" for key, value in keys.items()]
        for domain in self.domains:
            lines.append("\n[[domain]]")
            lines += [f"{key} = {_to_toml(value)}" for key, value in domain.items()]
        for primary in self.primaries:
            lines.append("\n[[primary]]")
            lines += [f"{key} = {_to_toml(value)}" for key, value in primary.items()]
        for backup in self.backups:
            lines.append("\n[[backup]]")
            lines += [f"{key} = {_to_toml(value)}" for key, value in backup.items()]
        for pull in self.pulls:
            lines.append("\n[[pull]]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in pull.items()]
        self.file.write_text("\n".join(lines) + "\n")

    # ----------------------------------------------------------------- running

    def start(self) -> None:
        """Start it and return when it greets."""
        self._running = Running(
            [*self.program, "serve", "-c", str(self.file)], output=self.directory / "output"
        )
        self._running.wait_answering(self.port, seconds=30)

    @property
    def running(self) -> Running:
        """The started program. Raises PeerFailed when there is none."""
        if self._running is None:
            raise PeerFailed("the node is not running")
        return self._running

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        code = 0
        if self._running is not None:
            code = self._running.stop(seconds=20)
            self._running = None
        return code

    def crash(self) -> None:
        """SIGKILL to every process of the node at once."""
        self.running.kill_group()
        self._running = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # ----------------------------------------------------------------- commands

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `posthouse ARGUMENTS -c FILE`."""
        done = subprocess.run(
            [str(POSTHOUSE), *arguments, "-c", str(self.file)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode not in (0, 1):
            raise PeerFailed(f"posthouse {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done

    def queue(self, *arguments: str) -> list[dict[str, Any]]:
        """`posthouse queue list --json`: one object a message."""
        done = self.command("queue", "list", "--json", *arguments)
        return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]

    def status(self) -> dict[str, Any]:
        """`posthouse status --json`."""
        found: dict[str, Any] = json.loads(self.command("status", "--json").stdout)
        return found

    def wait_queue(self, count: int, *, seconds: float = 30) -> None:
        """Wait until exactly `count` messages are in the queue."""
        seen = -1
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            seen = len(self.queue())
            if seen == count:
                return
        raise PeerFailed(f"{seen} messages queued, not {count}\n{self.log()[-4000:]}")

    def log(self) -> str:
        """What it logged so far."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def wait_log(self, text: str, *, seconds: float = 30) -> None:
        """Wait until a log line has `text`."""
        wait_until(lambda: text in self.log(), what=f"a log line with {text!r}", seconds=seconds)


def _to_toml(value: object) -> str:
    """A value as TOML; JSON but for tables."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_to_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)
