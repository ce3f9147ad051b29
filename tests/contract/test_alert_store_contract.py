"""What every store of alerts promises (`ports_alerts.AlertStore`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posthouse.errors import StorageError
from posthouse.ports_alerts import Alert, AlertStore, ChannelRecord
from posthouse.storage.alert_store import SqliteAlertStore

T0 = 1_700_000_000_000_000
Reopen = Callable[[], AlertStore]


@pytest.fixture(name="reopen")
def make_reopen(tmp_path: Path) -> Iterator[Reopen]:
    opened: list[SqliteAlertStore] = []

    def reopen() -> AlertStore:
        while opened:
            opened.pop().close()
        opened.append(SqliteAlertStore.open(tmp_path / "watch" / "alerts.db"))
        return opened[-1]

    yield reopen
    while opened:
        opened.pop().close()


def alert(kind: str = "next-hop-down", subject: str = "mx:example.com", **more: object) -> Alert:
    values = {"kind": kind, "subject": subject, "text": "it is down", "what_to_do": "look", **more}
    return Alert(**values)  # type: ignore[arg-type]


def test_what_stands_outlives_the_process(reopen: Reopen) -> None:
    """Alerts that are not over come back with their numbers, words and whether announced."""
    store = reopen()
    one, two = store.begin([alert(), alert("disk-low", "", since_us=T0 - 5)], now_us=T0)
    store.announce([two.number])
    store.update(one.number, alert(text="refused"))
    (first, told_first), (second, told_second) = reopen().load_standing()
    assert (first.number, first.alert.text, first.alert.since_us) == (one.number, "refused", T0)
    assert (second.alert.since_us, second.raised_us, second.over_us) == (T0 - 5, T0, None)
    assert (told_first, told_second) == (False, True)


def test_one_alert_stands_once(reopen: Reopen) -> None:
    """Kind and subject name it; once it is over the next one may begin."""
    store = reopen()
    (one,) = store.begin([alert()], now_us=T0)
    with pytest.raises(StorageError):
        store.begin([alert("other"), alert()], now_us=T0)
    assert [stored.number for stored, _ in store.load_standing()] == [one.number]
    store.end([one.number], over_us=T0 + 1)
    (two,) = store.begin([alert()], now_us=T0 + 2)
    assert two.number > one.number


def test_news_are_found_once_by_each_channel(reopen: Reopen) -> None:
    """Beginnings and ends of what was announced, each alert once, as it is now."""
    store = reopen()
    one, two, quiet = store.begin([alert(subject=s) for s in ("a", "b", "c")], now_us=T0)
    store.announce([one.number])
    store.announce([two.number])
    news, told = store.find_news(0, 100)
    assert [(n.alert.subject, n.over_us) for n in news] == [("a", None), ("b", None)]
    store.end([one.number, quiet.number], over_us=T0 + 9)
    news, told = store.find_news(told, 100)
    assert [(n.alert.subject, n.over_us) for n in news] == [("a", T0 + 9)]
    assert store.find_news(told, 100) == ((), told)
    store = reopen()
    everything, _ = store.find_news(0, 100)
    assert [(n.alert.subject, n.over_us) for n in everything] == [("a", T0 + 9), ("b", None)]
    some, until = store.find_news(0, 1)
    assert len(some) == 1
    assert store.find_news(until, 100)[1] == told


def test_ending_twice_keeps_the_first_end(reopen: Reopen) -> None:
    """What is over stays over since then."""
    store = reopen()
    (one,) = store.begin([alert()], now_us=T0)
    store.end([one.number], over_us=T0 + 1)
    store.end([one.number], over_us=T0 + 2)
    (found,) = store.list_alerts(everything=True, limit=9)
    assert found.over_us == T0 + 1


def test_a_new_channel_does_not_tell_the_past(reopen: Reopen) -> None:
    """It begins behind all news; what it remembers outlives the process."""
    store = reopen()
    (one,) = store.begin([alert()], now_us=T0)
    store.announce([one.number])
    record = store.get_channel("mail")
    assert store.find_news(record.told, 10)[0] == ()
    saved = ChannelRecord(told=7, last_us=T0, notices=3, attempts=2, due_us=9, trouble="né")
    store.save_channel("mail", saved)
    assert reopen().get_channel("mail") == saved


def test_lists_the_newest_first(reopen: Reopen) -> None:
    """Those that stand, or all, at most so many."""
    store = reopen()
    stored = store.begin([alert(subject=s) for s in "abc"], now_us=T0)
    store.end([stored[1].number], over_us=T0)
    standing = store.list_alerts(everything=False, limit=9)
    assert [s.alert.subject for s in standing] == ["c", "a"]
    everything = store.list_alerts(everything=True, limit=2)
    assert [s.alert.subject for s in everything] == ["c", "b"]


def test_the_digest_remembers_what_it_told(reopen: Reopen) -> None:
    """What was told is not new; released and held again it is."""
    store = reopen()
    assert store.last_digest_us() == 0
    held = [(1, 0, 10), (1, 1, 10), (2, 0, 20)]
    assert list(store.find_new_held(held)) == held
    store.save_digest(held[:2], now_us=T0)
    store = reopen()
    assert store.last_digest_us() == T0
    assert list(store.find_new_held(held)) == [(2, 0, 20)]
    assert list(store.find_new_held([(1, 0, 11), (1, 1, 10)])) == [(1, 0, 11)]
    store.save_digest([], now_us=T0 + 1)
    assert list(store.find_new_held(held)) == held
    assert list(store.find_new_held([])) == []


def test_old_alerts_are_forgotten(reopen: Reopen) -> None:
    """Those over before a moment go, with their news; what stands stays."""
    store = reopen()
    old, young, standing = store.begin([alert(subject=s) for s in "abc"], now_us=T0)
    store.announce([old.number, young.number, standing.number])
    store.end([old.number], over_us=T0 + 1)
    store.end([young.number], over_us=T0 + 10)
    store.prune(before_us=T0 + 5)
    assert [s.alert.subject for s in store.list_alerts(everything=True, limit=9)] == ["c", "b"]
    assert [s.alert.subject for s in store.find_news(0, 9)[0]] == ["b", "c"]


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    """A node starts all the same, with an empty store; the octets are kept."""
    path = tmp_path / "watch" / "alerts.db"
    store = SqliteAlertStore.open(path)
    store.begin([alert()], now_us=T0)
    store.close()
    path.write_bytes(b"\xff" * 8192)
    store = SqliteAlertStore.open(path)
    assert store.load_standing() == []
    store.close()
    assert len(list(path.parent.glob("alerts.db.damaged-*"))) == 1


def test_reading_needs_a_store(tmp_path: Path) -> None:
    """Where no node has run there is nothing to read, and nothing is made."""
    assert SqliteAlertStore.open_to_read(tmp_path / "alerts.db") is None
    assert list(tmp_path.iterdir()) == []
