"""kill -9 of the control process while next hops are in every state: each goes on in a safe one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.node import PosthouseNode
from peers.processes import free_port, wait_until
from peers.smtp_tools import SmtpSink, smtp_source

pytestmark = pytest.mark.peers

# By state: what stands there (options of smtp-sink; None: nobody), messages sent, and what the
# state may be after the kill. Mail goes on only where it went before.
SILENT, REFUSING = "takes connections and says nothing", "refuses each message"
AFTER: dict[str, tuple[str | tuple[str, ...] | None, int, set[str]]] = {
    "up": ((), 0, {"suspect", "canary", "up"}),
    "down": (None, 2, {"down"}),
    "suspect": (SILENT, 2, {"suspect", "down"}),
    "canary": (("-w", "4"), 3, {"suspect", "canary", "draining", "up"}),
    "draining": ((), 40, {"suspect", "canary", "draining", "up"}),
    "surge-stopped": (REFUSING, 12, {"surge-stopped"}),
    "blocked": (("-f", "CONNECT"), 2, {"blocked"}),
    "suspended": ((), 2, {"suspended"}),
}


class Refusing(socketserver.StreamRequestHandler):
    """Knows everybody, and takes no message."""

    def handle(self) -> None:
        self.wfile.write(b"220 refusing.example\r\n")
        in_data = False
        while line := self.rfile.readline():
            if in_data:
                if line == b".\r\n":
                    in_data = False
                    self.wfile.write(b"554 5.7.1 no\r\n")
            elif line.upper().startswith(b"DATA"):
                in_data = True
                self.wfile.write(b"354 go on\r\n")
            else:
                self.wfile.write(b"250 2.0.0 yes\r\n")
            if line.upper().startswith(b"QUIT"):
                return


class Server(socketserver.ThreadingTCPServer):
    """One for each connection."""

    allow_reuse_address = True
    daemon_threads = True


class Street:
    """A node with a domain, and a next hop, for each state."""

    def __init__(self, folder: Path) -> None:
        self.ports = {state: free_port() for state in AFTER}
        self.folder = folder
        self.node = PosthouseNode(folder / "node", relay={"drain_rate": 8})
        self.node.domains.clear()
        for state, port in self.ports.items():
            users = folder / f"{state}.users"
            users.write_text(f"user@{state}.example\npostmaster@{state}.example\n")
            self.node.domains.append(
                {
                    "name": f"{state}.example",
                    "next_hop": [f"smtp://127.0.0.1:{port}"],
                    "recipients": str(users),
                }
            )
        self.node.write()

    def states(self) -> dict[str, str]:
        """By the domain's word."""
        shown = self.node.command("drain", "show", "--json").stdout.splitlines()
        found = {one["next_hop"]: one["state"] for one in map(json.loads, shown)}
        return {state: found[f"smtp://127.0.0.1:{port}"] for state, port in self.ports.items()}

    def fill(self) -> None:
        """Mail for each."""
        for state, (_, count, _) in AFTER.items():
            if count:
                assert smtp_source(
                    self.node.port, messages=count, recipient=f"user@{state}.example", reuse=True
                ).ok

    @contextlib.contextmanager
    def peers(self) -> Iterator[None]:
        """Whoever stands at the ports, but for the silent one."""
        with contextlib.ExitStack() as running:
            for state, (what, _, _) in AFTER.items():
                place = ("127.0.0.1", self.ports[state])
                if what == REFUSING:
                    server = running.enter_context(Server(place, Refusing))
                    running.callback(server.shutdown)
                    threading.Thread(target=server.serve_forever, args=(0.05,)).start()
                elif isinstance(what, tuple):
                    running.enter_context(SmtpSink(self.folder, port=place[1], options=what))
            yield

    def kill_control(self) -> None:
        """kill -9, and wait for the next one."""
        begun = re.findall(r"control \(pid (\d+)\) serves", self.node.log())
        os.kill(int(begun[-1]), signal.SIGKILL)
        wait_until(lambda: self.node.log().count("control (pid") > len(begun) + 1, what="a new one")


def test_killed_in_every_state(tmp_path: Path) -> None:
    """What stopped stays stopped, what flowed begins with a probe, and all mail goes home."""
    street = Street(tmp_path)
    with socket.create_server(("127.0.0.1", street.ports["suspect"])) as silent, street.node:
        street.fill()
        street.node.command("drain", "pause", "suspended.example")
        with street.peers():
            wait_until(
                lambda: {s for s, is_ in street.states().items() if is_ != s} <= {"suspect"},
                what="every state",
                every=0.05,
            )
            street.kill_control()
            after = street.states()
            assert all(is_ in AFTER[state][2] for state, is_ in after.items()), after
            held = {m["recipients"][0]["address"] for m in street.node.queue("--state", "held")}
            assert held == {"user@surge-stopped.example"}
            kept = len(street.node.queue("--domain", "suspended.example"))
            assert kept == AFTER["suspended"][1]
        street.node.settings["relay"]["drain_rate"] = 0
        street.node.write()
        os.kill(street.node.running.pid, signal.SIGHUP)
        with contextlib.ExitStack() as mended:
            silent.close()
            for port in street.ports.values():
                mended.enter_context(SmtpSink(tmp_path, port=port))
            street.node.command("drain", "resume")
            street.node.command("queue", "release", "--all")
            street.node.wait_queue(0)
