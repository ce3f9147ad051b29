"""Logs that other people's tools read: fail2ban's own filter and pflogsumm, on a real log."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from peers.node import PosthouseNode
from peers.processes import find_program
from peers.smtp_tools import SmtpSink, smtp_source, swaks

pytestmark = pytest.mark.peers


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def test_fail2ban_and_pflogsumm_read_the_log(tmp_path: Path) -> None:
    """Refusals are hits of fail2ban's stock postfix filter; pflogsumm counts what happened."""
    with (
        SmtpSink(tmp_path) as sink,
        PosthouseNode(tmp_path / "n", next_hop=[f"smtp://127.0.0.1:{sink.port}"]) as node,
    ):
        for address in ("nobody@example.com", "x@elsewhere.example", "nobody2@example.com"):
            assert not swaks(node.port, "--to", address, "--from", "a@b.example").ok
        assert smtp_source(node.port, messages=7, sessions=2, payload_bytes=500).ok
        sink.wait_messages(7)
        node.wait_queue(0)
        node.stop()
        log = str(node.log_file)
        said = run(
            find_program("fail2ban-regex", "fail2ban"),
            log,
            "/etc/fail2ban/filter.d/postfix.conf",
        )
        assert re.search(r"Failregex: 3 total", said), said
        assert "127.0.0.1" in run(
            find_program("fail2ban-regex", "fail2ban"), "-v", log, "postfix[mode=aggressive]"
        )
        summary = run(find_program("pflogsumm", "pflogsumm"), log)
        rows = re.findall(r"^\s+(\d+)\s+(received|delivered|rejected)\b", summary, re.M)
        counts = {name: int(number) for number, name in rows}
        assert counts == {"received": 7, "delivered": 7, "rejected": 3}


def test_json_log(tmp_path: Path) -> None:
    """With format = "json" every line is one object."""
    node = PosthouseNode(
        tmp_path, next_hop=["smtp://127.0.0.1:1"], sections={"log": {"format": "json"}}
    )
    with node:
        assert swaks(node.port, "--to", "user@example.com", "--from", "a@b.example").ok
        node.wait_log('"accepted"')
    records = [json.loads(line) for line in node.log().splitlines()]
    (accepted,) = [record for record in records if record.get("event") == "accepted"]
    assert accepted["recipients"] == ["user@example.com"]
