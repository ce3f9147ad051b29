"""Agreements between real processes: `serve`, `primary serve`, and Postfix as the primary's MTA."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.node import PosthouseNode
from peers.postfix_kit import make_primary
from peers.primary import PrimaryNode
from peers.processes import free_port, wait_until
from peers.town import BACKUP, DOMAIN, Town, make_backup, send, wait_roster, wait_state

pytestmark = pytest.mark.peers

ALICE = f"alice@{DOMAIN}"


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    town = Town(tmp_path, users=["alice", "bob", "carol", "dora", "eve", "fay"])
    yield town
    town.stop()


def test_negotiated_blocked_and_ended(town: Town) -> None:
    """A message makes an agreement; its owner blocks and unblocks it, and it ends with the mailbox."""
    town.start()
    town.send("Alice+news")
    held = town.wait_state("agreed")
    assert (held["granter"], held["forwarder_id"], held["messages"]) == (DOMAIN, BACKUP, 1)
    (granted,) = town.granted()
    assert granted["agreement_id"] == held["agreement_id"]
    assert (granted["state"], granted["address"]) == ("agreed", ALICE)
    servers = town.primary.command("agreements", "servers", "alice+x@example.com", "--json")
    (server,) = [json.loads(line) for line in servers.splitlines()]
    assert (server["party"], server["host"], server["messages"]) == (BACKUP, BACKUP, 1)

    town.primary.command("agreements", "block", ALICE)
    wait_until(lambda: town.ask("alice") == "551 5.7.1", what="the block")
    assert town.granted()[0]["blocked"]
    assert town.held()["former_state"] == "agreed"
    town.primary.command("agreements", "unblock", ALICE)
    wait_until(lambda: town.ask("alice") == "250 2.1.5", what="the block to be lifted")

    said = town.backup.command("agreements", "end", ALICE)
    assert said.returncode == 1
    assert "as long as the mailbox exists" in said.stderr
    town.primary.command("agreements", "end", ALICE)
    wait_until(lambda: town.ask("alice") == "550 5.1.1", what="the end")
    wait_until(
        lambda: {r["state"] for m in town.backup.queue() for r in m["recipients"]} == {"held"},
        what="its queued mail to be held",
    )


def test_a_person_says_yes(town: Town) -> None:
    """With agreements = "ask" nothing is granted until somebody says so; mail flows meanwhile."""
    town.start(agreements="ask")
    town.send("bob")
    wait_until(lambda: [g["state"] for g in town.granted()] == ["pending"], what="the request")
    assert town.ask("bob") == "250 2.1.5"
    assert "granted" in town.primary.command("agreements", "grant", "--all")
    assert "Nothing is pending." in town.primary.command("agreements", "grant", "--all")
    assert town.granted()[0]["state"] == "granted"


def test_a_backup_that_moved_is_called_at_once(town: Town) -> None:
    """Its new place is in the offer; no further request has to tell it."""
    town.start()
    town.send("alice")
    town.wait_state("agreed")
    wait_until(lambda: town.granted()[0]["state"] == "agreed", what="the completion")
    calls, offer = f"127.0.0.1:{free_port()}", town.backup.directory / "moved.json"
    town.backup.stop()
    town.backup.settings["https"]["listen"] = [calls]
    town.backup.write()
    made = ("--to", DOMAIN, "--base-url", f"http://{calls}/", "-o", str(offer))
    assert town.backup.command("pair", "offer", "--rotate", *made).returncode == 0
    town.primary.command("pair", "accept", "--rotate", str(offer))
    town.primary.reload()
    town.backup.start()
    town.primary.command("agreements", "block", ALICE)
    wait_until(lambda: town.ask("alice") == "551 5.7.1", what="the block")


def test_nothing_is_lost_in_crashes(town: Town) -> None:
    """Both sides are killed with agreements under way; they go on where they were."""
    town.start()
    users = ("alice", "bob", "carol", "dora", "eve", "fay")
    town.primary.crash()
    for user in users:
        town.send(user)
    wait_until(lambda: bool(town.held("fay")), what="the sightings on record")
    town.backup.crash()
    town.primary.start()
    town.backup.start()
    for user in users:
        town.wait_state("agreed", user)
    assert {g["state"] for g in town.granted()} == {"agreed"}
    assert len(town.granted()) == len(users)


def test_the_story_of_the_seed(tmp_path: Path) -> None:
    """Roster fetched, primary down, known accepted, unknown refused, primary up, agreement
    negotiated, mail delivered under SMTP AUTH."""
    postfix = make_primary(tmp_path, "alice", "postmaster")
    sockets = postfix.queue_directory / "posthouse"
    town = Town(
        tmp_path,
        next_hop=postfix.port,
        users=["alice", "bob"],
        sections={
            "postfix": {
                "auth_socket": str(sockets / "auth"),
                "policy_listen": f"unix:{sockets}/policy",
            }
        },
    )
    try:
        town.start()
        town.primary.stop()
        assert town.ask("nobody") == "550 5.1.1"
        town.send("alice")
        assert town.wait_state("requested")["agreement_id"] == ""
        town.primary.start()
        held = town.wait_state("agreed")
        with postfix:
            os.kill(town.backup.running.pid, signal.SIGHUP)
            (message,) = postfix.wait_messages(1)
            assert "ESMTPSA" in message.received
            town.backup.wait_queue(0)
            assert f"sasl_username={held['agreement_id']}" in postfix.log()
    finally:
        town.stop()
        postfix.remove()


def test_a_backup_behind_a_backup(tmp_path: Path) -> None:
    """The one at 30 negotiates with the one at 20 while the primary is down; later the primary
    hears of both."""
    further = "mx3.example.org"
    primary = PrimaryNode(tmp_path / "primary", users=["alice", "bob"])
    at_20, at_30 = (make_backup(primary, tmp_path / name, name) for name in (BACKUP, further))
    behind_each_other(at_20, at_30)
    primary.add_backup(BACKUP)
    primary.add_backup(further, own=f"pairs/{DOMAIN}-for-{further}.json")
    try:
        primary.start()
        primary.wait_log("serial")
        for node in (at_20, at_30):
            node.start()
            wait_roster(node)
        primary.stop()
        send(at_30, "alice")
        held_at_30 = wait_state(at_30, "agreed")
        assert held_at_30["granter"] == BACKUP
        listed = at_20.command("agreements", "list", "--granted", "--json").stdout
        assert json.loads(listed)["forwarder_id"] == further
        send(at_20, "alice")
        primary.start()
        assert wait_state(at_20, "agreed")["granter"] == DOMAIN
        told = primary.command("agreements", "servers", ALICE, "--json").splitlines()
        assert [json.loads(line)["party"] for line in told] == [BACKUP, further]
        at_30.stop()
        told = primary.command("agreements", "servers", ALICE, "--json").splitlines()
        assert json.loads(told[1]) == {"party": further, "error": "connect"}
    finally:
        for running in (at_30, at_20, primary):
            running.stop()


def behind_each_other(at_20: PosthouseNode, at_30: PosthouseNode) -> None:
    """Pair two backups by hand, as docs/agreements.md has it."""
    pairs_20, pairs_30 = at_20.directory / "pairs", at_30.directory / "pairs"
    owner = json.loads((pairs_30 / f"{DOMAIN}.json").read_text())
    bases = {
        node: f"http://{node.settings['https']['listen'][0]}/"  # type: ignore[index]
        for node in (at_20, at_30)
    }
    granted = {**owner, "party": BACKUP, "base_url": bases[at_20], "token": "up-to-twenty"}
    offered = {"party": "mx3.example.org", "base_url": bases[at_30], "token": "down-to-thirty"}
    for path, document in (
        (pairs_20 / "for-mx3.json", granted),
        (pairs_30 / "mx2.json", granted),
        (pairs_20 / "mx3.json", offered),
        (pairs_30 / "for-mx2.json", offered),
    ):
        path.write_text(json.dumps(document))
        path.chmod(0o600)
    at_20.backups.append(
        {"pairing": "pairs/mx3.json", "own": "pairs/for-mx3.json", "domains": [DOMAIN]}
    )
    at_30.primaries.append({"pairing": "pairs/mx2.json", "own": "pairs/for-mx2.json"})
    for node in (at_20, at_30):
        node.write()
