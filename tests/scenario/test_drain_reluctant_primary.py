"""Primaries that greylist, limit rates or screen their clients during a drain: all mail gets home."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from peers.node import PosthouseNode
from peers.postfix import Postfix
from peers.postgrey import Postgrey
from peers.processes import wait_until
from peers.smtp_tools import smtp_source, swaks

pytestmark = pytest.mark.peers

LOCAL = {"smtpd_client_event_limit_exceptions": ""}  # loopback is no friend here


def make_node(directory: Path, primary: Postfix) -> PosthouseNode:
    return PosthouseNode(
        directory,
        next_hop=[f"smtp://127.0.0.1:{primary.port}"],
        relay={"retry": ["3s"], "probe_interval": "1s"},
    )


def never_down_again(node: PosthouseNode) -> bool:
    """After it came back the next hop was not taken for down or blocked."""
    told = [line for line in node.log().splitlines() if "/qmgr[" in line and "next hop" in line]
    back = max(number for number, line in enumerate(told) if "is canary" in line)
    return not any(" is down" in line or " is blocked" in line for line in told[back:])


def test_greylisting_primary(tmp_path: Path) -> None:
    """postgrey puts off every triplet once: nothing is held, nothing counts as an outage."""
    with Postgrey(tmp_path) as postgrey:
        primary = Postfix.primary(parameters={"smtpd_recipient_restrictions": postgrey.policy})
        with make_node(tmp_path / "node", primary) as node:
            for n in range(10):
                sent = swaks(
                    node.port, "--to", "user@example.com", "--from", f"a{n}@elsewhere.example"
                )
                assert sent.ok
            with primary:
                mailbox = primary.mailboxes / "user@example.com" / "new"
                wait_until(lambda: len(list(mailbox.glob("*"))) >= 10, what="ten messages")
                node.wait_queue(0)
                assert len(list(mailbox.glob("*"))) == 10
                assert primary.log().count("Greylisted") >= 10
                assert "status=held" not in node.log()
                assert never_down_again(node)


def test_rate_limiting_primary(tmp_path: Path) -> None:
    """anvil allows 20 messages a second: the drain slows down and loses nothing."""
    limits = {"smtpd_client_message_rate_limit": "20", "anvil_rate_time_unit": "1s"}
    primary = Postfix.primary(parameters=LOCAL | limits)
    with make_node(tmp_path, primary) as node:
        assert smtp_source(node.port, messages=80, reuse=True, sessions=2).ok
        with primary:
            delivered = primary.wait_messages(80, seconds=40)
            node.wait_queue(0)
            assert len(delivered) == 80
            assert "rate limit exceeded" in primary.log()
            assert "wants less at a time" in node.log()
            assert "status=held" not in node.log()


def test_primary_with_few_connections(tmp_path: Path) -> None:
    """Two connections from one client and no more: the others wait, and nothing is down."""
    primary = Postfix.primary(parameters=LOCAL | {"smtpd_client_connection_count_limit": "2"})
    with make_node(tmp_path, primary) as node:
        assert smtp_source(node.port, messages=300, reuse=True, sessions=2).ok
        with primary:
            assert len(primary.wait_messages(300)) == 300
            node.wait_queue(0)
            assert "status=held" not in node.log()


def test_primary_behind_postscreen(tmp_path: Path) -> None:
    """Its deep tests answer 450 4.3.2 once to a client they do not know; the next session passes."""
    screen = {
        "postscreen_access_list": "",
        "postscreen_greet_wait": "1s",
        "postscreen_greet_action": "enforce",
        "postscreen_pipelining_enable": "yes",
        "postscreen_pipelining_action": "enforce",
        "postscreen_non_smtp_command_enable": "yes",
        "postscreen_bare_newline_enable": "yes",
        "postscreen_cache_map": "lmdb:$data_directory/postscreen_cache",
    }
    primary = Postfix.primary(parameters=screen, screened=True)
    with make_node(tmp_path, primary) as node:
        assert smtp_source(node.port, messages=50, reuse=True, sessions=2).ok
        with primary:
            delivered = primary.wait_messages(50, seconds=40)
            node.wait_queue(0)
            assert len(delivered) == 50
            assert "PASS NEW" in primary.log()
            replies = Counter("450 4.3.2" in line for line in primary.log().splitlines())
            assert replies[True] >= 1
            assert "status=held" not in node.log()
