"""Making a roster: addresses a second from a text file, and what 1,000 changes cost on the wire.

Ours only: nobody else has rosters. The speed of the bare hash on one core stands
beside it: a builder that keeps two cores busy cannot do better than twice that.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from bench.stage import Row, Side, Stage
from posthouse.domain.digests import make_digest, roster_key_id
from posthouse.domain.recipients import Fold
from posthouse.domain.source_kinds import TextSpec
from posthouse.mail.roster import HmacDigest, RosterLimits, RosterPolicy
from posthouse.node_sources import open_source
from posthouse.ports_publish import RosterOrder
from posthouse.proto import signing
from posthouse.storage.roster_maker import RosterMaker, Signer
from posthouse.storage.roster_offers import RosterOffers

ROUNDS = 1
CHANGES = 1000

ROWS = (
    Row(name="roster_build", what="roster from a text file: build, hmac-sha256", unit="addr/s"),
    Row(name="roster_hash", what="the hash alone on one core (HMAC-SHA-256)", unit="/s"),
    Row(
        name="roster_delta",
        what=f"roster: delta of {CHANGES:,} people who come and as many who go",
        unit="KiB",
        better="less",
        versus="bound",
        floor=64,
    ),
    Row(name="roster_rebuild", what="roster: the same again, changes found", unit="addr/s"),
    Row(
        name="roster_builder_memory",
        what="roster: peak memory of the builder",
        unit="MiB",
        better="less",
    ),
)


def measure(stage: Stage, side: Side) -> dict[str, float]:
    """In the run's directory, with as many processes as this one may use."""
    if side != "posthouse":
        return {}
    return build(stage.root / "rosters", stage.pick(2_000_000, 100_000))


def build(root: Path, count: int) -> dict[str, float]:
    """Build a roster of `count` addresses twice, with changes in between."""
    root.mkdir()
    users = root / "users.txt"
    _write_users(users, range(count))
    key = os.urandom(32)
    clock = [1_800_000_000]
    signer = Signer(party="example.com", private_key=signing.generate_private_key())
    maker = RosterMaker(root / "made", signer, now_s=lambda: clock[0])
    order = RosterOrder(
        domain="example.com",
        sources=(open_source(TextSpec(path=str(users)), Fold()),),
        keys=(key,),
        limits=RosterLimits(max_message_bytes=1 << 20, smtputf8=True, eight_bit_mime=True),
        policy=RosterPolicy(blocking="allowed", when_stale="defer"),
    )
    began = time.perf_counter()
    [first] = maker.make(order)
    took = time.perf_counter() - began
    assert first.count == count + 1
    clock[0] += 60
    _write_users(users, range(CHANGES, count + CHANGES))
    began = time.perf_counter()
    [second] = maker.make(order)
    again = time.perf_counter() - began
    assert (second.added, second.removed) == (CHANGES, CHANGES)
    reply = RosterOffers(root / "made").find(
        "example.com", roster_key_id(key), since=first.serial, if_none_match=""
    )
    assert reply is not None
    shutil.rmtree(root)
    return {
        "roster_build": count / took,
        "roster_hash": hash_speed(key),
        "roster_delta": len(reply.body) / 1024,
        "roster_rebuild": count / again,
        "roster_builder_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def hash_speed(key: bytes) -> float:
    """Digests a second of one address after another, on one core."""
    digest = make_digest(HmacDigest(length=16, key_id=roster_key_id(key)), key)
    count = 300_000
    began = time.perf_counter()
    for _ in range(count):
        digest("firstname.lastname12345@example.com")
    return count / (time.perf_counter() - began)


def _write_users(path: Path, numbers: range) -> None:
    with path.open("w") as file:
        file.writelines(f"firstname.lastname{number}@example.com\n" for number in numbers)


def main() -> int:
    """`python -m bench.roster_build [COUNT]`: this figure alone, without Postfix."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(prefix="roster-build-") as place:
        values = build(Path(place) / "bench", count)
    cores = len(os.sched_getaffinity(0))
    print(f"{count:,} addresses, {cores} cores")
    for row in ROWS:
        print(f"{row.what:<60} {values[row.name]:>12,.0f} {row.unit}")
    print(f"build, in hashes of one core: {values['roster_build'] / values['roster_hash']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
