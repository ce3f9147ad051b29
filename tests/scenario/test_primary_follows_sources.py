"""A primary whose addresses are where real mail servers keep them: Postfix's map and Dovecot."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from peers.dovecot import Dovecot
from peers.node import POSTHOUSE
from peers.postfix_maps import Maps
from peers.primary import PrimaryNode
from peers.processes import wait_until
from posthouse.domain.digests import make_digest
from posthouse.node_publishing import read_key
from posthouse.storage.roster_body import RosterBody

pytestmark = pytest.mark.peers


class Virtual(Maps):
    """An indexed map as Postfix reads it, changed as its operator does."""

    def set(self, names: Iterable[str]) -> None:
        lines = "".join(f"{name}@example.com {name}\n" for name in names)
        self.index("lmdb", self.put("virtual", "example.com anything\n" + lines))


def find_newest(primary: PrimaryNode) -> Path:
    directory = primary.directory / "data" / "rosters" / "example.com"
    return max(directory.glob("*/*.roster"), key=lambda path: int(path.stem))


def names_in(primary: PrimaryNode, names: Iterable[str]) -> set[str]:
    """Which of these the roster in force vouches for."""
    body = RosterBody(find_newest(primary), None)
    digest = make_digest(
        body.head.header.digest, read_key(primary.directory / "data" / "roster.key")
    )
    found = {name for name in names if body.holds(digest(f"{name}@example.com"))}
    body.close()
    return found


def build(primary: PrimaryNode) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(POSTHOUSE), "roster", "build", "--json", "-c", str(primary.file)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=primary.directory,
    )


def test_a_roster_follows_postfix_and_dovecot(tmp_path: Path) -> None:
    """A map that changes is noticed; Dovecot is asked; one that is down keeps the roster in force."""
    names = ("alice", "bob", "carol", "dora", "postmaster", "nobody")
    virtual = Virtual(tmp_path)
    virtual.set(["alice"])
    with Dovecot(["bob@example.com"]) as dovecot:
        primary = PrimaryNode(
            tmp_path / "primary",
            domain_keys={
                "sources": [
                    f"postfix:lmdb:{tmp_path}/virtual?config={tmp_path}",
                    f"dovecot:{dovecot.config}",
                ]
            },
        )
        primary.command("roster", "keygen")
        with primary:
            primary.wait_log("serial")
            assert names_in(primary, names) == {"alice", "bob", "postmaster"}

            virtual.set(["alice", "carol"])
            wait_until(
                lambda: "carol" in names_in(primary, names), what="the map is taken up", seconds=30
            )
            primary.wait_log("1 in, 0 out")

            dovecot.set_users(["bob@example.com", "dora@example.com"])
            done = build(primary)
            assert done.returncode == 0, done.stderr
            [report] = json.loads(done.stdout)["rosters"]
            assert (report["added"], report["removed"]) == (1, 0)
            assert report["path"] == str(find_newest(primary))
            assert names_in(primary, names) == {"alice", "bob", "carol", "dora", "postmaster"}

            dovecot.close()
            before = find_newest(primary)
            done = build(primary)
            assert done.returncode == 69
            [failure] = json.loads(done.stdout)["failures"]
            assert "doveadm failed" in failure["what"]
            assert find_newest(primary) == before
