"""Scenario: what a worker cannot open at its start stops neither it nor the others."""

from __future__ import annotations

import os
import signal
import smtplib
import socket
from pathlib import Path

from peers.node import PosthouseNode

NOWHERE = "smtp://127.0.0.1:9"


def break_shard(node: PosthouseNode, shard: int) -> None:
    directory = node.directory / "data" / "spool" / str(shard)
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("spool.db*"):
        path.unlink()
    (directory / "spool.db").write_bytes(b"garbage" * 1000)


def test_a_worker_without_its_shard_sends_clients_away(tmp_path: Path) -> None:
    """It answers 421 4.3.0 at once, and `status` says why."""
    node = PosthouseNode(tmp_path, next_hop=[NOWHERE], workers=1)
    with node:
        pass
    break_shard(node, 0)
    with node:
        with socket.create_connection(("127.0.0.1", node.port), 10) as client:
            assert client.recv(100).startswith(b"421 4.3.0 ")
        assert "shard 0 cannot be opened" in node.status()["intake_problems"][0]


def test_a_leftover_shard_stops_nobody(tmp_path: Path) -> None:
    """A broken shard of a worker of before is an alert; mail is taken."""
    node = PosthouseNode(tmp_path, next_hop=[NOWHERE], workers=1)
    break_shard(node, 3)
    with node:
        with smtplib.SMTP("127.0.0.1", node.port, timeout=10) as session:
            assert session.ehlo()[0] == 250
        assert "shard 3" in [alert["kind"] for alert in node.status()["alerts"]]


def test_a_worker_restarted_without_its_certificate(tmp_path: Path) -> None:
    """It serves without STARTTLS and says so."""
    import trustme

    issued = trustme.CA().issue_cert("mx2.example.net")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    node = PosthouseNode(
        tmp_path,
        next_hop=[NOWHERE],
        workers=1,
        smtp={"certificate": str(tmp_path / "cert.pem"), "private_key": str(tmp_path / "key.pem")},
    )
    with node:
        worker = node.status()["workers"][0]["pid"]
        (tmp_path / "cert.pem").unlink()
        os.kill(worker, signal.SIGKILL)
        node.wait_log("STARTTLS is not offered")
        with smtplib.SMTP("127.0.0.1", node.port, timeout=20) as session:
            session.ehlo()
            assert not session.has_extn("starttls")
