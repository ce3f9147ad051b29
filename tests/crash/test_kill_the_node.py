"""kill -9 of the whole node under load: every message answered 250 arrives, none torn."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import re
import socket
import threading
from pathlib import Path

import pytest

from peers.node import PosthouseNode
from peers.smtp_tools import SmtpSink

pytestmark = [pytest.mark.peers, pytest.mark.timeout(300)]

ROUNDS = 6


class Sender(threading.Thread):
    """Sends numbered messages over one connection after another until stopped.

    acked: keys of the messages that got their 250.
    """

    def __init__(self, port: int, name: str, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.port = port
        self.dice = random.Random(seed)
        self.acked: set[str] = set()
        self.stopping = threading.Event()
        self.count = 0

    def run(self) -> None:
        while not self.stopping.is_set():
            with contextlib.suppress(OSError):
                self._session()

    def _session(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), 5) as sock:
            sock.settimeout(5)
            stream = sock.makefile("rwb")
            self._hear(stream)
            self._say(stream, b"HELO c\r\n")
            while not self.stopping.is_set():
                key, content = self._next_message()
                self._say(stream, b"MAIL FROM:<a@b.example>\r\n")
                self._say(stream, b"RCPT TO:<user@example.com>\r\n")
                self._say(stream, b"DATA\r\n")
                self._say(stream, content + b".\r\n")
                self.acked.add(key)

    def _next_message(self) -> tuple[str, bytes]:
        self.count += 1
        key = f"{self.name}-{self.count}"
        size = self.dice.choice((10, 1_000, 4_000, 60_000, 400_000))
        body = (b"%0*d\r\n" % (70, self.count)) * (size // 72 + 1)
        digest = hashlib.sha256(body).hexdigest()
        return key, f"X-Key: {key}\r\nX-Digest: {digest}\r\n\r\n".encode() + body

    @staticmethod
    def _hear(stream: io.BufferedRWPair) -> None:
        line = stream.readline()
        if not line.startswith((b"2", b"3")):
            raise OSError(line)

    def _say(self, stream: io.BufferedRWPair, data: bytes) -> None:
        stream.write(data)
        stream.flush()
        self._hear(stream)


def arrived(kept: list[bytes]) -> dict[str, int]:
    """Keys of whole messages in smtp-sink's dumps → how often. A torn one fails the test."""
    found: dict[str, int] = {}
    for dump in kept:
        text = dump.replace(b"\r\n", b"\n")
        match = re.search(rb"^X-Key: (\S+)\nX-Digest: (\S+)\n\n", text, re.MULTILINE)
        assert match is not None, text[:500]
        body = text[match.end() :].rstrip(b"\n") + b"\n"
        digest = hashlib.sha256(body.replace(b"\n", b"\r\n")).hexdigest()
        assert digest == match.group(2).decode(), "torn message"
        key = match.group(1).decode()
        found[key] = found.get(key, 0) + 1
    return found


@pytest.mark.parametrize("primary_up", [False, True], ids=["primary down", "primary up"])
def test_kill_nine_under_load(tmp_path: Path, primary_up: bool) -> None:
    """After any number of crashes each message that was answered 250 reaches the primary whole."""
    dice = random.Random(20261123)
    sink = SmtpSink(tmp_path, keep_in=tmp_path / "kept")
    node = PosthouseNode(tmp_path / "node", next_hop=[f"smtp://127.0.0.1:{sink.port}"])
    acked: set[str] = set()
    with contextlib.ExitStack() as stack:
        if primary_up:
            stack.enter_context(sink)
        for number in range(ROUNDS):
            node.start()
            senders = [Sender(node.port, f"r{number}s{index}", index) for index in range(4)]
            for sender in senders:
                sender.start()
            threading.Event().wait(dice.uniform(0.1, 1.2))
            node.crash()
            for sender in senders:
                sender.stopping.set()
            for sender in senders:
                sender.join(20)
                acked |= sender.acked
        assert len(acked) > 50
        if not primary_up:
            stack.enter_context(sink)
        with node:
            node.wait_queue(0, seconds=120)
        node.stop()
        found = arrived(sink.kept())
        assert acked - set(found) == set()
