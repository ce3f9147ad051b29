"""The whole story with a real Postfix as primary: up, down, up again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.node import PosthouseNode
from peers.postfix import Postfix
from peers.smtp_tools import smtp_source, swaks

pytestmark = pytest.mark.peers

MESSAGE = (
    "Subject: as it came\r\nX-Odd:  two  spaces\r\n\r\n.leading dot\r\n..two dots\r\n"
    "trailing space \r\n" + "x" * 990 + "\r\n\r\nlast line\r\n"
)


@pytest.fixture(name="primary")
def make_primary() -> Iterator[Postfix]:
    instance = Postfix.primary(users=("user", "other", "postmaster"))
    try:
        with instance:
            yield instance
    finally:
        instance.remove()


def test_mail_survives_an_outage(tmp_path: Path, primary: Postfix) -> None:
    """Mail passes while the primary is up, waits while it is down, and comes home byte for byte."""
    with PosthouseNode(
        tmp_path, next_hop=[f"smtp://127.0.0.1:{primary.port}"], users=("user", "other")
    ) as node:
        data = tmp_path / "message"
        data.write_bytes(MESSAGE.encode())
        to_user = ("--to", "user@example.com", "--from", "a@elsewhere.example")
        assert swaks(node.port, *to_user, "--data", f"@{data}").ok
        (first,) = primary.wait_messages(1)
        assert first.content.endswith(b"\r\n" + MESSAGE.encode() + b"\r\n")  # swaks ends it so
        assert b" by mx2.example.net (Posthouse) with ESMTP id " in first.content.replace(
            b"\r\n\t", b" "
        )
        assert first.return_path == "a@elsewhere.example"
        node.wait_queue(0)

        primary.stop()
        refused = swaks(node.port, "--to", "nobody@example.com", "--from", "a@elsewhere.example")
        assert not refused.ok
        assert "550 5.1.1" in refused.transcript
        for number in range(5):
            assert swaks(node.port, *to_user, "--header", f"Subject: number {number}").ok
        run = smtp_source(node.port, messages=200, sessions=5, recipient="other@example.com")
        assert run.ok, run.complaint
        assert len(node.queue()) == 205
        assert not swaks(node.port, "--to", "nobody@example.com").ok
        (hop,) = {entry["state"] for entry in node.status()["next_hops"]}
        assert hop == "down"

        primary.start()
        delivered = primary.wait_messages(206, seconds=60)
        node.wait_queue(0)
        assert len(delivered) == 206
        subjects = {message.content.count(b"Subject: number") for message in delivered}
        assert subjects == {0, 1}


def test_the_queue_survives_restarts(tmp_path: Path) -> None:
    """What was accepted is there after a clean stop and after a crash, and is delivered later."""
    primary = Postfix.primary(users=("user",))
    node = PosthouseNode(tmp_path, next_hop=[f"smtp://127.0.0.1:{primary.port}"], users=("user",))
    try:
        with node:
            assert smtp_source(node.port, messages=50, sessions=5).ok
            assert len(node.queue()) == 50
        assert len(node.queue()) == 50  # without a running node
        with node:
            assert smtp_source(node.port, messages=50, sessions=5).ok
            node.crash()
        assert len(node.queue()) == 100
        with node, primary:
            primary.wait_messages(100, seconds=60)
            node.wait_queue(0)
    finally:
        primary.remove()
