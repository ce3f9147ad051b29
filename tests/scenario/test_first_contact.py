"""First contact without a roster: the first try is put off, the primary is asked, the next counts.

Real processes; the primary is the one in tests/independent, that shares no line with us.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from independent.granter import Granter, ask_policy, serving
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


def make_node(folder: Path, *granters: Granter, next_hop: int) -> PosthouseNode:
    """A backup that is paired with them, and has no roster of any."""
    calls = free_port()
    node = PosthouseNode(
        folder,
        next_hop=[f"smtp://127.0.0.1:{next_hop}"],
        sections={"https": {"listen": [f"127.0.0.1:{calls}"]}},
    )
    next_hops = node.domains[0]["next_hop"]
    node.domains.clear()
    for granter in granters:
        node.domains.append({"name": granter.domains[0], "next_hop": next_hops, "verify": "off"})
    node.write()
    for number, granter in enumerate(granters):
        pair(node, granter, f"http://127.0.0.1:{calls}/")
        ours = f"-for-{granter.party}" if number else ""
        node.primaries.append(
            {"pairing": f"pairs/{granter.party}.json", "own": f"pairs/{BACKUP}{ours}.json"}
        )
    node.write()
    return node


def pair(node: PosthouseNode, granter: Granter, calls: str) -> None:
    """Take its offer, and make ours."""
    offer, ours = (node.directory / f"{granter.party}-{name}.json" for name in ("offer", "ours"))
    offer.write_text(
        json.dumps(
            {
                "party": granter.party,
                "base_url": granter.base_url,
                "public_key": base64.urlsafe_b64encode(
                    hashlib.sha256(granter.party.encode()).digest()
                )
                .rstrip(b"=")
                .decode(),
                "roster_key": "A" * 43,
                "token": granter.token,
                "domains": granter.domains,
            }
        )
    )
    offer.chmod(0o600)
    made = ("pair", "offer", "--to", granter.party, "-o", str(ours), "--base-url", calls)
    for arguments in (("pair", "accept", str(offer)), made):
        done = node.command(*arguments)
        assert done.returncode == 0, done.stderr


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


def test_two_primaries_share_a_backup(tmp_path: Path, granter: Granter) -> None:
    """Each hears of its own domain alone, and cannot ask or change what belongs to the other."""
    theirs = "example.net"
    other = Granter(
        party=theirs,
        token="of-the-other-0123456789",
        forwarder_id=BACKUP,
        domains=(theirs,),
        fold=fold,
    )
    other.mailboxes = {f"zoe@{theirs}"}
    with serving(other):
        node = make_node(tmp_path, granter, other, next_hop=free_port())
        try:
            node.start()
            wait_until(lambda: ask(node, "alice") == "250 2.1.5", what="the first's promise")
            wait_until(lambda: ask(node, "zoe", theirs) == "250 2.1.5", what="the second's")
            wait_until(lambda: ask(node, "alice", theirs) == "550 5.1.1", what="no such user there")
            wait_until(lambda: ask(node, "zoe") == "550 5.1.1", what="nor here")
            for one, mailbox in ((granter, f"alice@{DOMAIN}"), (other, f"zoe@{theirs}")):
                wait_until(lambda one=one: one.agreements, what="a grant")  # type: ignore[misc]
                assert {known.mailbox for known in one.agreements.values()} == {mailbox}
            (known,) = granter.agreements.values()
            wait_until(lambda: known.completed, what="the completion")
            document = {
                "recipe_id": known.recipe_id,
                "recipe_key": known.recipe_key,
                "agreement_id": known.agreement_id,
                "actor": "user",
                "set": {"blocked": True},
            }
            token = json.loads((tmp_path / f"{theirs}-ours.json").read_text())["token"]
            assert ask_policy(known.policy_url, token, document)[0] in (403, 404)
            assert ask(node, "alice") == "250 2.1.5"
        finally:
            node.stop()


def test_two_owners_of_one_domain(tmp_path: Path, granter: Granter) -> None:
    """Which of them is it? `check` says so and names both; a node that starts all the same asks
    the first alone."""
    rival = Granter(
        party="rival.example", token="of-the-rival-0123456789", forwarder_id=BACKUP,
        domains=(DOMAIN,), fold=fold,
    )  # fmt: skip
    with serving(rival):
        node = make_node(tmp_path, granter, rival, next_hop=free_port())
        del node.domains[1]
        node.write()
        checked = node.command("check", check=False)
        assert checked.returncode not in (0, 1)
        assert f"{DOMAIN} and rival.example both say that {DOMAIN} is theirs" in checked.stderr
        granter.hook = lambda method, target: (503, {"Retry-After": "1"}, b"")
        try:
            node.start()
            assert ask(node, "alice") == "451 4.7.1"
            wait_until(lambda: len(granter.requests) > 1, what="the owner to be asked again")
            assert rival.requests == []
            granter.hook = None
            wait_until(lambda: ask(node, "alice") == "250 2.1.5", what="the promise")
            assert rival.requests == []
        finally:
            node.stop()
