"""A node whose recipients come from its primary's rosters."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.pairs import PRIMARY_TOKEN, ROSTER_KEY, SIGNING_KEY, write_pairs
from fakes.rosters import make_roster, rule
from fakes.vectors import ROSTER
from peers.node import PosthouseNode
from peers.processes import free_port, wait_until
from peers.roster_primary import RosterPrimary
from peers.smtp_tools import swaks
from posthouse.domain.digests import roster_key_id
from posthouse.mail.roster import HmacDigest, RosterPolicy, RosterPublisher, ScryptDigest
from posthouse.mail.wire_text import format_time
from posthouse.proto import signing

pytestmark = pytest.mark.peers

DOMAIN = "example.com"
KEY_ID = roster_key_id(ROSTER_KEY)
PARTY = RosterPublisher(party=DOMAIN, key_id=signing.key_id(signing.derive_public_key(SIGNING_KEY)))


def publish(
    primary: RosterPrimary, serial: int, *users: str, lasts: int = 3600, **more: Any
) -> int:
    """Make a roster of these users and serve it."""
    now = int(time.time())
    members: dict[str, Any] = {
        "domain": DOMAIN,
        "serial": serial,
        "issued_at": format_time(now - 10),
        "expires_at": format_time(now + lasts),
        "publisher": PARTY,
        "digest": HmacDigest(length=16, key_id=KEY_ID),
    }
    data = make_roster(users, private_key=SIGNING_KEY, roster_key=ROSTER_KEY, **(members | more))
    primary.publish(DOMAIN, data, serial)
    return serial


@pytest.fixture
def primary() -> Iterator[RosterPrimary]:
    with RosterPrimary(PRIMARY_TOKEN) as primary:
        yield primary


@pytest.fixture
def node(tmp_path: Path, primary: RosterPrimary) -> Iterator[PosthouseNode]:
    node = PosthouseNode(
        tmp_path,
        next_hop=[f"smtp://127.0.0.1:{free_port()}"],  # nobody there: the primary's MTA is down
        domain_keys={"recipients": {"primary": DOMAIN}, "verify": "off"},
    )
    write_pairs(tmp_path / "pairs", DOMAIN, "mx2.example.net", primary_url=primary.base_url)
    node.primaries.append({"pairing": f"pairs/{DOMAIN}.json", "own": "pairs/mx2.example.net.json"})
    node.write()
    yield node
    node.stop()


def ask(node: PosthouseNode, user: str) -> str:
    """What RCPT for `user` is answered, without the text."""
    run = swaks(
        node.port, "--to", f"{user}@{DOMAIN}", "--from", "a@b.example", "--quit-after", "RCPT"
    )
    lines = [line for line in run.transcript.splitlines() if "RCPT TO" in line]
    assert lines, run.transcript
    reply = run.transcript[run.transcript.index("RCPT TO") :].splitlines()[1]
    return " ".join(reply.lstrip("<-* ~").split()[:2])


def facts_of(node: PosthouseNode) -> dict[str, Any]:
    facts: dict[str, Any] = node.status()["domains"][0]["recipients"]
    return facts


def test_the_primary_is_down_and_users_are_known(
    node: PosthouseNode, primary: RosterPrimary
) -> None:
    """The roster tells who exists while the primary is down; a newer one counts within seconds."""
    publish(
        primary,
        100,
        "alice",
        "bob",
        "carol",
        "dora",
        rules=(rule("pot[0-9]", "trap"), rule("later", "defer")),
    )
    node.start()
    assert ask(node, "Alice+news") == "250 2.1.5"
    assert ask(node, "nobody") == "550 5.1.1"
    assert ask(node, "pot7") == "250 2.1.5"
    assert ask(node, "later") == "451 4.2.1"
    facts = facts_of(node)
    assert (facts["serial"], facts["entries"], facts["problem"]) == (100, 5, "")
    publish(primary, 200, "alice", "bob", "carol", "eve")
    os.kill(node.running.pid, signal.SIGHUP)
    wait_until(lambda: facts_of(node).get("serial") == 200, what="the newer roster")
    assert ask(node, "eve") == "250 2.1.5"
    assert ask(node, "dora") == "550 5.1.1"
    assert primary.asked[0] == (f"/v1/rosters/{DOMAIN}", "")
    assert (f"/v1/rosters/{DOMAIN}?since=100", '"100"') in primary.asked
    screen = node.command("status").stdout
    assert "serial 200" in screen


def test_an_operator_decides_about_a_shrunken_roster(
    node: PosthouseNode, primary: RosterPrimary
) -> None:
    """What shrank is set aside and shown, accepted by command, and survives a restart."""
    publish(primary, 100, *[f"u{n}" for n in range(20)])
    node.start()
    assert ask(node, "u2") == "250 2.1.5"
    publish(primary, 200, "u1")
    said = json.loads(node.command("roster", "fetch", "--json").stdout)
    assert "set aside" in said[DOMAIN]
    assert ask(node, "u2") == "250 2.1.5"
    assert facts_of(node)["set_aside"] == 200
    assert "posthouse roster accept" in node.command("status").stdout
    assert node.command("roster", "accept", DOMAIN, "150", check=False).returncode == 1
    assert node.command("roster", "accept", DOMAIN, "200").returncode == 0
    wait_until(lambda: facts_of(node).get("serial") == 200, what="the accepted roster")
    assert ask(node, "u2") == "550 5.1.1"


def test_an_older_roster_needs_the_operator(node: PosthouseNode, primary: RosterPrimary) -> None:
    """A roll-back is refused, across a restart too, until an operator lets it pass."""
    publish(primary, 100, "u1", "u2")
    node.start()
    assert ask(node, "u1") == "250 2.1.5"
    node.stop()
    node.start()
    assert ask(node, "u1") == "250 2.1.5"
    publish(primary, 50, "u1", "u3")
    assert "roll-back" in node.command("roster", "fetch").stdout
    node.command("roster", "reset-serial", DOMAIN)
    node.command("roster", "fetch", DOMAIN)
    wait_until(lambda: facts_of(node).get("serial") == 50, what="the older roster")


def test_a_stale_roster_holds_until_a_fresh_one_vouches(
    node: PosthouseNode, primary: RosterPrimary
) -> None:
    """Where both sides wish so, unknown users of a stale roster are taken on hold, then released."""
    node.domains[0]["when_unknown"] = "hold"
    node.write()
    policy = RosterPolicy(blocking="allowed", when_stale="hold")
    publish(primary, 100, "alice", lasts=3, policy=policy)
    node.start()
    assert ask(node, "nobody") == "550 5.1.1"
    wait_until(lambda: facts_of(node)["stale"], what="the roster's expiry")
    assert ask(node, "alice") == "250 2.1.5"
    for user in ("bob", "nobody"):
        assert swaks(node.port, "--to", f"{user}@{DOMAIN}", "--from", "a@b.example").ok
    assert {one["state"] for m in node.queue() for one in m["recipients"]} == {"held"}
    publish(primary, 200, "alice", "bob", policy=policy)
    node.command("roster", "fetch")
    wait_until(
        lambda: (
            {one["address"]: one["state"] for m in node.queue() for one in m["recipients"]}
            == {f"bob@{DOMAIN}": "queued", f"nobody@{DOMAIN}": "held"}
        ),
        what="the release of who is vouched for",
    )


def test_slow_digests_do_not_block_and_guesses_end(
    node: PosthouseNode, primary: RosterPrimary
) -> None:
    """With scrypt the answers are the same; a network that guesses too much learns nothing more."""
    node.settings["lookups"] = {"guesses": 3}
    node.settings[""]["workers"] = 1
    node.write()
    scrypt = ScryptDigest(n=4096, r=8, p=1, salt="Npn-MgojWduuHKTLKSMbIw", length=16, key_id=KEY_ID)
    publish(primary, 100, "alice", "bob", digest=scrypt)
    node.start()
    assert [ask(node, user) for user in ("alice", "x1", "x2", "x3")] == [
        "250 2.1.5",
        *["550 5.1.1"] * 3,
    ]
    assert ask(node, "x4") == "451 4.7.1"
    assert ask(node, "bob") == "451 4.7.1"  # even a right guess
    assert ask(node, "alice") == "250 2.1.5"  # remembered
    assert ask(node, "x1") == "550 5.1.1"


def test_a_local_file_and_a_bad_one(tmp_path: Path) -> None:
    """A roster file on disk is taken; one that is not ours leaves nobody known, and says why."""
    node = PosthouseNode(
        tmp_path,
        next_hop=[f"smtp://127.0.0.1:{free_port()}"],
        domain_keys={
            "recipients": {"file": "x.roster", "pairing": f"pairs/{DOMAIN}.json"},
            "verify": "off",
        },
    )
    write_pairs(tmp_path / "pairs", DOMAIN, "mx2.example.net")
    file = tmp_path / "x.roster"
    file.write_bytes(ROSTER)
    with RosterPrimary("") as shelf, node:
        assert ask(node, "alice") == "451 4.4.3"
        assert "refused (domain)" in facts_of(node)["problem"]
        publish(shelf, 100, "alice")
        fresh = tmp_path / "fresh"
        fresh.write_bytes(shelf.files[f"/v1/rosters/{DOMAIN}"][0])
        os.replace(fresh, file)
        wait_until(lambda: facts_of(node).get("serial") == 100, what="the good file")
        assert ask(node, "alice") == "250 2.1.5"
        done = node.command("roster", "inspect", str(file), "--json")
        assert json.loads(done.stdout)["header"]["serial"] == 100
        assert "250" in node.command("roster", "test", f"Alice+x@{DOMAIN}").stdout
        assert node.command("roster", "test", f"nobody@{DOMAIN}", check=False).returncode == 1
