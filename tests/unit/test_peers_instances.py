"""The peers themselves: what scenario tests and benchmarks take for granted about them."""

from __future__ import annotations

import os
import shutil
import signal
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from peers.postfix import Postfix
from peers.processes import (
    PeerFailed,
    PeerMissing,
    Running,
    answers,
    find_program,
    free_port,
    group_members,
    wait_gone,
)
from peers.smtp_tools import SmtpSink, smtp_source, starttls_dialogue, swaks

pytestmark = pytest.mark.peers

TRICKY = (
    b"Subject: =?utf-8?q?x?=\r\n\r\n.one dot\r\n..two dots\r\nhigh \xff\xfe octets\r\n"
    b"  trailing space \r\n" + b"long " * 1000 + b"\r\n\r\n\r\n"
)


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postfix]:
    place = tmp_path_factory.mktemp("certificate")
    issued = trustme.CA().issue_cert("mail.example.com")
    issued.cert_chain_pems[0].write_to_path(place / "chain.pem")
    issued.private_key_pem.write_to_path(place / "key.pem")
    with Postfix.primary(
        users=["user", "busy"],
        recipient_replies={"busy@example.com": "450 4.2.1 come back later"},
        certificate=place / "chain.pem",
        private_key=place / "key.pem",
    ) as instance:
        yield instance


def test_a_primary_hands_over_the_message_byte_for_byte(primary: Postfix) -> None:
    """What was sent comes out of the mailbox unchanged, trace fields of the primary apart."""
    before = len(primary.messages())
    with smtplib.SMTP("127.0.0.1", primary.port, "client.elsewhere.example", timeout=20) as client:
        client.sendmail("sender@elsewhere.example", ["user@example.com"], TRICKY)
    (delivered,) = primary.wait_messages(before + 1)[before:]
    assert delivered.content == TRICKY
    assert delivered.recipient == "user@example.com"
    assert delivered.return_path == "sender@elsewhere.example"
    assert "from client.elsewhere.example (unknown [127.0.0.1])" in delivered.received


@pytest.mark.parametrize(
    ("recipient", "reply"),
    [("nobody@example.com", "550 5.1.1"), ("busy@example.com", "450 4.2.1")],
)
def test_a_primary_answers_as_told(primary: Postfix, recipient: str, reply: str) -> None:
    """Unknown users and chosen recipients get their replies at RCPT."""
    run = swaks(primary.port, "--to", recipient, "--from", "a@elsewhere.example")
    assert not run.ok
    assert any(line.startswith(reply) for line in run.replies())


def test_starttls_dialogue_tells_what_was_negotiated(primary: Postfix) -> None:
    """openssl's view of the handshake and the dialogue under TLS come back as values."""
    run = starttls_dialogue(primary.port, ["EHLO client.example", "RSET"])
    assert run.protocol.startswith("TLSv1.")
    assert run.cipher
    assert "250 2.0.0 Ok" in run.output


def test_stop_frees_the_port_and_start_keeps_the_queue(tmp_path: Path) -> None:
    """A stopped instance has no process and no port; started again it delivers what it had."""
    sink = SmtpSink(tmp_path)
    recipients = [f"{number}user@example.com" for number in range(1, 21)]
    with Postfix.rival(relay_port=sink.port, recipients=recipients) as rival:
        run = smtp_source(rival.port, messages=20, sessions=4, numbered=True, reuse=True)
        assert run.ok, run.complaint
        refused = smtp_source(rival.port, messages=1, recipient="nobody@example.com")
        assert "550 5.1.1" in refused.complaint
        rival.wait_settled()
        group = rival.process_group
        rival.stop()
        assert not answers(rival.port)
        assert group_members(group) == []
        rival.start()
        assert len(rival.queue()) == 20
        with sink:
            rival.flush()
            sink.wait_messages(20)


def test_a_sink_keeps_messages(tmp_path: Path) -> None:
    """smtp-sink's dumps can be read back, one a message."""
    with SmtpSink(tmp_path, keep_in=tmp_path / "kept") as sink:
        assert smtp_source(sink.port, messages=3, payload_bytes=300).ok
        sink.wait_messages(3)
        assert len(sink.kept()) == 3
    assert not answers(sink.port)


def test_peers_end_with_their_starter() -> None:
    """A killed test leaves no peer behind."""
    program = (
        "import sys, time\n"
        "from peers.postfix import Postfix\n"
        "instance = Postfix.primary()\n"
        "instance.start()\n"
        "print(instance.process_group, instance.root, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as starter:
        assert starter.stdout is not None
        group_text, root = starter.stdout.readline().split()
        group = int(group_text)
        assert group_members(group)
        starter.send_signal(signal.SIGKILL)
    for member in group_members(group):
        assert wait_gone(member, 10)
    shutil.rmtree(root)


def test_a_program_that_does_not_listen_is_reported(tmp_path: Path) -> None:
    """Waiting for a dead program ends at once with what it said."""
    command = [sys.executable, "-c", "import sys; sys.exit('no luck today')"]
    with pytest.raises(PeerFailed, match="no luck today"):
        Running(command, output=tmp_path / "output").wait_answering(free_port())


def test_a_missing_program_names_the_cure() -> None:
    """The error says which package is missing and how to get it."""
    with pytest.raises(PeerMissing, match="make test"):
        find_program("no-such-program", "no-such-package")
