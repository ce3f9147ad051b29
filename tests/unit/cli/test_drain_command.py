"""`posthouse drain` without a running node: what the next start will find."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from posthouse.cli.drain import drain
from posthouse.domain.drain import Health, State
from posthouse.ports_drain import NextHopRecord
from posthouse.storage.nexthop_book import NextHopFile

CONFIG = """\
hostname = "mx2.example.net"
data_dir = "data"
[[domain]]
name = "example.com"
next_hop = ["smtp://192.0.2.1:25"]
[[domain]]
name = "example.org"
"""
KEY = "smtp://192.0.2.1:25"


@pytest.fixture(name="site")
def make_site(tmp_path: Path) -> Path:
    (tmp_path / "posthouse.toml").write_text(CONFIG)
    (tmp_path / "data" / "run").mkdir(parents=True)
    return tmp_path


def run(site: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        drain, [*arguments, "-c", str(site / "posthouse.toml")], catch_exceptions=False
    )


def documents(site: Path, *arguments: str) -> Sequence[dict[str, object]]:
    done = run(site, *arguments, "--json")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_show_all(site: Path) -> None:
    """Every next hop of the configuration, with a word that no node runs."""
    done = run(site, "show")
    assert "No node is running" in done.output
    assert f"{KEY}: suspect" in done.output
    assert "mx:example.org: suspect" in done.output
    assert [one["running"] for one in documents(site, "show")] == [False, False]


def test_pause_and_resume(site: Path) -> None:
    """A pause by domain is written down, shown with its reason, and taken back."""
    (paused,) = documents(site, "pause", "example.com", "--reason", "new disks")
    assert (paused["next_hop"], paused["state"]) == (KEY, "suspended")
    assert paused["why"] == "by the operator: new disks"
    (record,) = NextHopFile(site / "data" / "nexthops.json").load()
    assert record.health.state is State.SUSPENDED
    assert "posthouse drain resume" in run(site, "show", KEY).output
    (resumed,) = documents(site, "resume", KEY)
    assert resumed["state"] == "suspect"
    assert tuple(NextHopFile(site / "data" / "nexthops.json").load()) == ()


def test_resume_without_guard(site: Path) -> None:
    """The wish survives until the node starts."""
    stopped = Health(state=State.SURGE_STOPPED, since_us=5, why="9 of the last 10 …")
    NextHopFile(site / "data" / "nexthops.json").save([NextHopRecord(next_hop=KEY, health=stopped)])
    assert "queue release --reply 550" in run(site, "show").output
    (resumed,) = documents(site, "resume", "example.com", "--without-guard")
    assert (resumed["state"], resumed["guarded"]) == ("suspect", False)


def test_what_is_down_stays_known(site: Path) -> None:
    """Resuming what was not stopped forgets no outage."""
    down = NextHopRecord(next_hop=KEY, health=Health(state=State.DOWN, since_us=5, why="refused"))
    NextHopFile(site / "data" / "nexthops.json").save([down])
    (shown,) = documents(site, "resume", KEY)
    assert (shown["state"], shown["why"]) == ("down", "resumed by the operator")


def test_unknown_name(site: Path) -> None:
    """A name of no next hop is a usage error that names those there are."""
    done = CliRunner().invoke(drain, ["pause", "nowhere", "-c", str(site / "posthouse.toml")])
    assert done.exit_code == 2
    assert KEY in done.output
