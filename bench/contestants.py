"""The two sides: Posthouse as a user runs it, and a fairly tuned Postfix.

Each start gets a fresh directory: purging a queue between runs would halve
Postfix (ext4 passes over recently deleted inodes).
"""

from __future__ import annotations

import shutil
import smtplib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from peers.postfix import Postfix
from peers.processes import PeerFailed, Running, free_port, group_members

DOMAIN = "example.com"
SESSIONS_HOME = 20
"""Connections to the primary, on both sides."""


class Contestant(Protocol):
    """One instance of one side, with its own fresh directory. Made stopped."""

    name: str
    port: int
    pace: int
    """How much more work a run gives it, so that runs of both sides last about as long."""

    def start(self) -> None:
        """Start; returns at once when the process is there (see `wait_ready`)."""

    def stop(self) -> None:
        """Stop in good order; what is queued stays. Harmless when repeated."""

    def remove(self) -> None:
        """Stop and delete everything."""

    def settle(self) -> None:
        """Wait until accepted mail lies still (the primary being down)."""

    def retry(self) -> None:
        """Have everything queued tried now, as an operator would."""

    def group(self) -> int:
        """The process group all its processes are in."""

    def workers(self) -> list[int]:
        """Processes whose memory is judged."""

    def spool(self) -> Path:
        """The directory that holds accepted mail."""


class Posthouse:
    """`posthouse serve` in a subprocess, default workers, text log to a file."""

    name = "posthouse"
    pace = 4

    def __init__(
        self,
        directory: Path,
        recipients: Path,
        sink_port: int,
        *,
        connections: int = SESSIONS_HOME,
        workers: int = 0,
        probe_interval: str = "30s",
        roster: Mapping[str, str] | None = None,
        more: str = "",
    ) -> None:
        """more: what is put at the end of the configuration."""
        listed = f'"{recipients}"'
        if roster is not None:
            listed = ", ".join(f'{key} = "{value}"' for key, value in roster.items())
            listed = f"{{ {listed} }}"
        self.root = Path(tempfile.mkdtemp(prefix="posthouse-", dir=directory))
        self.port = free_port()
        self.config = self.root / "posthouse.toml"
        self.config.write_text(
            f"""\
hostname = "mx2.example.net"
data_dir = "{self.spool()}"
contact = "ops@elsewhere.example"
workers = {workers}
[alerts]
mail = false
[smtp]
listen = ["127.0.0.1:{self.port}"]
reverse_dns = false
max_message_size = "100MB"
max_errors = 1000
max_connections = 20000
max_connections_per_client = 20000
[relay]
concurrency = {connections}
probe_interval = "{probe_interval}"
tls = "none"
[log]
to = "{self.root / "mail.log"}"
[[domain]]
name = "{DOMAIN}"
next_hop = ["smtp://127.0.0.1:{sink_port}"]
recipients = {listed}
{more}"""
        )
        self.command = str(Path(sys.executable).with_name("posthouse"))
        self._running: Running | None = None

    def start(self) -> None:
        """Start `posthouse serve`."""
        self._running = Running(
            [self.command, "serve", "-c", str(self.config)], output=self.root / "output"
        )

    def stop(self) -> None:
        """SIGTERM, as a service manager does it."""
        if self._running is not None:
            self._running.stop(seconds=40)
            self._running = None

    def remove(self) -> None:
        """Stop and delete everything."""
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def settle(self) -> None:
        """Nothing to wait for: a message answered 250 lies still until the primary is up."""

    def retry(self) -> None:
        """`posthouse queue retry --all`."""
        command = [self.command, "queue", "-c", str(self.config), "retry", "--all"]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        if done.returncode:
            raise PeerFailed((done.stdout + done.stderr).decode("utf-8", "replace"))

    def group(self) -> int:
        """The group of supervisor and workers."""
        if self._running is None or not self._running.alive:
            said = "" if self._running is None else self._running.said()
            raise PeerFailed(f"posthouse does not run: {said}")
        return self._running.pid

    def workers(self) -> list[int]:
        """All processes but the supervisor."""
        group = self.group()
        return [pid for pid in group_members(group) if pid != group]

    def spool(self) -> Path:
        """data_dir."""
        return self.root / "data"


class Rival:
    """Postfix as a backup MX; see `Postfix.rival` for its settings."""

    name = "postfix"
    pace = 1

    def __init__(
        self,
        directory: Path,
        recipients: Path,
        sink_port: int,
        *,
        connections: int = SESSIONS_HOME,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        self._instance = Postfix.rival(
            relay_port=sink_port,
            domain=DOMAIN,
            recipient_map=f"lmdb:{recipients}",
            directory=directory,
            process_limit=250,
            parameters={
                "default_destination_concurrency_limit": str(connections),
                "initial_destination_concurrency": str(connections),
                **(parameters or {}),
            },
        )
        self.port = self._instance.port

    def start(self) -> None:
        """Start Postfix's master."""
        self._instance.start()

    def stop(self) -> None:
        """Stop it."""
        self._instance.stop()

    def remove(self) -> None:
        """Stop and delete everything."""
        self._instance.remove()

    def settle(self) -> None:
        """Wait until all is deferred."""
        self._instance.wait_settled(seconds=300)

    def retry(self) -> None:
        """`postqueue -f`."""
        self._instance.flush()

    def group(self) -> int:
        """The group of master and all daemons."""
        return self._instance.process_group

    def workers(self) -> list[int]:
        """All processes."""
        return group_members(self.group())

    def spool(self) -> Path:
        """The queue directory."""
        return self._instance.queue_directory


def wait_ready(contestant: Contestant, *, seconds: float = 120) -> float:
    """Wait until it takes a known recipient and refuses an unknown one; returns seconds waited."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        try:
            with smtplib.SMTP("127.0.0.1", contestant.port, "probe.example", timeout=10) as client:
                client.ehlo_or_helo_if_needed()
                client.mail("probe@elsewhere.example")
                known = client.rcpt(f"1user@{DOMAIN}")
                unknown = client.rcpt(f"nobody@{DOMAIN}")
            if known[0] == 250 and unknown[0] == 550:
                return time.monotonic() - began
        except (OSError, smtplib.SMTPException):
            contestant.group()  # raises when it has died
        time.sleep(0.02)
    raise PeerFailed(f"{contestant.name} is not ready after {seconds:g} s")


def wait_greeting(contestant: Contestant, *, seconds: float = 120) -> None:
    """Wait for the first 220."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with smtplib.SMTP("127.0.0.1", contestant.port, timeout=10):
                return
        except (OSError, smtplib.SMTPException):
            contestant.group()
        time.sleep(0.002)
    raise PeerFailed(f"{contestant.name} does not greet after {seconds:g} s")


def raise_file_limit() -> None:
    """As many open files as the hard limit allows; children inherit it."""
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
