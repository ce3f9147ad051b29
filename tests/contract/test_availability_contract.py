"""What every log of availability promises (`ports_alerts.AvailabilityStore`)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest

from posthouse.ports_alerts import AvailabilityStore, DomainHistory, Reason
from posthouse.storage.availability_store import SqliteAvailability
from posthouse.tally import Tally

HOUR = 3_600_000_000
T0 = 472_222 * HOUR
HOP = "mx:example.com"


@pytest.fixture(name="path")
def make_path(tmp_path: Path) -> Path:
    return tmp_path / "watch" / "availability.db"


@pytest.fixture(name="store")
def make_store(path: Path) -> Iterator[SqliteAvailability]:
    store = SqliteAvailability.open(path)
    yield store
    store.close()


def read(
    store: AvailabilityStore, domain: str = "example.com", *, hours: tuple[int, int] = (0, 99)
) -> DomainHistory:
    return store.read(domain, from_us=T0 + hours[0] * HOUR, to_us=T0 + hours[1] * HOUR)


def one(accepted: int = 1, **more: int) -> Tally:
    return Tally(accepted=accepted, accepted_bytes=100 * accepted, **more)


def test_counts_are_summed_by_the_hour(store: AvailabilityStore) -> None:
    """Of all workers; the longest wait is the longest; other domains apart."""
    store.add(0, {"example.com": one(2, longest_us=5, held=1)}, now_us=T0)
    store.add(0, {"example.com": one(3, longest_us=4), "other.example": one()}, now_us=T0 + 9)
    store.add(1, {"example.com": one(4, unknown=7, delivered=1)}, now_us=T0 + HOUR)
    whole = read(store).tally
    assert (whole.accepted, whole.accepted_bytes, whole.held) == (9, 900, 1)
    assert (whole.unknown, whole.delivered, whole.longest_us) == (7, 1, 5)
    assert read(store, hours=(0, 1)).tally.accepted == 5
    assert read(store, hours=(1, 2)).tally.accepted == 4
    assert read(store, "other.example").tally.accepted == 1
    assert read(store, "nowhere.example").tally == Tally()


def test_an_outage_tells_what_came_meanwhile(store: AvailabilityStore) -> None:
    """Counts from its beginning to its end, by domain; while it lasts, up to now."""
    store.follow(HOP, ["example.com", "quiet.example"], now_us=T0)
    store.add(0, {"example.com": one(10)}, now_us=T0)
    store.begin_outage(HOP, Reason.REFUSED, "connection refused", from_us=T0 + 1)
    store.add(1, {"example.com": one(3, delivered=1)}, now_us=T0 + 2)
    (lasting,) = read(store).outages
    assert (lasting.to_us, lasting.meanwhile.accepted) == (None, 3)
    store.add(0, {"example.com": one(4)}, now_us=T0 + HOUR)
    store.explain_outage(HOP, Reason.TIMEOUT, "timed out")
    store.explain_outage(HOP, Reason.REFUSED, "refused again")
    store.end_outage(HOP, to_us=T0 + 2 * HOUR)
    store.add(0, {"example.com": one(5)}, now_us=T0 + 3 * HOUR)
    (outage,) = read(store).outages
    assert (outage.from_us, outage.to_us) == (T0 + 1, T0 + 2 * HOUR)
    assert outage.reasons == (Reason.REFUSED, Reason.TIMEOUT)
    assert outage.why == "refused again"
    assert (outage.meanwhile.accepted, outage.meanwhile.accepted_bytes) == (7, 700)
    assert outage.meanwhile.delivered == 1
    (other,) = read(store, "quiet.example").outages
    assert other.meanwhile == Tally()


def test_an_outage_is_noticed_late(store: AvailabilityStore) -> None:
    """What was counted between its beginning and its being stored counts for it, and at its end."""
    second = 1_000_000
    store.follow(HOP, ["example.com"], now_us=T0)
    store.add(0, {"example.com": one(10)}, now_us=T0)
    store.add(0, {"example.com": one(1)}, now_us=T0 + 5 * second)
    store.begin_outage(HOP, Reason.REFUSED, "x", from_us=T0 + 4 * second)
    store.add(0, {"example.com": one(2)}, now_us=T0 + 6 * second)
    store.add(0, {"example.com": one(4)}, now_us=T0 + 60 * second)
    store.end_outage(HOP, to_us=T0 + 59 * second)
    assert read(store).outages[0].meanwhile.accepted == 3


def test_one_outage_lasts_at_a_time(store: AvailabilityStore) -> None:
    """Beginning what lasts and ending what is over change nothing."""
    store.follow(HOP, ["example.com"], now_us=T0)
    store.end_outage(HOP, to_us=T0)
    store.explain_outage(HOP, Reason.DNS, "x")
    store.begin_outage(HOP, Reason.REFUSED, "a", from_us=T0 + 1)
    store.begin_outage(HOP, Reason.DNS, "b", from_us=T0 + 2)
    (lasting,) = store.open_outages()
    assert (lasting.reasons, lasting.from_us) == ((Reason.REFUSED,), T0 + 1)
    store.end_outage(HOP, to_us=T0)  # a clock set back ends nothing before it began
    store.begin_outage(HOP, Reason.DNS, "c", from_us=T0 + 5)
    assert [(o.from_us, o.to_us) for o in read(store).outages] == [
        (T0 + 1, T0 + 1),
        (T0 + 5, None),
    ]


def test_outages_are_found_by_domain_and_time(store: AvailabilityStore) -> None:
    """Those that touch the time asked for, of the next hops the domain had then."""
    store.follow(HOP, ["example.com"], now_us=T0)
    store.follow(HOP, ["example.com"], now_us=T0 + 50 * HOUR)
    store.follow("smtp://10.0.0.1:25", ["other.example"], now_us=T0)
    for at, hop in ((1, HOP), (3, "smtp://10.0.0.1:25"), (5, HOP)):
        store.begin_outage(hop, Reason.REFUSED, "x", from_us=T0 + at * HOUR)
        store.end_outage(hop, to_us=T0 + (at + 1) * HOUR)
    assert [o.from_us for o in read(store).outages] == [T0 + HOUR, T0 + 5 * HOUR]
    assert [o.from_us for o in read(store, hours=(2, 5)).outages] == []
    assert [o.from_us for o in read(store, hours=(5, 6)).outages] == [T0 + 5 * HOUR]
    assert read(store).next_hops == (HOP,)


def test_how_long_the_node_watched(path: Path) -> None:
    """The sum of its runs, cut to the time asked for."""
    for begin in (0, 10):
        store = SqliteAvailability.open(path)
        store.watched(now_us=T0 + begin * HOUR, fresh=True)
        store.watched(now_us=T0 + (begin + 4) * HOUR, fresh=False)
        store.watched(now_us=T0 + (begin + 1) * HOUR, fresh=False)  # a clock set back
        store.close()
    reader = SqliteAvailability.open_to_read(path)
    assert reader is not None
    assert read(reader).watched_us == 8 * HOUR
    assert read(reader, hours=(2, 11)).watched_us == 3 * HOUR
    reader.close()


def test_old_history_is_forgotten(store: AvailabilityStore) -> None:
    """What ended before a moment goes; what lasts stays."""
    store.watched(now_us=T0, fresh=True)
    store.follow(HOP, ["example.com"], now_us=T0 + 60 * HOUR)
    store.add(0, {"example.com": one()}, now_us=T0)
    store.add(0, {"example.com": one()}, now_us=T0 + 60 * HOUR)
    store.begin_outage(HOP, Reason.REFUSED, "x", from_us=T0)
    store.prune(before_us=T0 + 50 * HOUR)
    assert len(store.open_outages()) == 1
    store.end_outage(HOP, to_us=T0 + HOUR)
    store.prune(before_us=T0 + 50 * HOUR)
    history = read(store)
    assert (history.outages, history.tally.accepted, history.watched_us) == ((), 1, 0)


def _count(path: Path, worker: int) -> None:
    store = SqliteAvailability.open(path)
    for _ in range(50):
        store.add(worker, {"example.com": one()}, now_us=T0)
    store.close()


def test_several_processes_count_together(path: Path) -> None:
    """Nothing is lost or refused when all write at once, the first opening included."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count, args=(path, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    store = SqliteAvailability.open(path)
    assert read(store).tally.accepted == 150
    store.close()
