"""Outages as they are heard of, and counts as workers bring them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from posthouse import observe, tally
from posthouse.errors import StorageBroken
from posthouse.ports_alerts import Outage, Reason
from posthouse.services.availability import AvailabilityRecorder, classify, is_up
from posthouse.services.tallies import Tallier
from posthouse.storage.availability_store import SqliteAvailability
from posthouse.tally import Tally

SECOND = 1_000_000
T0 = 1_700_000_000 * SECOND
HOP = "mx:example.com"


@pytest.mark.parametrize(
    ("state", "why", "reason"),
    [
        ("down", "connect to mx1[192.0.2.1]:25: Connection refused", Reason.REFUSED),
        ("down", "connect to mx1[192.0.2.1]:25: timed out", Reason.TIMEOUT),
        ("down", "no answer to a probe", Reason.TIMEOUT),
        ("down", "mx1[192.0.2.1]:25: TLS: certificate has expired", Reason.TLS),
        ("down", "DNS: example.com: no answer in time", Reason.DNS),
        ("down", "no better MX of example.com has an address now", Reason.DNS),
        ("down", "mx1[192.0.2.1]:25 greeted with: 421 4.3.2 come back", Reason.TEMPORARY),
        ("down", "lost connection with mx1[192.0.2.1]:25", Reason.LOST),
        ("down", "something else", Reason.OTHER),
        ("blocked", "554 5.7.1 timed out is what I say", Reason.PERMANENT),
        ("held by DNS", "this host is the best MX", Reason.NO_BETTER_MX),
        ("suspended", "by the operator", Reason.OPERATOR),
    ],
)
def test_reasons(state: str, why: str, reason: Reason) -> None:
    """The class of a reason comes from the state and our own words for it."""
    assert classify(state, why) is reason


def test_one_that_fetches_owes_nobody_to_be_there() -> None:
    """A primary that dials in is not out while it does not; what a person stopped is."""
    assert is_up("atrn:example.com", "down")
    assert not is_up("atrn:example.com", "surge-stopped")
    assert not is_up(HOP, "down")
    assert is_up(HOP, "draining")


class Log:
    """A recorder on a real store, with a clock that is moved by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_us = T0
        self.open()

    def open(self) -> None:
        self.store = SqliteAvailability.open(self.path)
        self.recorder = AvailabilityRecorder(self.store, clock_us=lambda: self.now_us)

    async def hear(self, up: bool, *, since_us: int = 0, reason: Reason = Reason.REFUSED) -> None:
        self.recorder.note(
            HOP,
            ["example.com"],
            up=up,
            reason=Reason.NONE if up else reason,
            why="" if up else "why",
            since_us=since_us or self.now_us,
        )
        await self.recorder.tick()

    def outages(self) -> tuple[Outage, ...]:
        return self.store.read("example.com", from_us=T0, to_us=T0 + 10**12).outages


@pytest.fixture(name="log")
def make_log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path / "availability.db")
    yield log
    log.store.close()


async def test_an_outage_is_one_row_however_often_it_is_heard_of(log: Log) -> None:
    """Its reasons are gathered; it ends when the next hop came up."""
    await log.hear(True)
    for reason in (Reason.REFUSED, Reason.TIMEOUT, Reason.REFUSED):
        log.now_us += 30 * SECOND
        await log.hear(False, since_us=T0 + 30 * SECOND, reason=reason)
    log.now_us += 30 * SECOND
    came_up_us = log.now_us
    await log.hear(True)
    (outage,) = log.outages()
    assert (outage.from_us, outage.to_us) == (T0 + 30 * SECOND, came_up_us)
    assert outage.reasons == (Reason.REFUSED, Reason.TIMEOUT)


async def test_a_restart_ends_no_outage(log: Log) -> None:
    """What is down before and after was down all the time."""
    await log.hear(False)
    log.store.close()
    log.now_us += 100 * SECOND
    log.open()
    await log.recorder.tick()
    log.now_us += 5 * SECOND
    await log.hear(False)
    (outage,) = log.outages()
    assert (outage.from_us, outage.to_us) == (T0, None)
    await log.hear(True)
    assert log.outages()[0].to_us == log.now_us


async def test_a_next_hop_that_is_gone_is_down_no_more(log: Log) -> None:
    """Taken out of the configuration: its outage ends."""
    await log.hear(False)
    log.now_us += 5 * SECOND
    log.recorder.keep_only([])
    await log.recorder.tick()
    assert log.outages()[0].to_us == log.now_us


async def test_the_time_it_watched_is_kept(log: Log) -> None:
    """Noted each minute, so a crash costs at most that."""
    for _ in range(5):
        await log.recorder.tick()
        log.now_us += 61 * SECOND
    history = log.store.read("example.com", from_us=T0, to_us=T0 + 10**12)
    assert history.watched_us == 4 * 61 * SECOND


class Book:
    """A `TallyBook` in memory that may fail."""

    def __init__(self) -> None:
        self.failing = False
        self.added: list[tuple[int, dict[str, Tally]]] = []

    def add(self, worker: int, counts: Mapping[str, Tally], *, now_us: int) -> None:
        if self.failing:
            raise StorageBroken("disk")
        self.added.append((worker, dict(counts)))


def accepted(*addresses: str, size: int = 10) -> None:
    observe.message_accepted(
        "Q", "c", "192.0.2.1", sender="", size_bytes=size, recipients=addresses, message_id=""
    )


def settled(address: str, status: str, seconds: float = 1.0) -> None:
    observe.recipient_settled(
        "Q", address, relay="none", delay_seconds=seconds, dsn="2.0.0", status=status, text="",
        size_bytes=10,
    )  # fmt: skip


async def test_what_is_logged_is_counted() -> None:
    """By domain, however it is spelled; a message once for each domain; strangers' names not."""
    tally.take()
    book = Book()
    tallier = Tallier(
        3,
        lambda: book,
        domains=lambda: {"example.com", "xn--bcher-kva.example"},
        clock_us=lambda: T0,
    )
    accepted("a@example.com")
    accepted("a@EXAMPLE.com", "b@example.com", "c@bücher.example", size=100)
    settled("a@example.com", "sent", 2.5)
    settled("a@example.com", "sent", 1.5)
    settled("a@example.com", "held")
    settled("a@example.com", "deferred")
    for reply in ("550 5.1.1 <x>: unknown", "550 5.7.1 relay", "451 4.4.3 later"):
        observe.recipient_refused("c", "192.0.2.1", reply, "x@example.com", "", "ESMTP", "h")
    observe.recipient_refused("c", "192.0.2.1", "550 5.1.1 x", "x@stranger.example", "", "E", "h")
    observe.recipient_refused("c", "192.0.2.1", "550 5.1.1 x", "x@..", "", "E", "h")
    book.failing = True
    await tallier.write()
    book.failing = False
    await tallier.write()
    ((worker, counts),) = book.added
    assert worker == 3
    assert counts.keys() == {"example.com", "xn--bcher-kva.example"}
    found = counts["example.com"]
    # The spelling in capitals is another name until it is brought in order: counted with it.
    assert (found.delivered, found.delivered_bytes, found.longest_us) == (2, 20, 2_500_000)
    assert (found.held, found.unknown) == (1, 1)
    assert counts["xn--bcher-kva.example"].accepted_bytes == 100
    await tallier.write()
    assert len(book.added) == 1


def test_strangers_names_fill_no_memory() -> None:
    """Beyond a bound names are not told apart."""
    tally.take()
    for number in range(tally.MOST_NAMES + 10):
        tally.of(f"x@d{number}.example").unknown += 1
    assert len(tally.take()) == tally.MOST_NAMES
