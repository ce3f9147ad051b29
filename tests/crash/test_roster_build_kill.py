"""A builder of rosters that is killed at any step leaves a roster that a backup takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from fakes.source import ListSource
from posthouse.domain.digests import roster_key_id
from posthouse.mail.roster import RosterLimits, RosterPolicy
from posthouse.ports_publish import RosterOrder, RosterReplyKind
from posthouse.ports_roster import RosterKeys
from posthouse.storage.roster_body import RosterBody
from posthouse.storage.roster_intake import check_whole, expand_delta
from posthouse.storage.roster_maker import RosterMaker, Signer
from posthouse.storage.roster_offers import RosterOffers

KEY: Final = bytes(range(32))
KEY_ID: Final = roster_key_id(KEY)
SIGNER: Final = Signer(party="example.com", private_key=b"\7" * 32)
STEPS: Final = ("fsync", "replace", "unlink")


def order(addresses: list[str]) -> RosterOrder:
    return RosterOrder(
        domain="example.com",
        sources=(ListSource(addresses),),
        keys=(KEY,),
        decoy_multiple=20,
        limits=RosterLimits(max_message_bytes=1, smtputf8=True, eight_bit_mime=True),
        policy=RosterPolicy(blocking="allowed", when_stale="defer"),
    )


def make(root: Path, now_s: int, addresses: list[str]) -> None:
    RosterMaker(root, SIGNER, now_s=lambda: now_s, cores=1).make(order(addresses))


def die_at(count: int) -> None:
    """Make this process end, as if killed, before the count-th call that changes the disk."""
    calls = 0

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == count:
                os._exit(9)
            return real(*arguments, **options)

        setattr(os, name, call)

    for name in STEPS:
        wrap(name)


def test_killed_at_every_step(tmp_path: Path) -> None:
    """Old or new is in force, whole; the next build succeeds and deltas lead to it."""
    keys = RosterKeys(
        domain="example.com",
        party="example.com",
        public_keys=(SIGNER.public_key,),
        roster_keys=(KEY,),
    )
    outcomes: set[int] = set()
    for count in range(1, 40):
        root = tmp_path / str(count)
        make(root, 1000, ["alice", "bob"])
        first = root / "example.com" / KEY_ID / "1000.roster"
        copy = tmp_path / f"{count}.copy"
        copy.write_bytes(first.read_bytes())
        program = (
            "import sys; from pathlib import Path; sys.path.insert(0, 'tests')\n"
            "from crash.test_roster_build_kill import die_at, make\n"
            f"die_at({count}); make(Path({str(root)!r}), 2000, ['alice', 'carol'])"
        )
        ended = subprocess.run([sys.executable, "-c", program], timeout=60).returncode
        offers = RosterOffers(root)
        serial = offers.get_serial("example.com", KEY_ID)
        assert serial in (1000, 2000)
        outcomes.add(serial)
        check_whole(first.with_name(f"{serial}.roster"), keys, None, now_s=None)
        make(root, 3000, ["alice", "carol", "dora"])
        assert not list(first.parent.glob(".new-*"))
        reply = offers.find("example.com", KEY_ID, since=1000, if_none_match="")
        assert reply is not None
        assert (reply.kind, reply.serial) == (RosterReplyKind.DELTA, 3000)
        delta, target = tmp_path / "delta", tmp_path / "target"
        delta.write_bytes(reply.body)
        old = RosterBody(copy, None)
        expand_delta(delta, target, old, keys, now_s=3000)
        old.close()
        assert target.read_bytes() == first.with_name("3000.roster").read_bytes()
        if ended == 0:
            break
        assert ended == 9
    else:
        raise AssertionError("a build has more steps than were tried")
    assert outcomes == {1000, 2000}
    assert count > 5


def test_a_full_disk_keeps_the_old_roster(tmp_path: Path) -> None:
    """Where nothing can be written, what was in force stays, and the next build makes up for it."""
    make(tmp_path, 1000, ["alice", "bob"])
    program = (
        "import sys, resource; from pathlib import Path; sys.path.insert(0, 'tests')\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from crash.test_roster_build_kill import make\n"
        "from posthouse.errors import StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n"
        "try:\n"
        f"    make(Path({str(tmp_path)!r}), 2000, [f'user{{n}}' for n in range(100)])\n"
        "except StorageError as error:\n"
        "    sys.exit(7)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True)
    assert ended.returncode == 7, ended.stderr
    assert RosterOffers(tmp_path).get_serial("example.com", KEY_ID) == 1000
    make(tmp_path, 2000, [f"user{n}" for n in range(100)])
    assert RosterOffers(tmp_path).get_serial("example.com", KEY_ID) == 2000
    assert not list((tmp_path / "example.com" / KEY_ID).glob(".new-*"))
