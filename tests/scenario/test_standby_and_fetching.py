"""Standby modes with a real Postfix as primary, ETRN and ATRN with fetchmail."""

from __future__ import annotations

import base64
import hashlib
import hmac
import signal
import smtplib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.node import PosthouseNode
from peers.postfix import Postfix
from peers.processes import find_program, free_port, wait_until
from peers.smtp_tools import smtp_source, swaks

pytestmark = pytest.mark.peers

SECRET = "only-for-fetching-mail"
TO_USER = ("--to", "user@example.com", "--from", "a@elsewhere.example")


@pytest.fixture(name="primary")
def make_primary() -> Iterator[Postfix]:
    instance = Postfix.primary(users=("user", "new", "postmaster"))
    try:
        with instance:
            yield instance
    finally:
        instance.remove()


def wait_up(node: PosthouseNode, state: str = "up") -> None:
    """Wait until every worker holds the next hop for up."""
    wait_until(
        lambda: {hop["state"] for hop in node.status()["next_hops"]} == {state},
        what=f"a next hop that is {state}",
        seconds=20,
    )


def fetchmail(tmp_path: Path, rc: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "fetchmailrc"
    file.write_text(rc)
    file.chmod(0o600)
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    only_mine = ["--pidfile", str(tmp_path / "fetchmail.pid")]  # root's is one for the whole host
    flags = ["-f", str(file), "--nodetach", "-v", *only_mine]
    return subprocess.run(
        [find_program("fetchmail", "fetchmail"), *flags, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"HOME": str(home), "FETCHMAILHOME": str(home), "LC_ALL": "C"},
    )


def test_defer_turns_away_who_can_reach_the_primary(tmp_path: Path, primary: Postfix) -> None:
    """A first try hears 451; who plainly cannot reach the primary is let in; an outage lets all in."""
    node = PosthouseNode(
        tmp_path,
        next_hop=[f"smtp://127.0.0.1:{primary.port}"],
        domain_keys={"standby": "defer", "standby_patience": 2, "standby_window": "1s"},
    )
    with node:
        wait_up(node)
        first = swaks(node.port, *TO_USER)
        assert "451 4.3.2" in first.transcript
        assert "deliver to the more preferred MX" in first.transcript
        assert "550 5.1.1" in swaks(node.port, "--to", "no@example.com").transcript
        wait_until(lambda: swaks(node.port, *TO_USER).ok, what="patience to end", seconds=20)
        assert swaks(node.port, "--to", "user@example.com", "--from", "b@elsewhere.example").ok
        primary.wait_messages(2)
        primary.stop()
        wait_until(
            lambda: swaks(node.port, "--to", "user@example.com", "--from", "c@else.example").ok,
            what="everybody to be let in",
            seconds=20,
        )
    assert "plainly cannot reach the primary" in node.log()


def test_proxy_gives_the_primarys_words(tmp_path: Path, primary: Postfix) -> None:
    """Verdict and final reply are Postfix's own; an outage within DATA makes the message ours."""
    node = PosthouseNode(
        tmp_path,
        next_hop=[f"smtp://127.0.0.1:{primary.port}"],
        domain_keys={"standby": "proxy"},
    )
    with node:
        wait_up(node)
        # our list does not know "new", the primary does
        passed = swaks(node.port, "--to", "new@example.com", "--from", "a@elsewhere.example")
        assert passed.ok, passed.transcript
        assert "250 2.0.0 Ok: queued as" in passed.transcript
        refused = swaks(node.port, "--to", "no@example.com", "--from", "a@elsewhere.example")
        assert "User unknown in virtual mailbox table" in refused.transcript, refused.transcript
        primary.wait_messages(1)
        assert node.queue() == []

        with socket.create_connection(("127.0.0.1", node.port), timeout=20) as client:
            stream = client.makefile("rwb")

            def say(line: bytes) -> bytes:
                stream.write(line + b"\r\n")
                stream.flush()
                while (reply := stream.readline())[3:4] == b"-":
                    pass
                return reply

            stream.readline()
            for line in (b"EHLO c", b"MAIL FROM:<a@b.example>", b"RCPT TO:<user@example.com>"):
                assert say(line).startswith(b"250")
            assert say(b"DATA").startswith(b"354")
            stream.write(b"Subject: cut\r\n\r\n" + b"half\r\n" * 1000)
            stream.flush()
            primary.stop()
            assert say(b"other half\r\n.").startswith(b"250 2.0.0 Ok: queued as")
        (waiting,) = node.queue()
        assert waiting["size"] > 6000
        primary.start()
        delivered = primary.wait_messages(2)
        node.wait_queue(0)
        (whole,) = (m for m in delivered if b"Subject: cut" in m.content)
        assert whole.content.endswith(b"half\r\nother half\r\n")


def reload_as(node: PosthouseNode, mode: str) -> None:
    """Have the running node take another standby mode."""
    seen = node.log().count("worker 0: reloaded")
    node.domains[0]["standby"] = mode
    node.write()
    node.running.send_signal(signal.SIGHUP)
    wait_until(lambda: node.log().count("worker 0: reloaded") > seen, what="a reload", seconds=10)


def test_modes_that_change_while_sessions_run(tmp_path: Path, primary: Postfix) -> None:
    """SIGHUP: relay, defer, proxy, relay; a client under way has one mode for what it began."""
    node = PosthouseNode(tmp_path, next_hop=[f"smtp://127.0.0.1:{primary.port}"], workers=1)
    with node:
        wait_up(node)
        with (
            smtplib.SMTP("127.0.0.1", node.port, timeout=20) as client,
            smtplib.SMTP("127.0.0.1", node.port, timeout=20) as other,
        ):
            for session in (client, other):
                session.ehlo()
                session.mail("a@elsewhere.example")
            assert client.rcpt("user@example.com")[0] == 250
            assert other.rcpt("new@example.com")[0] == 550
            reload_as(node, "defer")
            code, text = client.data(b"Subject: begun in relay\r\n\r\nx\r\n")
            assert (code, b"Ok: queued as" in text) == (250, True)
            code, text = other.rcpt("user@example.com")
            assert (code, text[:5]) == (451, b"4.3.2")
            client.mail("a@elsewhere.example")
            reload_as(node, "proxy")
            assert client.rcpt("new@example.com")[0] == 250  # only the primary knows it
            assert client.docmd("DATA")[0] == 354
            reload_as(node, "relay")
            client.send(b"Subject: begun in proxy\r\n\r\nx\r\n.\r\n")
            assert client.getreply()[0] == 250
            client.mail("a@elsewhere.example")
            assert client.rcpt("new@example.com")[0] == 550
            client.rset()
        assert len(primary.wait_messages(2)) == 2
        node.wait_queue(0)
    (passed,) = (line for line in node.log().splitlines() if "proxy-accept" in line)
    assert "to=<new@example.com> proto=ESMTP" in passed
    assert len(primary.messages()) == 2


def test_etrn_by_fetchmail(tmp_path: Path, primary: Postfix) -> None:
    """A primary that is back asks for its mail, and has it at once, long before the next probe."""
    primary.stop()
    node = PosthouseNode(
        tmp_path, next_hop=[f"smtp://127.0.0.1:{primary.port}"], relay={"probe_interval": "1h"}
    )
    with node:
        assert smtp_source(node.port, messages=20, sessions=4).ok
        wait_up(node, "down")
        primary.start()
        rc = f"poll 127.0.0.1 with protocol etrn, port {node.port}\n fetchdomains example.com\n"
        asked = fetchmail(tmp_path, rc)
        assert "253 2.0.0 OK, 20 pending messages for node example.com started" in asked.stdout
        primary.wait_messages(20)
        node.wait_queue(0)
        again = fetchmail(tmp_path, rc)
        assert "251 2.0.0 OK, no messages waiting" in again.stdout
        other = fetchmail(tmp_path, rc.replace("example.com", "example.org"))
        assert "459 4.7.1 Node example.org not allowed" in other.stdout


def lose_a_line(port: int) -> None:
    """Dial in, log in, turn the line around, take 5 messages, hang up at the next recipient."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        stream = line.makefile("rwb")

        def say(text: bytes) -> bytes:
            stream.write(text + b"\r\n")
            stream.flush()
            while (heard := stream.readline())[3:4] == b"-":
                pass
            return heard

        stream.readline()
        say(b"EHLO primary.example")
        challenge = base64.b64decode(say(b"AUTH CRAM-MD5")[4:])
        digest = hmac.new(SECRET.encode(), challenge, hashlib.md5).hexdigest()
        assert say(base64.b64encode(f"ada {digest}".encode())).startswith(b"235")
        assert say(b"ATRN example.com").startswith(b"250")
        assert say(b"220 primary.example").startswith(b"EHLO")
        heard, taken = say(b"250 ok"), 0
        while not (heard.startswith(b"RCPT") and taken == 5):
            if heard.startswith(b"DATA"):
                heard = say(b"354 go on")
                while heard != b".\r\n":
                    heard = stream.readline()
                taken += 1
            heard = say(b"250 ok")


def test_atrn_by_fetchmail(tmp_path: Path, primary: Postfix) -> None:
    """A primary that cannot be reached dials in and fetches: whole, once, from every worker.

    A line that was lost costs the mail nothing: the next call has all of it.
    """
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    port = free_port()
    node = PosthouseNode(
        tmp_path,
        next_hop="pull",
        relay={"retry": ["1h"]},
        sections={"odmr": {"listen": [f"127.0.0.1:{port}"]}},
    )
    node.pulls.append({"user": "ada", "secret_file": str(secret), "domains": ["example.com"]})
    node.write()
    rc = (
        f'poll 127.0.0.1 with protocol odmr, port {port}\n username "ada" password "{SECRET}"\n'
        f" fetchdomains example.com\n smtphost 127.0.0.1/{primary.port}\n"
    )
    with node:
        wait_until(  # 451 until every worker answers
            lambda: "453 4.0.0 You have no mail" in fetchmail(tmp_path, rc).stdout,
            what="453",
            seconds=20,
        )
        assert smtp_source(node.port, messages=60, sessions=6).ok
        assert len(node.queue()) == 60
        wrong = fetchmail(tmp_path, rc.replace(SECRET, "guess"))
        assert "535 5.7.8" in wrong.stdout
        lose_a_line(port)
        wait_until(lambda: "]: done" in node.log(), what="the line to end", seconds=10)
        fetched = fetchmail(tmp_path, rc)
        assert "250 2.0.0 OK now reversing the connection" in fetched.stdout
        assert len(primary.wait_messages(55)) == 55
        node.wait_queue(0)
        assert fetched.returncode == 0, fetched.stderr
    assert len(primary.messages()) == 55
