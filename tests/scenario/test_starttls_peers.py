"""STARTTLS with real peers: OpenSSL and swaks in front, Postfix behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trustme

from peers.node import PosthouseNode
from peers.postfix import Postfix
from peers.processes import wait_until
from peers.smtp_tools import starttls_dialogue, swaks

pytestmark = pytest.mark.peers


def write_certificate(directory: Path, name: str, authority: trustme.CA) -> tuple[Path, Path]:
    issued = authority.issue_cert(name)
    chain, key = directory / f"{name}.pem", directory / f"{name}.key"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    return chain, key


def test_openssl_and_swaks(tmp_path: Path) -> None:
    """OpenSSL verifies our chain and talks SMTP under TLS 1.2 and 1.3, never below; swaks sends."""
    authority = trustme.CA()
    chain, key = write_certificate(tmp_path, "mx2.example.net", authority)
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    keys = {"certificate": str(chain), "private_key": str(key)}
    with PosthouseNode(tmp_path / "node", next_hop=["smtp://127.0.0.1:1"], smtp=keys) as node:
        options = ("-CAfile", str(ca), "-verify_hostname", "mx2.example.net")
        run = starttls_dialogue(node.port, ["EHLO c", "NOOP"], options=options)
        assert run.protocol == "TLSv1.3"
        assert run.verify.startswith(("0 (ok)", "OK"))
        assert "250-PIPELINING" in run.output
        assert "221 2.0.0 Bye" in run.output
        assert starttls_dialogue(node.port, [], options=("-tls1_2",)).protocol == "TLSv1.2"
        old = ("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")
        assert starttls_dialogue(node.port, [], options=old).protocol == ""
        sent = swaks(node.port, "--to", "user@example.com", "--from", "a@b.example", "--tls")
        assert sent.ok, sent.transcript
        (message,) = node.queue()
        assert message["client"]["protocol"] == "ESMTPS"


def test_certificate_is_reloaded_on_sighup(tmp_path: Path) -> None:
    """After SIGHUP new sessions get the new certificate; a broken one keeps the old in force."""
    authority = trustme.CA()
    chain, key = write_certificate(tmp_path, "mx2.example.net", authority)
    keys = {"certificate": str(chain), "private_key": str(key)}
    with PosthouseNode(tmp_path / "node", next_hop=["smtp://127.0.0.1:1"], smtp=keys) as node:
        before = starttls_dialogue(node.port, []).output
        new_chain, new_key = write_certificate(tmp_path, "new.example.net", authority)
        os.replace(new_chain, chain)
        os.replace(new_key, key)
        node.running.send_signal(signal.SIGHUP)
        node.wait_log("reload")

        def fresh() -> bool:
            return (
                starttls_dialogue(node.port, []).output.split("-----END")[0]
                != (before.split("-----END")[0])
            )

        wait_until(fresh, what="the new certificate")
        after = starttls_dialogue(node.port, []).output.split("-----END")[0]
        chain.write_text("no certificate at all\n")
        node.running.send_signal(signal.SIGHUP)
        node.wait_log("certificate")
        assert starttls_dialogue(node.port, []).output.split("-----END")[0] == after


def test_tls_to_a_postfix_primary(tmp_path: Path) -> None:
    """Mail goes to the primary under TLS when it is offered."""
    authority = trustme.CA()
    chain, key = write_certificate(tmp_path, "mail.example.com", authority)
    primary = Postfix.primary(users=("user",), certificate=chain, private_key=key)
    try:
        with (
            primary,
            PosthouseNode(tmp_path / "n", next_hop=[f"smtp://127.0.0.1:{primary.port}"]) as node,
        ):
            sent = swaks(node.port, "--to", "user@example.com", "--from", "a@b.example")
            assert sent.ok
            (message,) = primary.wait_messages(1)
            assert "ESMTPS" in message.received
    finally:
        primary.remove()
