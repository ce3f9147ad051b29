"""A primary that says no: nobody is bounced, nothing is lost, others are served."""

from __future__ import annotations

from pathlib import Path

import pytest

from peers.node import PosthouseNode
from peers.postfix import Postfix
from peers.smtp_tools import SmtpSink, swaks

pytestmark = pytest.mark.peers


def test_one_refused_recipient(tmp_path: Path) -> None:
    """A 5xx for one recipient holds that one with the reply; the others get their mail once."""
    primary = Postfix.primary(
        users=("user", "other"),
        recipient_replies={"other@example.com": "550 5.1.1 no such user here"},
    )
    hop = f"smtp://127.0.0.1:{primary.port}"
    try:
        with primary, PosthouseNode(tmp_path, next_hop=[hop], users=("user", "other")) as node:
            to = "user@example.com,other@example.com"
            assert swaks(node.port, "--to", to, "--from", "a@elsewhere.example").ok
            (delivered,) = primary.wait_messages(1)
            assert delivered.recipient == "user@example.com"
            node.wait_log("status=held")
            node.wait_queue(1)
            (message,) = node.queue()
            (held,) = message["recipients"]
            assert held["address"] == "other@example.com"
            assert held["state"] == "held"
            assert "550 5.1.1" in held["reply"]

            primary.set_recipient_replies({"other@example.com": "OK"})
            primary.restart()
            node.command("queue", "release", "--recipient", "other@example.com")
            messages = primary.wait_messages(2)
            assert {message.recipient for message in messages} == {
                "user@example.com",
                "other@example.com",
            }
            node.wait_queue(0)
    finally:
        primary.remove()


def test_greylisting_is_waited_out(tmp_path: Path) -> None:
    """A 4xx puts one recipient off by the schedule; it is no failure of the next hop."""
    primary = Postfix.primary(
        users=("user",), recipient_replies={"user@example.com": "450 4.7.1 greylisted"}
    )
    hop = f"smtp://127.0.0.1:{primary.port}"
    try:
        with (
            primary,
            PosthouseNode(
                tmp_path, next_hop=[hop], relay={"retry": ["2s"], "probe_interval": "1s"}
            ) as node,
        ):
            assert swaks(node.port, "--to", "user@example.com", "--from", "a@b.example").ok
            node.wait_log("status=deferred")
            assert {entry["state"] for entry in node.status()["next_hops"]} == {"up"}
            primary.set_recipient_replies({"user@example.com": "OK"})
            primary.restart()
            primary.wait_messages(1)
    finally:
        primary.remove()


def test_blocked_at_connect(tmp_path: Path) -> None:
    """A 5xx greeting blocks the next hop with an alert; mail stays and flows when it ends."""
    sink = SmtpSink(tmp_path, options=("-f", "CONNECT"))
    with PosthouseNode(tmp_path / "node", next_hop=[f"smtp://127.0.0.1:{sink.port}"]) as node:
        with sink:
            assert swaks(node.port, "--to", "user@example.com", "--from", "a@b.example").ok
            node.wait_log("blocked")
            (message,) = node.queue()
            assert message["recipients"][0]["state"] == "queued"
            assert "blocked" in {entry["state"] for entry in node.status()["next_hops"]}
        good = SmtpSink(tmp_path, port=sink.port)
        with good:
            good.wait_messages(1)
            node.wait_queue(0)


def test_one_dead_next_hop_slows_no_other(tmp_path: Path) -> None:
    """Mail for a healthy next hop passes while another has a backlog and is down."""
    with SmtpSink(tmp_path) as sink:
        node = PosthouseNode(tmp_path / "node", next_hop=["smtp://127.0.0.1:1"])
        node.domains.append(
            {
                "name": "healthy.example",
                "next_hop": [f"smtp://127.0.0.1:{sink.port}"],
                "recipients": str(node.recipients),
            }
        )
        node.recipients.write_text("user@example.com\nuser@healthy.example\n")
        node.write()
        with node:
            for _ in range(3):
                assert swaks(node.port, "--to", "user@example.com", "--from", "a@b.example").ok
            assert swaks(node.port, "--to", "user@healthy.example", "--from", "a@b.example").ok
            sink.wait_messages(1)
            node.wait_queue(3)
