"""The state of a next hop belongs to the node: it outlives any of its processes."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from peers.node import PosthouseNode
from peers.processes import wait_until
from peers.smtp_tools import SmtpSink, smtp_source

pytestmark = pytest.mark.peers


def make_node(directory: Path, port: int) -> PosthouseNode:
    return PosthouseNode(directory, next_hop=[f"smtp://127.0.0.1:{port}"])


def shown(node: PosthouseNode) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(node.command("drain", "show", "--json").stdout)
    return found


def control_pid(node: PosthouseNode) -> int:
    found = re.findall(r"control \(pid (\d+)\) serves", node.log())
    return int(found[-1])


def test_one_canary_for_two_workers(tmp_path: Path) -> None:
    """Both workers have mail; the node's log tells of one canary, then of one drain."""
    sink = SmtpSink(tmp_path)
    with make_node(tmp_path / "node", sink.port) as node:
        assert smtp_source(node.port, messages=200, sessions=10, reuse=False).ok
        mark = len(node.log())
        with sink:
            sink.wait_messages(200)
            node.wait_queue(0)
            wait_until(lambda: shown(node)["state"] == "up", what="up", every=0.1)
        told = node.log()[mark:]
        assert told.count("is canary") == 1
        assert told.count("is draining") == 1


def test_mail_flows_without_the_control_process(tmp_path: Path) -> None:
    """Killed while mail flows and while the next hop is down: the replacement goes on with it."""
    sink = SmtpSink(tmp_path)
    with make_node(tmp_path / "node", sink.port) as node:
        node.wait_log("is down")
        assert smtp_source(node.port, messages=10, reuse=True).ok
        before = shown(node)
        os.kill(control_pid(node), signal.SIGKILL)
        wait_until(lambda: node.log().count("control (pid") > 2, what="a new one", seconds=20)
        assert shown(node)["state"] == "down"
        assert shown(node)["since"] == before["since"]
        with sink:
            sink.wait_messages(10)
            os.kill(control_pid(node), signal.SIGSTOP)  # it hangs: it is not there at all
            assert smtp_source(node.port, messages=10, reuse=True).ok
            sink.wait_messages(20)
            os.kill(control_pid(node), signal.SIGKILL)
            node.wait_queue(0)
            wait_until(lambda: shown(node)["state"] == "up", what="up", every=0.1)


def test_killed_in_the_middle_of_a_drain(tmp_path: Path) -> None:
    """The whole node is killed while it drains: it begins with a probe, and loses nothing."""
    sink = SmtpSink(tmp_path)
    node = make_node(tmp_path / "node", sink.port)
    node.settings["relay"]["drain_rate"] = 100
    node.write()
    with node:
        assert smtp_source(node.port, messages=300, sessions=2, reuse=True).ok
        with sink:
            sink.wait_messages(50)
            node.crash()
            mark = len(node.log())
            node.start()
            sink.wait_messages(300)
            node.wait_queue(0)
            assert sink.messages <= 400  # a second's burst may not have been settled yet
        assert "is canary" in node.log()[mark:]
