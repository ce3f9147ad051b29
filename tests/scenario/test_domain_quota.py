"""A domain over its quota gets 452 for itself alone, until there is room again."""

from __future__ import annotations

from pathlib import Path

import pytest

from peers.node import PosthouseNode
from peers.processes import wait_until
from peers.smtp_tools import SmtpSink, swaks

pytestmark = pytest.mark.peers


def test_a_domain_over_its_quota(tmp_path: Path) -> None:
    """452 4.3.1 at RCPT in every worker, the other domain is served, and it ends by itself."""
    sink = SmtpSink(tmp_path)
    node = PosthouseNode(
        tmp_path / "node",
        next_hop=[f"smtp://127.0.0.1:{sink.port}"],
        domain_keys={"quota_count": 2},
    )
    node.domains.append(
        {
            "name": "other.example",
            "next_hop": [f"smtp://127.0.0.1:{sink.port}"],
            "recipients": str(node.recipients),
        }
    )
    node.recipients.write_text("user@example.com\nuser@other.example\n")
    node.write()

    def send(to: str) -> list[str]:
        return swaks(node.port, "--to", to, "--from", "a@b.example").replies()

    def is_refused() -> bool:
        return any("452 4.3.1 <user@example.com>" in line for line in send("user@example.com"))

    with node:
        assert not is_refused()
        assert not is_refused()
        # Whichever worker answers: all know within a second or two.
        wait_until(lambda: all(is_refused() for _ in range(6)), what="452 everywhere", every=0.2)
        assert any("queued as" in line for line in send("user@other.example"))
        wait_until(
            lambda: "quota-full" in {one["kind"] for one in node.status()["alerts"]},
            what="an alert",
            every=0.2,
        )
        with sink:
            sink.wait_messages(3)
            node.wait_queue(0)
            wait_until(lambda: not is_refused(), what="room again", every=0.2)
