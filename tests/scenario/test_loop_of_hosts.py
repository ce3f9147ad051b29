"""Hosts that lead back to us: no message runs in circles for ever, and none is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from peers.node import PosthouseNode
from peers.processes import wait_until
from peers.smtp_tools import swaks

pytestmark = pytest.mark.peers


def test_two_backups_that_name_each_other(tmp_path: Path) -> None:
    """Under other names it is seen by its Received fields: after a hundred it is held as a loop."""
    first = PosthouseNode(tmp_path / "first", next_hop=["smtp://127.0.0.1:1"], workers=1)
    second = PosthouseNode(
        tmp_path / "second",
        next_hop=[f"smtp://127.0.0.1:{first.port}"],
        workers=1,
        top={"hostname": "mx3.example.org"},
    )
    first.domains[0]["next_hop"] = [f"smtp://127.0.0.1:{second.port}"]
    first.write()
    with first, second:
        assert swaks(first.port, "--to", "user@example.com", "--from", "a@b.example").ok

        def held() -> list[str]:
            found = [*first.queue("--state", "held"), *second.queue("--state", "held")]
            return [row["reason"] for message in found for row in message["recipients"]]

        wait_until(lambda: bool(held()), what="the loop to be seen", every=0.2, seconds=30)
        (reason,) = held()
        assert reason.startswith("loop: ")
        assert len(first.queue()) + len(second.queue()) == 1
