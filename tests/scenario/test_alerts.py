"""An outage is told by mail, webhook and command, and reported; held mail is told by a digest."""

from __future__ import annotations

import contextlib
import email
import email.message
import email.policy
import hashlib
import hmac
import http.server
import json
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from peers.dns import DnsResponder
from peers.node import PosthouseNode
from peers.postfix import Postfix
from peers.primary import PrimaryNode, run_command
from peers.processes import wait_until
from peers.smtp_tools import SmtpSink, swaks

pytestmark = pytest.mark.peers

SECRET = b"shared between the node and the receiver"
# The contact's MX has an address of its own, since no alert goes by way of a next hop.
ELSEWHERE = "127.0.0.3"
ZONES = {
    "elsewhere.example": {"MX": ["10 mx.elsewhere.example."]},
    "mx.elsewhere.example": {"A": [ELSEWHERE]},
}


class Receiver:
    """An HTTPS server that keeps what is posted to it, with the signature it came with."""

    def __init__(self, ca: trustme.CA) -> None:
        self.posted: list[tuple[str, bytes]] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.posted.append((self.headers["Posthouse-Signature"], body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("127.0.0.1").configure_cert(context)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def alerts(self) -> list[dict[str, Any]]:
        """Every alert of every notice, in order; each signature must be right."""
        found = []
        for signature, body in list(self.posted):
            stamp, digest = (part.partition("=")[2] for part in signature.split(","))
            signed = stamp.encode() + b"." + body
            assert hmac.new(SECRET, signed, hashlib.sha256).hexdigest() == digest
            found += json.loads(body)["alerts"]
        return found

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Inbox:
    """The contact's mail server, and what came to it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "inbox"
        self.sink = SmtpSink(directory, host=ELSEWHERE, keep_in=self._directory)

    def mails(self) -> list[email.message.EmailMessage]:
        """In order; smtp-sink's own X- fields on top."""
        return [
            email.message_from_bytes(octets, policy=email.policy.default)
            for octets in self.sink.kept()
        ]

    def wait(self, word: str, *, seconds: float = 20) -> email.message.EmailMessage:
        """The first mail whose subject has `word`."""

        def find() -> list[email.message.EmailMessage]:
            return [mail for mail in self.mails() if word in (mail["Subject"] or "")]

        wait_until(lambda: bool(find()), what=f"a mail about {word}", seconds=seconds, every=0.1)
        return find()[0]


@contextlib.contextmanager
def inbox_with_dns(directory: Path) -> Iterator[tuple[Inbox, DnsResponder]]:
    inbox = Inbox(directory)
    with DnsResponder(ZONES) as dns, inbox.sink:
        yield inbox, dns


def test_an_outage_is_told_and_reported(tmp_path: Path) -> None:
    """Down and up by mail, signed webhook and command; the report shows it, also without a node."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    told = tmp_path / "told"
    script = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"
    primary = SmtpSink(tmp_path)
    hop = f"smtp://127.0.0.1:{primary.port}"
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    with inbox_with_dns(tmp_path) as (inbox, dns), Receiver(ca) as receiver:
        node = PosthouseNode(
            tmp_path / "node",
            next_hop=[hop],
            dns=dns.address,
            relay={"mx_port": inbox.sink.port},
            sections={
                "alerts": {
                    "mail": True,
                    "webhook": receiver.url,
                    "webhook_secret_file": str(tmp_path / "secret"),
                    "webhook_ca_file": str(tmp_path / "ca.pem"),
                    "command": [sys.executable, "-c", script, str(told)],
                    "delay": "0s",
                    "interval": "0s",
                }
            },
        )
        with node:
            with primary:
                assert swaks(node.port, "--to", "user@example.com", "--from", "a@b.example").ok
                primary.wait_messages(1)
                _wait_report(node, accepted=1, delivered=1)
            assert swaks(node.port, "--to", "user@example.com", "--from", "a@b.example").ok
            mail = inbox.wait("next-hop-down")
            assert mail["To"] == "ops@elsewhere.example"
            assert mail["Auto-Submitted"] == "auto-generated"
            assert mail["X-Mail-Args"] == "<>" or mail["X-Mail-Args"].startswith("<>")
            assert f"next hop {hop} is down" in mail.get_content()
            assert "Connection refused" in mail.get_content()
            (alert,) = [one for one in node.status()["alerts"] if one["kind"] == "next-hop-down"]
            assert alert["subject"] == hop
            shown = node.command("alerts", "--json")
            assert shown.returncode == 1
            assert json.loads(shown.stdout.splitlines()[0])["kind"] == "next-hop-down"
            assert swaks(node.port, "--to", "user@example.com", "--from", "a@b.example").ok
            _wait_report(node, accepted=3)
            primary.start()
            try:
                primary.wait_messages(2)
                over = inbox.wait("over: next-hop-down", seconds=30)
                assert f"over: next hop {hop} is down" in over.get_content()
                wait_until(
                    lambda: {one["state"] for one in receiver.alerts()} == {"standing", "over"},
                    what="both posts",
                )
                wait_until(lambda: told.read_text().count("\n") >= 2, what="both commands")
                kinds = {one["kind"] for one in receiver.alerts()}
                assert kinds == {"next-hop-down"}
                _wait_report(node, delivered=3)
            finally:
                primary.stop()
        report = _report(node)
        assert (report["accepted"], report["delivered"], report["held"]) == (3, 3, 0)
        (outage,) = report["outages"]
        assert outage["reasons"] == ["refused"]
        # The mail that revealed the outage came before it was known; the next came during it.
        assert outage["meanwhile"]["accepted"] in (1, 2)
        text = node.command("report", "example.com").stdout
        assert "1 outages" in text
        assert "refused" in text
        everything = node.command("alerts", "--all").stdout
        assert "over  next-hop-down" in everything


def _report(node: PosthouseNode) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.command("report", "example.com", "--json").stdout)
    return found


def _wait_report(node: PosthouseNode, **counts: int) -> None:
    """Counts reach the report about a second late."""

    def reached() -> bool:
        report = _report(node)
        return all(report[name] == count for name, count in counts.items())

    wait_until(reached, what=f"a report of {counts}", every=0.2)


def test_held_mail_is_told_by_a_digest(tmp_path: Path) -> None:
    """What the primary refused for good: which, from whom claimed, why, and how to act."""
    primary = Postfix.primary(
        users=("user", "other"),
        recipient_replies={"other@example.com": "550 5.1.1 no such user here"},
    )
    try:
        with primary, inbox_with_dns(tmp_path) as (inbox, dns):
            node = PosthouseNode(
                tmp_path / "node",
                next_hop=[f"smtp://127.0.0.1:{primary.port}"],
                users=("user", "other"),
                dns=dns.address,
                relay={"mx_port": inbox.sink.port},
                sections={"alerts": {"mail": True, "delay": "0s", "digest_delay": "0s"}},
            )
            with node:
                to = "user@example.com,other@example.com"
                assert swaks(node.port, "--to", to, "--from", "forged@b.example").ok
                text = inbox.wait("put on hold").get_content()
                (message,) = node.queue("--state", "held")
            assert "1 recipients were put on hold" in text
            assert "550 5.1.1" in text
            assert "claimed from forged@b.example" in text
            assert f"posthouse queue show {message['id']}" in text
            assert "posthouse queue release --domain example.com --reply 550 --dry-run" in text
            with node:  # a restart tells nothing twice
                assert node.queue("--state", "held")
            assert len([m for m in inbox.mails() if "put on hold" in m["Subject"]]) == 1
    finally:
        primary.remove()


def test_a_contact_behind_this_backup_is_told_nothing(tmp_path: Path) -> None:
    """Its MX is our next hop: no mail goes there, and that stands among the alerts."""
    primary = SmtpSink(tmp_path)
    zones = {
        "elsewhere.example": {"MX": ["10 mx.elsewhere.example."]},
        "mx.elsewhere.example": {"A": ["127.0.0.1"]},
    }
    with DnsResponder(zones) as dns:
        node = PosthouseNode(
            tmp_path / "node",
            next_hop=[f"smtp://127.0.0.1:{primary.port}"],
            dns=dns.address,
            relay={"mx_port": primary.port},
            sections={"alerts": {"mail": True, "delay": "0s", "interval": "0s"}},
        )
        with node:
            assert swaks(node.port, "--to", "user@example.com", "--from", "a@b.example").ok
            wait_until(
                lambda: "contact" in {one["kind"] for one in node.status()["alerts"]},
                what="an alert about the contact",
                every=0.2,
            )
            (alert,) = [one for one in node.status()["alerts"] if one["kind"] == "contact"]
            assert "behind this backup" in alert["text"]


def test_a_primary_tells_its_alerts(tmp_path: Path) -> None:
    """A source that is lost, and back: mailed by the server beside it, posted, and shown."""
    inbox = SmtpSink(tmp_path, keep_in=tmp_path / "inbox")
    told = tmp_path / "told"
    script = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"
    primary = PrimaryNode(
        tmp_path / "primary",
        users=["alice"],
        sections={
            "alerts": {
                "mail_via": f"smtp://127.0.0.1:{inbox.port}",
                "command": [sys.executable, "-c", script, str(told)],
                "delay": "0s",
                "interval": "0s",
            }
        },
    )
    primary.settings[""]["contact"] = "ops@elsewhere.example"
    primary.write()
    run_command(primary.file, "roster", "keygen")
    with inbox, primary:
        primary.wait_log("serial")
        assert "Nothing is wrong." in primary.command("alerts")
        primary.users_file.rename(tmp_path / "aside")

        def subjects() -> list[str]:
            mails = [email.message_from_bytes(one) for one in inbox.kept()]
            return [str(mail["Subject"]) for mail in mails]

        wait_until(lambda: bool(subjects()), what="a mail", every=0.1)
        assert subjects() == ["[127.0.0.1] roster-not-made example.com"]
        (tmp_path / "aside").rename(primary.users_file)
        wait_until(lambda: len(subjects()) == 2, what="an all-clear", every=0.1)
        wait_until(lambda: told.read_text().count("\n") >= 2, what="both commands")
        said = primary.command("alerts", "--all")
    assert "[127.0.0.1] over: roster-not-made example.com" in subjects()
    assert "over  roster-not-made" in said
