"""Held mail is redirected on a running node, and goes home to the new address."""

from __future__ import annotations

from pathlib import Path

import pytest

from peers.node import PosthouseNode
from peers.postfix import Postfix
from peers.smtp_tools import swaks

pytestmark = pytest.mark.peers


def test_an_unknown_user_has_a_colleague(tmp_path: Path) -> None:
    """What the primary refused for one address arrives at another, once; others stay as they are."""
    primary = Postfix.primary(
        users=("user", "gone", "left"),
        recipient_replies={
            "gone@example.com": "550 5.1.1 no such user here",
            "left@example.com": "550 5.1.1 no such user here",
        },
    )
    hop = f"smtp://127.0.0.1:{primary.port}"
    try:
        with (
            primary,
            PosthouseNode(tmp_path, next_hop=[hop], users=("user", "gone", "left")) as node,
        ):
            for name in ("gone", "left"):
                assert swaks(node.port, "--to", f"{name}@example.com", "--from", "a@b.example").ok
                node.wait_log(f"to=<{name}@example.com>, relay=")
            choice = ("--recipient", "gone@example.com", "--reply", "550", "--since", "1h")
            shown = node.command("queue", "redirect", "user@example.com", *choice, "--dry-run")
            assert "1 recipients would be redirected" in shown.stdout
            refused = node.command("queue", "redirect", "x@b.example", *choice, check=False)
            assert refused.returncode == 69
            done = node.command("queue", "redirect", "user@example.com", *choice)
            assert "1 recipients redirected to user@example.com" in done.stdout
            (delivered,) = primary.wait_messages(1)
            assert delivered.recipient == "user@example.com"
            node.wait_queue(1)
            (message,) = node.queue()
            assert message["recipients"][0]["address"] == "left@example.com"
    finally:
        primary.remove()
