"""A roster of ten million addresses: look-up, memory, swap; and RCPT against one of a million.

Ours only: nobody else has rosters. The bare digest stands beside the look-up, as
its lower bound. A worker's part (look-ups, memory, swap) is measured in a fresh
process, so that nothing of the making counts.

    python -m bench.rosters [COUNT]        this figure alone, without Postfix and without RCPT
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, cast

from bench import load
from bench.contestants import Posthouse
from bench.stage import Row, Side, Stage
from fakes.pairs import ROSTER_KEY, SIGNING_KEY, write_pairs
from posthouse.domain.digests import make_digest, roster_key_id
from posthouse.domain.finding import Answer
from posthouse.mail.roster import (
    HeaderFold,
    HmacDigest,
    RosterBody,
    RosterHeader,
    RosterLimits,
    RosterPolicy,
    RosterPublisher,
)
from posthouse.mail.wire_text import format_time
from posthouse.node_process import run_in_loop
from posthouse.ports_recipients import RecipientDirectory
from posthouse.ports_roster import RosterKeys
from posthouse.proto import signing
from posthouse.proto.roster_file import encode_signed
from posthouse.services.look_ups import LookUpPool
from posthouse.services.roster_watch import RosterWatch
from posthouse.storage.roster_store import RosterFiles

ROUNDS = 1

DOMAIN: Final = "example.com"
WIDTH: Final = 16
KNOWN: Final = 100_000
SCHEME: Final = HmacDigest(length=WIDTH, key_id=roster_key_id(ROSTER_KEY))
PUBLIC_KEY: Final = signing.derive_public_key(SIGNING_KEY)
KEYS: Final = RosterKeys(
    domain=DOMAIN, party=DOMAIN, public_keys=(PUBLIC_KEY,), roster_keys=(ROSTER_KEY,)
)

ROWS = (
    Row(name="roster_take_in", what="roster of 10 million: checked and in force", unit="s",
        better="less"),
    Row(name="roster_digest", what="its digest alone (HMAC-SHA-256)", unit="us", better="less"),
    Row(name="roster_present", what="look-up beyond the digest, present", unit="us",
        better="less", versus="bound", floor=2),
    Row(name="roster_absent", what="look-up beyond the digest, absent", unit="us",
        better="less", versus="bound", floor=2),
    Row(name="roster_memory", what="memory of a worker beyond the page cache", unit="MiB",
        better="less", versus="bound", floor=20),
    Row(name="roster_swap", what="swap to a new one in a worker", unit="s",
        better="less", versus="bound", floor=0.2),
    Row(name="roster_pause", what="longest pause of the worker's loop meanwhile", unit="ms",
        better="less", versus="bound", floor=20),
    Row(name="roster_rcpt", what="unknown recipients refused, roster of 1 million",
        unit="replies/s"),
    Row(name="roster_rcpt_text", what="the same node with its text file", unit="replies/s"),
    Row(name="roster_rcpt_ratio", what="roster to text file", unit="x",
        versus="bound", floor=1),
)  # fmt: skip


def measure(stage: Stage, side: Side) -> dict[str, float]:
    """Files in the run's directory."""
    if side != "posthouse":
        return {}
    root = stage.root / "rosters-read"
    root.mkdir()
    values = measure_worker(root, stage.pick(10_000_000, 200_000))
    return {**values, **measure_rcpt(stage, stage.pick(1_000_000, 50_000))}


# --------------------------------------------------------------------------- one worker


def measure_worker(root: Path, count: int) -> dict[str, float]:
    """Put a roster in force, look things up in another process, and swap there."""
    files = RosterFiles(root / "rosters", clock_s=time.time)
    files.prepare()
    first, second = root / "first.roster", root / "second.roster"
    write_roster(first, 100, count)
    write_roster(second, 200, count)
    began = time.perf_counter()
    take_in(files, first)
    took = time.perf_counter() - began
    with subprocess.Popen(
        [sys.executable, "-m", "bench.rosters", "--worker", str(root / "rosters")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        looked_up = json.loads(worker.stdout.readline())
        take_in(files, second)
        worker.stdin.write("swap\n")
        worker.stdin.flush()
        swapped = json.loads(worker.stdout.readline())
    return {"roster_take_in": took, **looked_up, **swapped}


def take_in(files: RosterFiles, path: Path) -> None:
    """As the control process does with a download."""
    intake = files.begin(DOMAIN)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            intake.write(piece)
    files.take_in(intake, KEYS, now_us=now_us(), max_loss_percent=20)


async def _work(directory: Path) -> int:
    """The worker: what it costs is said on stdout, a line for each stage."""
    table: dict[str, RecipientDirectory] = {}
    files = RosterFiles(directory, clock_s=time.time)
    watch = RosterWatch(files, {DOMAIN: KEYS}, table=table, slow=LookUpPool())
    known = [user(number) for number in range(KNOWN)]
    unknown = [f"nobody{number}" for number in range(KNOWN)]
    digest = make_digest(SCHEME, ROSTER_KEY)
    texts = [f"{name}@{DOMAIN}" for name in known]
    before = anonymous_mib()
    await watch.refresh()
    find = table[DOMAIN].find
    for warm in (known, unknown):  # pages are found once
        for name in warm:
            find(name)
    bare = _each_us(digest, texts)
    found = find(known[0])
    assert isinstance(found, Answer)
    assert found.canonical
    looked_up = {
        "roster_digest": bare,
        "roster_present": _each_us(find, known) - bare,
        "roster_absent": _each_us(find, unknown) - bare,
        "roster_memory": anonymous_mib() - before,
    }
    print(json.dumps(looked_up), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    gaps = Gaps(table)
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    client, _ = await loop.create_connection(Echo, sock=theirs)
    door, _ = await loop.create_connection(lambda: gaps, sock=ours)
    await asyncio.sleep(0.2)
    began = time.perf_counter()
    gaps.longest = 0.0
    await watch.refresh()
    took = time.perf_counter() - began
    await asyncio.sleep(0.2)
    door.close()
    client.close()
    assert watch.get(DOMAIN).serial == 200  # type: ignore[union-attr]
    print(json.dumps({"roster_swap": took, "roster_pause": gaps.longest * 1000}), flush=True)
    return 0


class Gaps(asyncio.Protocol):
    """A busy door: each read brings look-ups, each write the next read; how late is each turn?"""

    def __init__(self, table: dict[str, RecipientDirectory]) -> None:
        self.longest = 0.0
        self._table = table
        self._number = 0
        self._last = time.perf_counter()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.data_received(b"")

    def data_received(self, _data: bytes) -> None:
        now = time.perf_counter()
        self.longest, self._last = max(self.longest, now - self._last), now
        for number in range(self._number, self._number + 50):
            self._table[DOMAIN].find(user(number % KNOWN))
        self._number += 50
        assert self._transport is not None
        self._transport.write(bytes(1000))


class Echo(asyncio.Protocol):
    """The client of that door: sends back a little for whatever comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, _data: bytes) -> None:
        self._transport.write(b"more")


def _each_us(look_up: object, names: list[str]) -> float:
    """Microseconds each; the best of nine, since others use this machine too."""
    assert callable(look_up)
    best = float("inf")
    for _ in range(9):
        began = time.perf_counter()
        for name in names:
            look_up(name)
        best = min(best, time.perf_counter() - began)
    return best / len(names) * 1e6


def anonymous_mib() -> float:
    """Resident memory of this process that is no file's (RssAnon, proc(5))."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) / 1024


# --------------------------------------------------------------------------- RCPT


def measure_rcpt(stage: Stage, count: int) -> dict[str, float]:
    """The same load on a node with a text file and on one with a roster, in turn."""
    pairs = stage.root / "pairs"
    write_pairs(pairs, DOMAIN, "mx2.example.net")
    roster = stage.root / "million.roster"
    write_roster(roster, 100, count)
    rates: dict[str, list[float]] = {"roster": [], "text": []}
    for _ in range(stage.pick(3, 1)):
        for kind, rate in rates.items():
            place = {"file": str(roster), "pairing": str(pairs / f"{DOMAIN}.json")}
            with stage.running(
                "posthouse", stage.sink(), roster=place if kind == "roster" else None
            ) as contestant:
                assert isinstance(contestant, Posthouse)
                rate.append(_refuse(stage, contestant))
    best = {kind: sorted(rate)[len(rate) // 2] for kind, rate in rates.items()}
    return {
        "roster_rcpt": best["roster"],
        "roster_rcpt_text": best["text"],
        "roster_rcpt_ratio": best["roster"] / best["text"],
    }


def _refuse(stage: Stage, contestant: Posthouse) -> float:
    plan = load.Plan(kind="unknown", port=contestant.port, count=4000, sessions=20)
    load.run(plan, processes=2)
    count = stage.pick(100_000, 20_000) * contestant.pace
    tally = load.run(
        load.Plan(kind="unknown", port=contestant.port, count=count, sessions=20), processes=2
    )
    return tally.done / (tally.ended - tally.began)


# --------------------------------------------------------------------------- rosters


def user(number: int) -> str:
    """A mailbox that is on every roster here; the load generator's users are among them."""
    return f"{number}user"


def write_roster(path: Path, serial: int, count: int) -> None:
    """A roster of `count` entries: KNOWN users, postmaster, and decoys for the rest."""
    digest = make_digest(SCHEME, ROSTER_KEY)
    known: list[list[bytes]] = [[] for _ in range(256)]
    for name in (*(user(number) for number in range(min(KNOWN, count - 1))), "postmaster"):
        one = digest(f"{name}@{DOMAIN}")
        known[one[0]].append(one)
    decoys = count - sum(map(len, known))
    checksum = hashlib.sha256()
    body = path.with_suffix(".body")
    with body.open("wb") as file:
        for first, ours in enumerate(known):
            share = decoys * (first + 1) // 256 - decoys * first // 256
            piece = b"".join(sorted({*ours, *_decoys(first, share)}))
            assert len(piece) == WIDTH * (len(ours) + share)
            checksum.update(piece)
            file.write(piece)
    now = int(time.time())
    header = RosterHeader(
        domain=DOMAIN,
        serial=serial,
        issued_at=format_time(now),
        expires_at=format_time(now + 86_400),
        refresh_seconds=3600,
        digest=SCHEME,
        fold=HeaderFold(case="lower", delimiters="+", dots="keep"),
        catch_all=False,
        rules=(),
        limits=RosterLimits(max_message_bytes=1 << 30, smtputf8=True, eight_bit_mime=True),
        policy=RosterPolicy(blocking="allowed", when_stale="defer"),
        mx=(),
        body=RosterBody(count=count, sha256=checksum.hexdigest()),
        publisher=RosterPublisher(party=DOMAIN, key_id=signing.key_id(PUBLIC_KEY)),
    )
    with path.open("wb") as file, body.open("rb") as octets:
        file.write(encode_signed(header, lambda text: signing.sign(SIGNING_KEY, text)))
        while piece := octets.read(1 << 20):
            file.write(piece)
    body.unlink()


def _decoys(first: int, count: int) -> Iterable[bytes]:
    octets, head = os.urandom((WIDTH - 1) * count), bytes([first])
    cut: Iterator[bytes] = (
        head + octets[at : at + WIDTH - 1] for at in range(0, len(octets), WIDTH - 1)
    )
    return cut


def now_us() -> int:
    """The clock."""
    return time.time_ns() // 1000


def main() -> int:
    """See the module."""
    if sys.argv[1:2] == ["--worker"]:
        return run_in_loop(_work(Path(sys.argv[2])))
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    with tempfile.TemporaryDirectory(prefix="rosters-") as place:
        values = measure_worker(Path(place), count)
    for row in ROWS:
        if row.name in values:
            print(f"{row.what:<52} {values[row.name]:>10.3f} {row.unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
