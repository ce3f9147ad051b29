"""A disk that is full: the client is told to come back, nothing is lost, intake comes back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.node import PosthouseNode
from peers.processes import wait_until
from peers.smtp_tools import smtp_source, swaks

pytestmark = pytest.mark.peers


@pytest.fixture(name="small_disk")
def make_small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    if os.geteuid() != 0:
        pytest.fail("a small file system can only be mounted by root; run `make test` as root")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk(tmp_path: Path, small_disk: Path) -> None:
    """A full disk is 452, never 5xx; what was answered 250 is there; room makes intake go on."""
    node = PosthouseNode(
        tmp_path / "node",
        next_hop=["smtp://127.0.0.1:1"],
        workers=1,
        top={"data_dir": str(small_disk / "data")},
        sections={"spool": {"min_free": "4MB", "segment_size": "1MiB"}},
    )
    with node:
        accepted = 0
        while accepted < 1000:
            run = smtp_source(node.port, messages=1, payload_bytes=200_000)
            if not run.ok:
                assert " 452 " in run.complaint or "45" in run.complaint, run.complaint
                break
            accepted += 1
        assert 10 < accepted < 150
        assert len(node.queue()) == accepted
        ballast = small_disk / "ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(bytes(24 << 20))
        for _ in range(3):
            refused = swaks(node.port, "--to", "user@example.com", "--from", "a@b.example")
            assert "<** 452 4.3.1" in refused.transcript
        assert len(node.queue()) == accepted
        ballast.unlink()
        node.command("queue", "delete", "--all", "--yes")
        wait_until(
            lambda: swaks(node.port, "--to", "user@example.com", "--from", "a@b.example").ok,
            what="intake to come back",
            every=0.3,
        )
        assert len(node.queue()) == 1
