"""A primary that comes back half-configured: the queue is not emptied into its refusals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peers.node import PosthouseNode
from peers.postfix import Postfix
from peers.processes import wait_until
from peers.smtp_tools import smtp_source

pytestmark = pytest.mark.peers

USERS = [f"user{n}" for n in range(30)]


@pytest.fixture(name="primary")
def make_primary() -> Iterator[Postfix]:
    instance = Postfix.primary(users=[*USERS, "postmaster"])
    try:
        yield instance
    finally:
        instance.remove()


def fill(node: PosthouseNode, *, each: int = 4) -> int:
    """Mail for every user while the primary is down; how many messages."""
    for user in USERS:
        assert smtp_source(node.port, messages=each, recipient=f"{user}@example.com", reuse=True).ok
    return each * len(USERS)


def next_hop(node: PosthouseNode) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(node.command("drain", "show", "--json").stdout)
    return shown


def wait_state(node: PosthouseNode, *states: str) -> dict[str, Any]:
    wait_until(
        lambda: next_hop(node)["state"] in states, what=f"state {states}", seconds=10, every=0.1
    )
    return next_hop(node)


def recipients_by_state(node: PosthouseNode) -> Counter[str]:
    return Counter(row["state"] for message in node.queue() for row in message["recipients"])


def test_everything_refused_stops_the_drain(tmp_path: Path, primary: Postfix) -> None:
    """Only postmaster is known there: a few are held, the rest waits, and all comes home once."""
    hop = f"smtp://127.0.0.1:{primary.port}"
    with PosthouseNode(tmp_path, next_hop=[hop], users=USERS) as node:
        count = fill(node)
        primary.set_users(["postmaster@example.com"])
        primary.start()
        stopped = wait_state(node, "surge-stopped")
        assert "550 5.1.1" in stopped["why"]
        states = recipients_by_state(node)
        assert states["held"] + states["queued"] == count
        assert 5 <= states["held"] <= 12
        assert any("drain-stopped" in alert["kind"] for alert in node.status()["alerts"])
        assert primary.messages() == []
        held = [row for message in node.queue("--state", "held") for row in message["recipients"]]
        assert all(row["reason"].startswith("unknown: ") for row in held)

        node.crash()  # what a person must see outlives the node
        node.start()
        assert wait_state(node, "surge-stopped")["why"] == stopped["why"]
        assert recipients_by_state(node) == states

        primary.set_users(f"{user}@example.com" for user in [*USERS, "postmaster"])
        primary.restart()
        assert node.command("drain", "resume", "example.com").returncode == 0
        node.command("queue", "release", "--reply", "550", "--since", "1h")
        delivered = primary.wait_messages(count)
        node.wait_queue(0)
        assert Counter(message.recipient for message in delivered) == {
            f"{user}@example.com": 4 for user in USERS
        }
        wait_state(node, "up")


def test_nobody_is_known_there_at_all(tmp_path: Path, primary: Postfix) -> None:
    """A probe asks for people of the queue: all refused means no mail goes, until it is mended."""
    hop = f"smtp://127.0.0.1:{primary.port}"
    with PosthouseNode(tmp_path, next_hop=[hop], users=USERS) as node:
        count = fill(node, each=2)
        primary.set_users([])
        primary.start()
        blocked = wait_state(node, "blocked")
        assert "refuses all of" in blocked["why"]
        assert recipients_by_state(node) == {"queued": count}
        primary.set_users(f"{user}@example.com" for user in USERS)
        primary.restart()
        assert len(primary.wait_messages(count)) == count
        node.wait_queue(0)
        assert primary.log().count("NOQUEUE: reject: RCPT") < 40  # probes only


def test_the_operator_pauses_and_resumes(tmp_path: Path, primary: Postfix) -> None:
    """Suspended: mail is taken in, none goes out, not even after a restart; then all goes."""
    hop = f"smtp://127.0.0.1:{primary.port}"
    node = PosthouseNode(tmp_path, next_hop=[hop], users=USERS)
    with node:
        primary.start()
        wait_state(node, "up")
        node.command("drain", "pause", "--reason", "new disks")
        fill(node, each=1)
        assert next_hop(node)["why"] == "by the operator: new disks"
    with node:
        assert wait_state(node, "suspended")["running"] is True
        assert len(node.queue()) == len(USERS)
        assert primary.messages() == []
        node.command("drain", "resume")
        primary.wait_messages(len(USERS))
        node.wait_queue(0)
