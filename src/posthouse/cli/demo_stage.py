"""The stage of the rehearsal: a directory, two ports, and the processes that come and go."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from posthouse.cli.demo_mail import DOMAIN, MAILBOXES, ask_for
from posthouse.errors import PosthouseError

# Far longer than anything here takes; a machine may be busy.
PATIENCE_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.05
_PR_SET_PDEATHSIG: Final = 1

CONFIG = """\
hostname = "mx2.example.net"
data_dir = "spool"
smtp.listen = ["127.0.0.1:{backup}"]
relay.probe_interval = "1s"      # 30 s unless told otherwise
workers = 1                      # one per core unless told otherwise

[[domain]]
name = "{domain}"
next_hop = ["smtp://127.0.0.1:{primary}"]   # "mx" follows DNS
recipients = "{domain}.recipients"
"""


class RehearsalError(PosthouseError):
    """Something did not go as the rehearsal says it must."""


class Stage:
    """Everything that runs and is stored during one rehearsal. Close it."""

    def __init__(self, directory: Path) -> None:
        """Lay out the files in an empty directory; nothing runs yet."""
        self.directory = directory
        self.arrived = directory / "primary"
        self.log = directory / "backup.log"
        self.config = directory / "posthouse.toml"
        self.backup_port, self.primary_port = _find_free_ports(2)
        self._backup: subprocess.Popen[bytes] | None = None
        self._primary: subprocess.Popen[bytes] | None = None
        self.arrived.mkdir()
        self.config.write_text(
            CONFIG.format(backup=self.backup_port, primary=self.primary_port, domain=DOMAIN)
        )
        (directory / f"{DOMAIN}.recipients").write_text(
            "".join(f"{mailbox}@{DOMAIN}\n" for mailbox in MAILBOXES)
        )

    def start_primary(self) -> None:
        """Start the primary and wait until it answers."""
        command = (sys.executable, "-m", "posthouse.cli.demo_primary")
        self._primary = subprocess.Popen(
            (*command, str(self.primary_port), str(self.arrived), *MAILBOXES),
            stdin=subprocess.PIPE,
        )
        self._wait_for_greeting(self._primary, self.primary_port, "the primary")

    def stop_primary(self) -> None:
        """Pull the plug of the primary."""
        if self._primary is not None:
            self._primary.kill()
            self._primary.communicate()
            self._primary = None

    def start_backup(self) -> None:
        """Start `posthouse serve` and wait until it answers and has read who exists."""
        with self.log.open("ab") as log:
            self._backup = subprocess.Popen(
                _posthouse("serve", "-c", str(self.config)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # no threads run here
            )
        self._wait_for_greeting(self._backup, self.backup_port, "the backup")
        known = f"{MAILBOXES[0]}@{DOMAIN}"
        wait_until(lambda: ask_for(self.backup_port, known)[:1] == "2", f"{known} is known")

    def kill_backup(self) -> None:
        """kill -9 every process of the backup, and wait until nobody answers."""
        self._end_backup(signal.SIGKILL)

    def stop_backup(self) -> None:
        """End the backup in good order."""
        if self._backup is not None:
            self._backup.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._backup.wait(PATIENCE_SECONDS)
            self._end_backup(signal.SIGKILL)

    def count_queue(self) -> tuple[int, int]:
        """Recipients queued and held, as `posthouse status` has them."""
        done = subprocess.run(
            _posthouse("status", "--json", "-c", str(self.config)),
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise RehearsalError(f"posthouse status: {done.stderr.decode('utf-8', 'replace')}")
        domains = json.loads(done.stdout)["domains"]
        return sum(row["queued"] for row in domains), sum(row["held"] for row in domains)

    def close(self) -> None:
        """End whatever still runs."""
        self.stop_primary()
        self.stop_backup()

    def _end_backup(self, how: signal.Signals) -> None:
        if self._backup is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._backup.pid, how)
        self._backup.wait()
        group = self._backup.pid
        self._backup = None
        wait_until(lambda: not _group_lives(group), "the backup is gone")

    def _wait_for_greeting(self, process: subprocess.Popen[bytes], port: int, who: str) -> None:
        def greeted() -> bool:
            if process.poll() is not None:
                raise RehearsalError(f"{who} ended with status {process.returncode}")
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as peer,
            ):
                if peer.recv(4).startswith(b"220"):
                    peer.sendall(b"QUIT\r\n")
                    return True
            return False

        wait_until(greeted, f"{who} answers on port {port}")


def wait_until(met: Callable[[], bool], what: str) -> None:
    """Look again and again. Raises RehearsalError when patience ends."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not met():
        if time.monotonic() > end:
            raise RehearsalError(f"waited {PATIENCE_SECONDS:.0f} s in vain until {what}")
        time.sleep(_LOOK_SECONDS)


def _posthouse(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", "from posthouse.cli.main import main; main()", *arguments)


def _group_lives(group: int) -> bool:
    """True while a process of the group runs; one that nobody has reaped yet does not (proc(5))."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, its_group = status.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


def _die_with_parent() -> None:
    """In the child: should the rehearsal itself be killed, the backup ends too (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _find_free_ports(count: int) -> list[int]:
    """Ports on which nobody listens.

    Below the range for outgoing connections: one of those could take the port
    while its server is down, or even connect to itself.
    """
    ports: list[int] = []
    for port in random.sample(range(10_000, 32_000), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RehearsalError("no free port between 10000 and 32000")
