"""A domain without any list: the primary is asked while it is up, and remembered when it is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.node import PosthouseNode
from peers.postfix import Postfix
from peers.processes import wait_until
from peers.smtp_tools import swaks

pytestmark = pytest.mark.peers

SENDER = ("--from", "a@elsewhere.example")


@pytest.fixture(name="primary")
def make_primary() -> Iterator[Postfix]:
    instance = Postfix.primary(users=("user", "other"))
    try:
        with instance:
            yield instance
    finally:
        instance.remove()


@pytest.fixture(name="node")
def make_node(tmp_path: Path, primary: Postfix) -> Iterator[PosthouseNode]:
    made = PosthouseNode(tmp_path, next_hop=[f"smtp://127.0.0.1:{primary.port}"], workers=1)
    del made.domains[0]["recipients"]
    made.write()
    with made:
        # A next hop is `suspect` after a start, until the first probe: nobody is asked before.
        wait_until(lambda: hop_states(made) == ["up"], what="the first probe")
        yield made


def hop_states(node: PosthouseNode) -> list[str]:
    """Of every next hop."""
    return [hop["state"] for hop in node.status()["next_hops"]]


def ask(node: PosthouseNode, user: str) -> str:
    """The reply to RCPT."""
    sent = swaks(node.port, "--to", f"{user}@example.com", *SENDER, "--quit-after", "RCPT")
    lines = sent.transcript.splitlines()
    at = next(i for i, line in enumerate(lines) if "RCPT TO" in line)
    return lines[at + 1].lstrip("<-* ~")


def test_known_while_up_remembered_while_down(node: PosthouseNode, primary: Postfix) -> None:
    """Up: the primary's word. Down: whom it knew is taken, across a restart; others come again."""
    assert ask(node, "user").startswith("250 2.1.5")
    assert ask(node, "nobody").startswith("550 5.1.1")
    assert "from=<> to=<nobody@example.com>" in primary.log()
    assert swaks(node.port, "--to", "user@example.com", *SENDER).ok
    primary.wait_messages(1)
    node.wait_queue(0)

    primary.stop()
    for _ in range(2):
        assert ask(node, "user").startswith("250 2.1.5")
        assert ask(node, "nobody").startswith("550 5.1.1")
        later = ask(node, "other")
        assert later.startswith("451 4.4.3")
        assert "refused" not in later
        assert "127.0.0.1" not in later
        assert node.stop() == 0
        node.start()
    assert swaks(node.port, "--to", "user@example.com", *SENDER).ok
    assert len(node.queue()) == 1


def test_a_primary_that_takes_everybody_vouches_for_nobody(
    node: PosthouseNode, primary: Postfix
) -> None:
    """Behind a catch-all no yes counts: mail is deferred, and the log says what to do."""
    primary.set_users(["@example.com"])
    primary.restart()
    assert ask(node, "user").startswith("451 4.4.3")
    node.wait_log("takes every address")


def test_off_asks_nobody(node: PosthouseNode, primary: Postfix) -> None:
    """With `verify = "off"` the primary hears of no address but postmaster's (the relay's probe)."""
    node.domains[0]["verify"] = "off"
    node.write()
    assert node.stop() == 0
    node.start()
    assert ask(node, "user").startswith("451 4.4.3")
    assert "no-such-user-" not in primary.log()
    assert "to=<user@" not in primary.log()
