"""First contact without a roster: the first try is put off, the primary is asked, the next counts.

Real processes; the primary is the one in tests/independent, that shares no line with us.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from independent.granter import Granter, serving
from peers.node import PosthouseNode
from peers.postfix import Postfix
from peers.processes import free_port, wait_until
from peers.smtp_tools import swaks
from peers.town import BACKUP, DOMAIN, ask, held, send, wait_state

pytestmark = pytest.mark.peers

TOKEN = "presented-by-the-backup-0123456789"


def fold(address: str) -> str:
    """This primary reads case alone."""
    return address.lower()


@pytest.fixture
def granter() -> Iterator[Granter]:
    granter = Granter(party=DOMAIN, token=TOKEN, forwarder_id=BACKUP, domains=(DOMAIN,), fold=fold)
    granter.mailboxes = {f"{user}@{DOMAIN}" for user in ("alice", "bob")}
    with serving(granter):
        yield granter


def make_node(folder: Path, granter: Granter, *, next_hop: int) -> PosthouseNode:
    """A backup that is paired with it, and has no roster of it."""
    calls = free_port()
    node = PosthouseNode(
        folder,
        next_hop=[f"smtp://127.0.0.1:{next_hop}"],
        domain_keys={"verify": "off"},
        sections={"https": {"listen": [f"127.0.0.1:{calls}"]}},
    )
    del node.domains[0]["recipients"]
    node.primaries.append({"pairing": f"pairs/{DOMAIN}.json", "own": f"pairs/{BACKUP}.json"})
    node.write()
    offer = folder / "their-offer.json"
    offer.write_text(
        json.dumps(
            {
                "party": DOMAIN,
                "base_url": granter.base_url,
                "public_key": "A" * 43,
                "roster_key": "A" * 43,
                "token": granter.token,
                "domains": [DOMAIN],
            }
        )
    )
    offer.chmod(0o600)
    for arguments in (
        ("pair", "accept", str(offer)),
        ("pair", "offer", "--to", DOMAIN, "-o", str(folder / "ours.json"),
         "--base-url", f"http://127.0.0.1:{calls}/"),
    ):  # fmt: skip
        done = node.command(*arguments)
        assert done.returncode == 0, done.stderr
    return node


def test_the_second_try_counts(tmp_path: Path, granter: Granter) -> None:
    """451 4.7.1 for whoever is unknown; then 250 for who exists, 550 for who does not, and the
    mail goes home."""
    postfix = Postfix.primary(users=("alice", "postmaster"))
    node = make_node(tmp_path, granter, next_hop=postfix.port)
    try:
        node.start()
        assert ask(node, "Alice") == "451 4.7.1"
        assert ask(node, "mallory") == "451 4.7.1"
        wait_until(lambda: ask(node, "alice") == "250 2.1.5", what="the promise")
        wait_until(lambda: ask(node, "mallory") == "550 5.1.1", what="the denial")
        assert held(node)["state"] in ("requested", "agreed")
        assert granter.requests, "nobody asked the primary"
        send(node, "alice")
        wait_state(node, "agreed")
        postfix.start()
        node.command("queue", "retry", "--all")
        (mail,) = postfix.wait_messages(1)
        assert mail.recipient == f"alice@{DOMAIN}"
        node.wait_queue(0)
    finally:
        node.stop()
        postfix.remove()


def test_a_primary_that_cannot_be_reached(tmp_path: Path, granter: Granter) -> None:
    """While nobody says who exists it stays 451, never 250 or 550; what the primary says when it
    is back counts, through a kill -9 of the backup."""
    silent = (503, {"Retry-After": "1"}, b"")
    granter.hook = lambda method, target: silent
    node = make_node(tmp_path, granter, next_hop=free_port())
    try:
        node.start()
        for user in ("bob", "mallory"):
            assert ask(node, user) == "451 4.7.1"
        wait_until(lambda: bool(granter.requests), what="the first question")
        for user in ("bob", "mallory"):
            assert ask(node, user) == "451 4.7.1"
        node.crash()
        node.start()
        assert ask(node, "bob") == "451 4.7.1"
        granter.hook = None
        wait_until(lambda: ask(node, "bob") == "250 2.1.5", what="the promise")
        wait_until(lambda: ask(node, "mallory") == "550 5.1.1", what="the denial")
        refused = swaks(node.port, "--to", f"mallory@{DOMAIN}", "--from", "a@b.example")
        assert not refused.ok
        assert node.queue() == []
    finally:
        node.stop()
