"""data_dir is read-only or full but for the spool: mail flows on what is known, and it comes back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.processes import wait_until
from peers.smtp_tools import SmtpSink
from peers.town import Town

pytestmark = pytest.mark.peers


class ReadOnly:
    """All of a data_dir but the workers' spool and the sockets, read-only for who opens it now."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._mounted: list[Path] = []

    def begin(self) -> None:
        for path, mode in ((".", "ro"), ("spool", "rw"), ("run", "rw")):
            place = self._data / path
            subprocess.run(["mount", "--bind", place, place], check=True)
            self._mounted.append(place)
            subprocess.run(["mount", "-o", f"remount,bind,{mode}", place], check=True)

    def end(self) -> None:
        while self._mounted:
            subprocess.run(["umount", "-l", self._mounted.pop()], check=True)

    def remove(self) -> None:
        self.end()


class Full:
    """A data_dir of 8 MiB with no room left; the workers' spool lies elsewhere."""

    def __init__(self, data: Path) -> None:
        data.mkdir(parents=True)
        spool = data.with_name("spool-elsewhere")
        spool.mkdir()
        small = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(data)]
        subprocess.run(small, check=True)
        self._mounted = [data, data / "spool"]
        self._mounted[1].mkdir()
        subprocess.run(["mount", "--bind", spool, data / "spool"], check=True)
        self._ballast = data / "ballast"

    def begin(self) -> None:
        with contextlib.suppress(OSError):
            self._ballast.write_bytes(bytes(16 << 20))

    def end(self) -> None:
        self._ballast.unlink()

    def remove(self) -> None:
        while self._mounted:
            subprocess.run(["umount", "-l", self._mounted.pop()], check=True)


@pytest.fixture(params=[ReadOnly, Full])
def fault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReadOnly | Full]:
    if os.geteuid() != 0:
        pytest.fail("only root may mount; run `make test` as root")
    fault = request.param(tmp_path / "backup" / "data")
    yield fault
    fault.remove()


def kinds(town: Town) -> set[str]:
    """Alerts that stand."""
    lines = town.backup.command("alerts", "--json").stdout.splitlines()
    return {json.loads(line)["kind"] for line in lines}


def test_mail_flows_on_what_is_known(tmp_path: Path, fault: ReadOnly | Full) -> None:
    """The control process is killed and comes up on a disk that takes nothing; mail is taken and
    relayed as before. Mended, a reload is enough: roster, agreements and alerts go on."""
    sink = SmtpSink(tmp_path)
    town = Town(tmp_path, next_hop=sink.port, users=["alice", "bob"])
    town.backup.settings["alerts"]["delay"] = "0s"
    town.backup.write()
    try:
        town.start()
        town.send("alice")
        town.wait_state("agreed")
        fault.begin()
        town.primary.set_users(["alice", "bob", "carol"])
        town.primary.reload()
        town.backup.command("roster", "fetch")
        (pid,) = re.findall(r"control \(pid (\d+)\) serves", town.backup.log())
        os.kill(int(pid), signal.SIGKILL)
        town.backup.wait_log("alerts cannot be stored")
        town.backup.wait_log("the book")
        wait_until(lambda: town.backup.log().count("control (pid") > 2, what="a new one")
        told = [town.ask(user) for user in ("alice", "nobody", "carol")]
        assert told == ["250 2.1.5", "550 5.1.1", "550 5.1.1"]
        town.send("bob")
        with sink:
            sink.wait_messages(2)
            town.backup.wait_queue(0)
            town.backup.wait_log("cannot be handed over")
        fault.end()
        os.kill(town.backup.running.pid, signal.SIGHUP)
        wait_until(lambda: town.ask("carol") == "250 2.1.5", what="the new roster")
        town.wait_state("agreed", "bob")
        wait_until(lambda: kinds(town) <= {"next-hop-down"}, what="the all-clear")
        assert town.backup.log().count("cannot be handed over") <= 2  # once a worker
    finally:
        town.stop()
