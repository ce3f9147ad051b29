"""A node paired with a primary that somebody else wrote, from the protocol's text alone.

The story of the seed, told end to end: the roster is fetched, the primary goes
down, a known address is accepted, an unknown one refused, the primary returns,
an agreement is negotiated, and its owner blocks it.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from independent import roster
from independent.granter import Granter, ask_policy, serving
from peers.node import PosthouseNode
from peers.postfix import Postfix
from peers.processes import free_port, wait_until
from peers.smtp_tools import swaks

pytestmark = pytest.mark.peers

DOMAIN = "example.com"
BACKUP = "mx2.example.net"
PRIVATE = Ed25519PrivateKey.generate()
KEY = bytes(range(32))
FOLD = {"case": "lower", "delimiters": "+", "dots": "keep"}


def canonical(address: str) -> str:
    """An address as this primary reads it."""
    local, _, domain = address.rpartition("@")
    return roster.text_of(roster.content_of(local), FOLD, domain.lower(), cut=True)


@dataclass
class Stage:
    node: PosthouseNode
    granter: Granter
    backup_token: str

    def publish(self, *mailboxes: str, **members: Any) -> None:
        """Serve a newer roster with these users."""
        known = self.granter.rosters.setdefault(DOMAIN, {})
        serial = max([*known, int(time.time()) - 1]) + 1
        self.granter.mailboxes = {f"{m}@{DOMAIN}" for m in (*mailboxes, "postmaster")}
        known[serial] = roster.build(
            domain=DOMAIN,
            serial=serial,
            mailboxes=mailboxes,
            roster_key=KEY,
            private_key=PRIVATE,
            party=DOMAIN,
            issued=datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=5),
            members={"refresh_seconds": 60, **members},
        )

    def ask(self, user: str) -> str:
        """What RCPT for this user is answered: code and enhanced code."""
        run = swaks(
            self.node.port, "--to", f"{user}@{DOMAIN}", "--from", "a@b.example",
            "--quit-after", "RCPT",
        )  # fmt: skip
        reply = run.transcript[run.transcript.index("RCPT TO") :].splitlines()[1]
        return " ".join(reply.lstrip("<-* ~").split()[:2])

    def agreement(self, user: str) -> dict[str, Any]:
        done = self.node.command("agreements", "show", f"{user}@{DOMAIN}", "--json")
        found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        return found

    def call_back(self, mailbox: str, **what: Any) -> tuple[int, dict[str, Any]]:
        """The granter asks the forwarder at its policy negotiation URL."""
        (known,) = (a for a in self.granter.agreements.values() if a.mailbox == mailbox)
        document = {
            "recipe_id": known.recipe_id,
            "recipe_key": known.recipe_key,
            "agreement_id": known.agreement_id,
            "actor": "user",
            **what,
        }
        return ask_policy(known.policy_url, self.backup_token, document)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    granter = Granter(
        party=DOMAIN,
        token="presented-by-the-backup-0123456789",
        forwarder_id=BACKUP,
        domains=(DOMAIN,),
        fold=canonical,
        make_delta=roster.make_delta,
    )
    with serving(granter):
        calls = free_port()
        node = PosthouseNode(
            tmp_path,
            next_hop=[f"smtp://127.0.0.1:{free_port()}"],
            domain_keys={"recipients": {"primary": DOMAIN}, "verify": "off"},
            sections={"https": {"listen": [f"127.0.0.1:{calls}"]}},
        )
        node.primaries.append({"pairing": f"pairs/{DOMAIN}.json", "own": f"pairs/{BACKUP}.json"})
        node.write()
        offer = tmp_path / "their-offer.json"
        public = PRIVATE.public_key().public_bytes_raw()
        offer.write_text(
            json.dumps(
                {
                    "party": DOMAIN,
                    "base_url": granter.base_url,
                    "public_key": roster.b64(public),
                    "roster_key": roster.b64(KEY),
                    "token": granter.token,
                    "domains": [DOMAIN],
                }
            )
        )
        offer.chmod(0o600)
        taken = node.command("pair", "accept", str(offer))
        assert taken.returncode == 0, taken.stderr
        ours = tmp_path / "our-offer.json"
        made = node.command(
            "pair", "offer", "--to", DOMAIN, "-o", str(ours),
            "--base-url", f"http://127.0.0.1:{calls}/",
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        told = json.loads(ours.read_text())
        assert (told["party"], told["base_url"]) == (BACKUP, f"http://127.0.0.1:{calls}/")
        yield Stage(node, granter, told["token"])
        node.stop()


def test_the_story_of_the_seed(stage: Stage, tmp_path: Path) -> None:
    """From the first roster to a block, with a primary that shares no line with us."""
    stage.publish("alice", "bob")
    primary = Postfix.primary(users=("alice", "bob", "postmaster"))
    primary.set_parameters({"recipient_delimiter": "+"})
    node = stage.node
    node.domains[0]["next_hop"] = [f"smtp://127.0.0.1:{primary.port}"]
    node.write()
    try:
        node.start()
        wait_until(lambda: stage.ask("nobody") == "550 5.1.1", what="the first roster")
        assert stage.ask("Alice+news") == "250 2.1.5"
        assert stage.ask("postmaster") == "250 2.1.5"
        to_alice = ("--to", f"Alice+news@{DOMAIN}", "--from", "a@b.example")
        assert swaks(node.port, *to_alice).ok
        assert len(node.queue()) == 1

        primary.start()
        wait_until(
            lambda: stage.agreement("alice").get("state") == "agreed",
            what="an agreement",
            seconds=60,
        )
        (known,) = stage.granter.agreements.values()
        assert known.mailbox == f"alice@{DOMAIN}"
        assert known.completed
        assert known.policy_url.startswith("http://127.0.0.1:")
        (mail,) = primary.wait_messages(1)
        assert mail.recipient.lower() == f"alice+news@{DOMAIN}"

        status, answer = stage.call_back(known.mailbox, get=["blocked", "servers", "traffic"])
        assert status == 200
        assert answer["settings"]["blocked"] is False
        (server,) = answer["settings"]["servers"]
        assert server["party"] == BACKUP
        assert answer["settings"]["traffic"]["messages"] >= 1
        assert stage.call_back(known.mailbox, set={"blocked": True})[0] == 200
        wait_until(lambda: stage.ask("alice") == "551 5.7.1", what="the block")
        assert stage.ask("bob") == "250 2.1.5"
        assert stage.call_back(known.mailbox, set={"ended": True})[0] == 403
        assert stage.call_back(known.mailbox, set={"blocked": False})[0] == 200
        wait_until(lambda: stage.ask("alice") == "250 2.1.5", what="the block to be lifted")
        assert stage.call_back(known.mailbox, recipe_key="x" * 22, get=["blocked"])[0] == 403
    finally:
        primary.remove()


def test_deltas_and_stale_answers_of_others(stage: Stage) -> None:
    """Its deltas are understood; a roster rolled back, or refused, changes nothing."""
    node = stage.node
    stage.publish("alice", "bob", "carol")
    node.start()
    wait_until(lambda: stage.ask("nobody") == "550 5.1.1", what="the first roster")
    first = max(stage.granter.rosters[DOMAIN])
    stage.publish("alice", "bob", "dora")
    node.command("roster", "fetch")
    wait_until(lambda: stage.ask("dora") == "250 2.1.5", what="the second roster")
    assert stage.ask("carol") == "550 5.1.1"
    assert any(f"since={first}" in target for _, target in stage.granter.requests)

    known = stage.granter.rosters[DOMAIN]
    newest = max(known)
    stage.granter.rosters[DOMAIN] = {first: known[first]}  # an old backup was restored there
    node.command("roster", "fetch")
    assert stage.ask("dora") == "250 2.1.5"
    damaged = bytearray(known[newest])
    damaged[-1] ^= 1
    stage.granter.rosters[DOMAIN] = {newest + 5: bytes(damaged)}
    node.command("roster", "fetch")
    assert stage.ask("dora") == "250 2.1.5"
    assert stage.ask("carol") == "550 5.1.1"
