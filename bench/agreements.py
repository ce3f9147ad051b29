"""After an outage: how long until every new address has its agreement; what RCPT pays for them.

Twice: with the machine to itself, and while a node on it brings its backlog home.

Ours only. The primary is a process of its own: granter, book on disk, HTTPS
door with TLS; the backup's forwarder runs here, on its own book. Both flush
every step to the same disk and share the machine, as in the worst of cases.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.connection
import secrets
import time
from pathlib import Path
from typing import Any

import msgspec
import trustme

from bench.stage import Row, Side, Stage
from fakes.agreement_world import Alerts, Held, Mailboxes, Rosters
from fakes.books import MemoryReports
from fakes.http_server import Certificate
from fakes.https_stage import FakeParties, bind, generous, party, write_certificate
from peers.processes import PeerFailed
from posthouse import observe
from posthouse.domain.agreement import State
from posthouse.interfaces.https_agreements import (
    AGREEMENTS_PATH,
    COMPLETION_PATH,
    make_agreements_handler,
    make_completion_handler,
)
from posthouse.interfaces.https_app import PeerRoute, make_app
from posthouse.interfaces.https_wire import HttpsLimits, Switchboard
from posthouse.ports_agreements import Existence, Sighting
from posthouse.proto.base_url import lies_under
from posthouse.services.forwarder import Forwarder
from posthouse.services.forwarder_talk import Link
from posthouse.services.granter import ForwarderTerms, Granter, GranterSettings
from posthouse.storage.agreement_snapshot import SnapshotReader
from posthouse.storage.forwarder_book import SqliteForwarderBook, snapshot_path
from posthouse.storage.granter_book import SqliteGranterBook
from posthouse.transports.agreement_calls import PeerGranter
from posthouse.transports.peers import HttpsPeer
from posthouse.transports.tls import TlsServer

ROUNDS = 1
DOMAINS = 20  # at most 1,000 new requests a minute for each (PROTOCOL.md §3)
BACKUP = "mx2.example.net"

ROWS = (
    Row(
        name="agreements_time",
        what="10,000 agreements negotiated after a recovery, 20 domains",
        unit="s",
        better="less",
        versus="bound",
        floor=30.0,
    ),
    Row(name="agreements_rate", what="agreements negotiated and completed", unit="/s"),
    Row(
        name="agreements_time_draining",
        what="the same while a backlog drains beside it",
        unit="s",
        better="less",
        versus="bound",
        floor=30.0,
    ),
    Row(name="agreements_drain", what="that drain meanwhile", unit="msg/s"),
    Row(name="agreements_publish", what="swap of 10,000 agreements", unit="ms", better="less"),
    Row(name="agreement_hit", what="agreement look-up, on record", unit="ns", better="less"),
    Row(name="agreement_miss", what="agreement look-up, not on record", unit="ns", better="less"),
    Row(name="agreement_none", what="look-up in a domain without any", unit="ns", better="less"),
)


def measure(stage: Stage, side: Side) -> dict[str, float]:
    """Both sides in the run's directory."""
    if side != "posthouse":
        return {}
    count = stage.pick(10_000, 1_000)
    alone = _run(stage.root / "agreements", count)
    backlog = stage.pick(600_000, 20_000)
    sink = stage.sink()
    with stage.running(side, sink) as contestant:
        stage.send(contestant, backlog)
        sink.start()
        sink.wait_messages(1)
        began, early = time.perf_counter(), sink.messages
        beside = _run(stage.root / "agreements-draining", count)
        drained = (sink.messages - early) / (time.perf_counter() - began)
        if not stage.quick and sink.messages >= backlog:
            raise PeerFailed("the backlog was drained before the agreements were made")
        sink.stop()
    return {
        **alone,
        "agreements_time_draining": beside["agreements_time"],
        "agreements_drain": drained,
    }


def _run(root: Path, count: int) -> dict[str, float]:
    """One primary, one backup, `count` new addresses."""
    root.mkdir()
    certificate = Certificate(trustme.CA(), "127.0.0.1")
    files = write_certificate(root, certificate)
    here, there = multiprocessing.Pipe()
    primary = multiprocessing.get_context("spawn").Process(
        target=_run_primary, args=(root / "primary", files, there), daemon=True
    )
    primary.start()
    try:
        if not here.poll(60):
            raise PeerFailed("the primary of this figure did not start")
        port = here.recv()
        return asyncio.run(_negotiate(root / "backup", port, certificate.pin, count))
    finally:
        here.send("end")
        primary.join(10)
        primary.kill()


class _Everybody(Mailboxes):
    async def find(self, domain: str, local: str) -> Existence:
        return Existence(exists=True, mailbox=f"{local}@{domain}", user_id=local)


def _run_primary(
    directory: Path, files: tuple[Path, Path], pipe: multiprocessing.connection.Connection
) -> None:
    asyncio.run(_serve_primary(directory, files, pipe))


async def _serve_primary(
    directory: Path, files: tuple[Path, Path], pipe: multiprocessing.connection.Connection
) -> None:
    observe.configure(fmt="text", to="/dev/null", tag="bench", hostname="bench")
    book = await SqliteGranterBook.open(directory)
    listener = bind()
    base = f"https://127.0.0.1:{listener.getsockname()[1]}/"
    terms = ForwarderTerms(
        domains=frozenset(f"d{n}.example" for n in range(DOMAINS)),
        policy_base="https://mx2.example.net:8447/",
    )
    granter = Granter(
        GranterSettings(
            party="primary.example",
            completion_url=base + COMPLETION_PATH,
            forwarders={BACKUP: terms},
        ),
        book=book,
        addresses=_Everybody(),
        lies_under=lies_under,
        mint=secrets.token_hex,
        clock_us=_now_us,
    )
    routes = [
        PeerRoute(method="POST", path=AGREEMENTS_PATH, handler=make_agreements_handler(granter)),
        PeerRoute(method="POST", path=COMPLETION_PATH, handler=make_completion_handler(granter)),
    ]
    app = make_app(routes, parties=FakeParties(up=party(BACKUP)), limits=generous())
    board = Switchboard(app, tls=TlsServer(*files), limits=HttpsLimits())
    await board.open([listener])
    pipe.send(listener.getsockname()[1])
    await asyncio.to_thread(pipe.recv)
    await board.close(1.0)
    await book.close()


async def _negotiate(directory: Path, port: int, pin: bytes, count: int) -> dict[str, float]:
    book = await SqliteForwarderBook.open(directory)
    base = f"https://127.0.0.1:{port}/"
    peer = HttpsPeer("primary.example", base, token="up", spki_sha256=pin, now_us=_now_us)
    links = {
        f"d{n}.example": Link(
            party="primary.example",
            forwarder_id=BACKUP,
            policy_url="https://mx2.example.net:8447/v1/policy",
            calls=PeerGranter(peer),
        )
        for n in range(DOMAINS)
    }
    reports, rosters = MemoryReports(), Rosters()
    rosters.now = None
    forwarder = Forwarder(
        book=book,
        reports=reports,
        rosters=rosters,
        links=lambda domain: (links[domain],),
        holder=Held(),
        alerts=Alerts(),
        mint=secrets.token_hex,
        clock_us=_now_us,
    )
    forwarder.set_domains(list(links))
    for number in range(count):
        reports.put(_sighting(number), name=f"r{number}")
    while reports.waiting:  # the outage: what the workers saw is on record
        for link in links.values():
            link.rest_until_us = 2 * _now_us()
        await forwarder.step()
    began = time.perf_counter()
    running = asyncio.create_task(forwarder.run())
    for domain in links:
        forwarder.reached(domain)
    try:
        while await _count_agreed(book) < count:
            await asyncio.sleep(0.1)
        took = time.perf_counter() - began
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    found = await _measure_snapshot(book, directory, count)
    await peer.close()
    await book.close()
    return {"agreements_time": took, "agreements_rate": count / took, **found}


async def _count_agreed(book: SqliteForwarderBook) -> int:
    return sum(states.get(State.AGREED, 0) for states in (await book.counts()).values())


async def _measure_snapshot(
    book: SqliteForwarderBook, directory: Path, count: int
) -> dict[str, float]:
    await book.set_folds({})
    await book.change(["user0@d0.example"], lambda _key, entry: _touch(entry))
    began = time.perf_counter()
    await book.publish()
    publish = time.perf_counter() - began
    reader = SnapshotReader(snapshot_path(directory))
    return {
        "agreements_publish": publish * 1e3,
        "agreement_hit": _time(
            lambda n: reader.look_up(f"d{n % DOMAINS}.example", f"user{n}"), count
        ),
        "agreement_miss": _time(lambda n: reader.look_up("d0.example", f"nobody{n}"), count),
        "agreement_none": _time(lambda n: reader.covers(f"e{n % 7}.example"), count),
    }


def _touch(entry: Any) -> Any:
    return msgspec.structs.replace(entry, serial=entry.serial + 1)


def _time(look_up: Any, count: int) -> float:
    began = time.perf_counter_ns()
    for number in range(count):
        look_up(number)
    return (time.perf_counter_ns() - began) / count


def _sighting(number: int) -> Sighting:
    domain = f"d{number % DOMAINS}.example"
    address = f"user{number}@{domain}"
    return Sighting(
        canonical=address,
        domain=domain,
        address=address,
        serial=1,
        at_us=_now_us(),
        messages=1,
        bytes=4096,
    )


def _now_us() -> int:
    return time.time_ns() // 1000
