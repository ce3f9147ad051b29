"""`posthouse primary serve` for scenario tests: its configuration, its process, its commands.

::

    with PrimaryNode(tmp_path / "primary", users=["alice"]) as primary:
        primary.command("pair", "offer", "--to", "mx2.example.net", "-o", str(carried))
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from fakes.http_server import Certificate
from fakes.https_stage import write_certificate
from peers.node import POSTHOUSE
from peers.processes import PeerFailed, Running, free_port, wait_until


class PrimaryNode:
    """A primary's process in `directory`, on HTTPS with a certificate or on plain loopback."""

    def __init__(
        self,
        directory: Path,
        *,
        users: Iterable[str] = ("user",),
        party: str = "example.com",
        certificate: Certificate | None = None,
        domain_keys: Mapping[str, object] | None = None,
        sections: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self.sasl_port = free_port()
        self.party = party
        self.file = directory / "primary.toml"
        self.log_file = directory / "primary.log"
        self.users_file = directory / "users.txt"
        self.set_users(users)
        scheme = "http"
        https: dict[str, object] = {"listen": [f"127.0.0.1:{self.port}"]}
        if certificate is not None:
            scheme = "https"
            chain, key = write_certificate(directory, certificate)
            key.chmod(0o600)
            https |= {"certificate": str(chain), "private_key": str(key)}
        self.base_url = f"{scheme}://127.0.0.1:{self.port}/"
        self.settings: dict[str, dict[str, object]] = {
            "": {
                "party": party,
                "base_url": self.base_url,
                "data_dir": str(directory / "data"),
                "shutdown_grace": "2s",
            },
            "https": https,
            "postfix": {"auth_socket": f"127.0.0.1:{self.sasl_port}"},
            "log": {"to": str(self.log_file)},
            **{section: dict(keys) for section, keys in (sections or {}).items()},
        }
        self.domains: list[dict[str, object]] = [
            {"name": party, "sources": [f"file:{self.users_file}"], **(domain_keys or {})}
        ]
        self.backups: list[dict[str, object]] = []
        self._running: Running | None = None
        self.write()

    def set_users(self, users: Iterable[str]) -> None:
        """Who exists."""
        self.users_file.write_text("".join(f"{user}@{self.party}\n" for user in users))

    def write(self) -> None:
        """Write the configuration as it now stands."""
        lines: list[str] = []
        for section, keys in self.settings.items():
            if section:
                lines.append(f"\n[{section}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        for name, tables in (("domain", self.domains), ("backup", self.backups)):
            for table in tables:
                lines.append(f"\n[[{name}]]")
                lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        self.file.write_text("\n".join(lines) + "\n")

    def add_backup(self, party: str, own: str = "", **keys: object) -> None:
        """Name a paired backup in the configuration."""
        self.backups.append(
            {
                "pairing": f"pairs/{party}.json",
                "own": own or f"pairs/{self.party}.json",
                "domains": [self.party],
                **keys,
            }
        )
        self.write()

    # ----------------------------------------------------------------- running

    def start(self, *, environment: Mapping[str, str] | None = None) -> None:
        """Start it and return when it listens and serves."""
        self._running = Running(
            [str(POSTHOUSE), "primary", "serve", "-c", str(self.file)],
            output=self.directory / "output",
            environment=environment,
        )
        self._running.wait_answering(self.port, seconds=30)
        self.wait_log("serves")

    @property
    def running(self) -> Running:
        """The started program. Raises PeerFailed when there is none."""
        if self._running is None:
            raise PeerFailed("the primary is not running")
        return self._running

    def reload(self) -> None:
        """SIGHUP, and wait until it is taken up."""
        before = self.log().count("reloaded")
        os.kill(self.running.pid, signal.SIGHUP)
        wait_until(lambda: self.log().count("reloaded") > before, what="the reload")

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        code = 0
        if self._running is not None:
            code = self._running.stop(seconds=20)
            self._running = None
        return code

    def crash(self) -> None:
        """SIGKILL to every process of it."""
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

    def command(self, *arguments: str) -> str:
        """Run `posthouse ARGUMENTS -c FILE` in its directory; what it says. Raises PeerFailed."""
        return run_command(self.file, *arguments)

    def log(self) -> str:
        """What it logged so far."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def wait_log(self, text: str, *, seconds: float = 30) -> None:
        """Wait until a log line has `text`."""
        wait_until(lambda: text in self.log(), what=f"a log line with {text!r}", seconds=seconds)


def run_command(file: Path, *arguments: str) -> str:
    """Run `posthouse ARGUMENTS -c FILE` in the file's directory; what it says."""
    done = subprocess.run(
        [str(POSTHOUSE), *arguments, "-c", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=file.parent,
    )
    if done.returncode:
        raise PeerFailed(f"posthouse {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout
