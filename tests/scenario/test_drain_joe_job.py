"""A flood of forged mail: the innocent whose addresses were forged never hear of us."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from peers.dns import DnsResponder
from peers.node import PosthouseNode
from peers.postfix import Postfix
from peers.processes import wait_until
from peers.smtp_tools import SmtpSink, smtp_source

pytestmark = pytest.mark.peers

FORGED = "innocent@victim.example"


def test_nothing_leaves_towards_anyone_but_the_primary(tmp_path: Path) -> None:
    """500 forged messages to unknown users and with bad content: refused, held, never returned."""
    # Refused content takes a token of its flow control that never comes back: a second each.
    primary = Postfix.primary(parameters={"smtpd_error_sleep_time": "0", "in_flow_delay": "0"})
    rules = primary.config_directory / "rules"
    rules.write_text("/^Subject: cheap/ REJECT 5.7.1 spam\n")
    primary.set_parameters({"header_checks": f"regexp:{rules}"})
    victim = {"victim.example": {"MX": ["10 mx.victim.example."]}}
    host = {"mx.victim.example": {"A": ["127.0.0.1"]}}
    with DnsResponder(victim | host) as dns, SmtpSink(tmp_path) as sink:
        node = PosthouseNode(
            tmp_path / "node",
            next_hop=[f"smtp://127.0.0.1:{primary.port}"],
            dns=dns.address,
            relay={"mx_port": sink.port},
        )
        node.recipients.write_text("@example.com\n")  # it takes every address: the worst case
        with node:
            send(node, 280, recipient="nobody@example.com", numbered=True)
            send(node, 220, recipient="user@example.com", options=("-S", "cheap pills"))
            send(node, 20, recipient="user@example.com", sender="friend@elsewhere.example")
            with primary:
                wait_until(lambda: state(node) == "surge-stopped", what="the guard", every=0.1)
                node.command("drain", "resume", "--without-guard")
                primary.wait_messages(20)
                wait_until(lambda: state(node) == "up", what="the end of the drain", every=0.1)
                node.wait_queue(500)
                rows = [row for message in node.queue() for row in message["recipients"]]
                assert {row["state"] for row in rows} == {"held"}
                words = Counter(row["reason"].partition(":")[0] for row in rows)
                assert words == {"unknown": 280, "content": 220}
                assert len(primary.messages()) == 20
                assert primary.queue() == []
        assert sink.messages == 0
        assert not [name for name, *_ in dns.queries if "victim" in name]


def send(node: PosthouseNode, count: int, **more: object) -> None:
    asked = {"sender": FORGED, **more}
    run = smtp_source(node.port, messages=count, sessions=4, reuse=True, **asked)  # type: ignore[arg-type]
    assert run.ok, run.complaint


def state(node: PosthouseNode) -> str:
    return str(json.loads(node.command("drain", "show", "--json").stdout)["state"])
