"""Next hop "mx" against a real DNS server: who gets the mail, and who never does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.dns import DnsResponder
from peers.node import PosthouseNode
from peers.smtp_tools import SmtpSink, swaks

pytestmark = pytest.mark.peers

HOSTS = {
    "mx1.example.com": {"A": ["127.0.0.1"]},
    "mx2.example.net": {"A": ["127.0.0.77"]},
    "mx3.example.org": {"A": ["127.0.0.78"]},
}


@pytest.fixture(name="dns")
def make_dns() -> Iterator[DnsResponder]:
    with DnsResponder(HOSTS, ttl=1, negative_ttl=1) as responder:
        yield responder


@pytest.fixture(name="sink")
def make_sink(tmp_path: Path) -> Iterator[SmtpSink]:
    with SmtpSink(tmp_path) as sink:
        yield sink


def send(node: PosthouseNode) -> None:
    assert swaks(node.port, "--to", "user@example.com", "--from", "a@elsewhere.example").ok


def make_node(tmp_path: Path, dns: DnsResponder, sink: SmtpSink) -> PosthouseNode:
    return PosthouseNode(
        tmp_path / "node",
        dns=dns.address,
        relay={"probe_interval": "1s", "mx_port": sink.port, "own_addresses": ["127.0.0.77"]},
    )


def test_only_better_hosts_get_mail(tmp_path: Path, dns: DnsResponder, sink: SmtpSink) -> None:
    """Mail goes to the strictly better MX; worse and equal ones are never asked."""
    dns.zones["example.com"] = {
        "MX": ["10 mx1.example.com.", "20 mx2.example.net.", "20 mx3.example.org."]
    }
    with make_node(tmp_path, dns, sink) as node:
        send(node)
        sink.wait_messages(1)
        node.wait_queue(0)
        assert dns.asked("mx3.example.org", "A") == 0 or "127.0.0.78" not in node.log()


def test_self_best_holds_and_recovers(tmp_path: Path, dns: DnsResponder, sink: SmtpSink) -> None:
    """When DNS makes us the best MX mail is kept with an alert, and flows when DNS is mended."""
    dns.zones["example.com"] = {"MX": ["10 mx2.example.net.", "20 mx1.example.com."]}
    with make_node(tmp_path, dns, sink) as node:
        send(node)
        node.wait_log("warning: ")
        assert len(node.queue()) == 1
        assert sink.messages == 0
        (hop, *_) = node.status()["next_hops"]
        assert hop["state"] not in ("up", "down")
        dns.zones["example.com"] = {"MX": ["10 mx1.example.com.", "20 mx2.example.net."]}
        sink.wait_messages(1)
        node.wait_queue(0)


@pytest.mark.parametrize(
    "zone",
    [
        {"MX": ["0 ."]},
        {"MX": ["10 mx1.example.com."]},  # we are not among them: no better MX is proven
        {"MX": ["10 mx9.example.com.", "20 mx2.example.net."]},
        {"A": ["127.0.0.77"]},
        None,
    ],
    ids=["null", "absent", "no address", "implicit is us", "nxdomain"],
)
def test_nowhere_to_go_is_no_bounce(
    tmp_path: Path, dns: DnsResponder, sink: SmtpSink, zone: dict[str, list[str]] | None
) -> None:
    """Whatever DNS says, mail without a proven better MX stays here and nothing is lost."""
    if zone is not None:
        dns.zones["example.com"] = zone
    with make_node(tmp_path, dns, sink) as node:
        send(node)
        node.wait_log("next hop ")
        assert len(node.queue()) == 1
        assert sink.messages == 0
        dns.zones["example.com"] = {"MX": ["10 mx1.example.com.", "20 mx2.example.net."]}
        sink.wait_messages(1)


def test_silent_dns_is_temporary(tmp_path: Path, dns: DnsResponder, sink: SmtpSink) -> None:
    """SERVFAIL says nothing about the domain: mail waits and flows when DNS answers."""
    dns.zones["example.com"] = {"MX": ["10 mx1.example.com.", "20 mx2.example.net."]}
    dns.servfail.add("example.com")
    with make_node(tmp_path, dns, sink) as node:
        send(node)
        node.wait_log("next hop ")
        assert len(node.queue()) == 1
        dns.servfail.clear()
        sink.wait_messages(1)
        node.wait_queue(0)


def test_implicit_mx(tmp_path: Path, dns: DnsResponder, sink: SmtpSink) -> None:
    """A domain with an address and no MX is its own primary (RFC 5321 5.1)."""
    dns.zones["example.com"] = {"A": ["127.0.0.1"]}
    with make_node(tmp_path, dns, sink) as node:
        send(node)
        sink.wait_messages(1)
