"""The alert desk: when something stands, is told, and is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from posthouse.errors import TellingFailed
from posthouse.ports_alerts import Alert, Notice
from posthouse.services.alert_desk import MOST_STANDING, AlertDesk, DeskSettings
from posthouse.storage.alert_store import SqliteAlertStore

SECOND = 1_000_000
MINUTE = 60 * SECOND
DAY = 1440 * MINUTE


class Channel:
    """Keeps what it was told; fails while `failure` is set."""

    def __init__(self, name: str = "webhook") -> None:
        self.name = name
        self.told: list[Notice] = []
        self.failure: Exception | None = None
        self.gate: asyncio.Event | None = None

    async def deliver(self, notice: Notice) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.told.append(notice)

    def words(self) -> list[list[tuple[str, bool]]]:
        """Of each notice: subject of each alert and whether it is over."""
        return [
            [(one.alert.subject, one.over_us is not None) for one in notice.alerts]
            for notice in self.told
        ]


class Room:
    """A desk with its store, channels, and a clock that is moved by hand."""

    def __init__(self, directory: Path) -> None:
        self.now_us = 1_700_000_000 * SECOND
        self.directory = directory
        self.channels = [Channel(), Channel("mail")]
        self.settings = DeskSettings(
            node="mx2.example.net", delay_us=MINUTE, intervals={"mail": 15 * MINUTE}
        )
        self.open()
        self.desk.sources_complete()

    def open(self) -> None:
        self.store = SqliteAlertStore.open(self.directory / "alerts.db")
        self.desk = AlertDesk(
            self.store, self.channels, self.settings, clock_us=lambda: self.now_us
        )

    async def restart(self) -> None:
        await self.desk.stop()
        self.store.close()
        self.open()

    async def after(self, span_us: int = 0) -> None:
        self.now_us += span_us
        await self.desk.tick()
        await self.desk.wait_told()

    def raise_(self, subject: str, kind: str = "next-hop-down", text: str = "it is down") -> None:
        self.desk.raise_(kind, subject, text, "look at it")

    def clear(self, subject: str, kind: str = "next-hop-down") -> None:
        self.desk.clear(kind, subject)

    @property
    def webhook(self) -> Channel:
        return self.channels[0]

    @property
    def mail(self) -> Channel:
        return self.channels[1]


@pytest.fixture(name="room")
async def make_room(tmp_path: Path) -> AsyncIterator[Room]:
    room = Room(tmp_path)
    await room.desk.tick()
    yield room
    await room.desk.stop()
    room.store.close()


async def test_what_stands_is_told_once_and_once_when_over(room: Room) -> None:
    """After the delay on every channel; the all-clear after it was gone for as long."""
    room.raise_("a")
    await room.after()
    assert room.webhook.told == []
    assert [s.alert.subject for s in room.store.list_alerts(everything=False, limit=9)] == ["a"]
    await room.after(MINUTE)
    for _ in range(3):
        await room.after(20 * MINUTE)
    room.clear("a")
    gone_us = room.now_us
    await room.after()
    assert room.store.list_alerts(everything=False, limit=9)
    await room.after(MINUTE)
    for channel in room.channels:
        assert channel.words() == [[("a", False)], [("a", True)]]
        assert channel.told[1].alerts[0].over_us == gone_us
        assert [notice.number for notice in channel.told] == [1, 2]
    assert room.store.list_alerts(everything=False, limit=9) == []


async def test_what_is_wrong_from_the_start_is_told(tmp_path: Path) -> None:
    """A channel that is new tells what is announced with the very first look."""
    room = Room(tmp_path)
    room.desk.reload(room.channels, DeskSettings(node="n", delay_us=0))
    room.raise_("a")
    await room.after()
    assert room.webhook.words() == room.mail.words() == [[("a", False)]]
    await room.desk.stop()
    room.store.close()


async def test_a_blip_is_stored_and_told_to_nobody(room: Room) -> None:
    """What is gone before the delay wakes nobody; `posthouse alerts --all` shows it."""
    room.raise_("a")
    await room.after()
    room.clear("a")
    await room.after(30 * SECOND)
    await room.after(MINUTE)
    assert room.webhook.told == []
    (stored,) = room.store.list_alerts(everything=True, limit=9)
    assert stored.over_us is not None


async def test_flapping_is_one_alert(room: Room) -> None:
    """Gone for less than the delay is not over."""
    room.raise_("a")
    await room.after()
    await room.after(MINUTE)
    for _ in range(5):
        room.clear("a")
        await room.after(10 * SECOND)
        room.raise_("a", text="down again")
        await room.after(10 * SECOND)
    await room.after(5 * MINUTE)
    assert room.webhook.words() == [[("a", False)]]
    (stored,) = room.store.list_alerts(everything=True, limit=9)
    assert stored.alert.text == "down again"


async def test_mails_are_grouped(room: Room) -> None:
    """At most one an interval; what came meanwhile goes together with the next."""
    for subject in "abc":
        room.raise_(subject)
        await room.after()
        await room.after(2 * MINUTE)
    room.clear("c")
    await room.after()
    await room.after(MINUTE)
    assert room.mail.words() == [[("a", False)]]
    assert room.webhook.words() == [[("a", False)], [("b", False)], [("c", False)], [("c", True)]]
    await room.after(15 * MINUTE)
    assert room.mail.words()[1:] == [[("b", False), ("c", True)]]


async def test_a_failing_channel_tries_again_and_holds_up_no_other(room: Room) -> None:
    """Later and later, with the same number; meanwhile that is an alert of its own."""
    room.mail.failure = TellingFailed("no route")
    room.raise_("a")
    await room.after()
    await room.after(MINUTE)
    assert room.webhook.words() == [[("a", False)]]
    await room.after()
    standing = {s.alert.kind for s in room.store.list_alerts(everything=False, limit=9)}
    assert standing == {"next-hop-down", "contact"}
    tries = 0
    for _ in range(10):
        before = room.store.get_channel("mail").attempts
        await room.after(MINUTE)
        tries += room.store.get_channel("mail").attempts - before
    assert tries == 2  # after 1 and 5 minutes more
    room.mail.failure = None
    await room.after(15 * MINUTE)
    assert room.mail.words() == [[("a", False)]]
    assert room.mail.told[0].number == 1
    await room.after(MINUTE)
    await room.after(2 * MINUTE)
    standing = {s.alert.kind for s in room.store.list_alerts(everything=False, limit=9)}
    assert standing == {"next-hop-down"}


async def test_telling_is_given_up_after_days(room: Room) -> None:
    """Old news are dropped; the next ones are tried again."""
    room.mail.failure = RuntimeError("a fault of ours")
    room.raise_("a")
    await room.after()
    for _ in range(8):
        await room.after(DAY)
    record = room.store.get_channel("mail")
    assert (record.attempts, record.notices) == (0, 0)
    room.mail.failure = None
    room.raise_("b")
    await room.after()
    await room.after(DAY)
    assert room.mail.words() == [[("b", False)]]


async def test_what_cannot_work_is_not_tried_again(room: Room) -> None:
    """A contact behind this backup: dropped at once, and an alert on the other channels."""
    room.mail.failure = TellingFailed("behind us", for_good=True)
    room.raise_("a")
    await room.after()
    await room.after(MINUTE)
    assert room.store.get_channel("mail").attempts == 0
    await room.after()
    await room.after(MINUTE)
    assert [words for notice in room.webhook.words() for words in notice] == [
        ("a", False),
        ("mail", False),
    ]


async def test_news_outlive_a_restart(room: Room) -> None:
    """What was not told is told after it, what was is not, and nothing is over before all spoke."""
    room.mail.failure = TellingFailed("no route")
    room.raise_("a")
    await room.after()
    await room.after(MINUTE)
    room.mail.failure = None
    await room.restart()
    for _ in range(5):
        await room.after(10 * MINUTE)
    assert room.mail.words() == [[("a", False)]]
    assert room.webhook.words() == [[("a", False)]]
    room.desk.sources_complete()
    await room.after()
    await room.after(MINUTE)
    assert room.webhook.words() == [[("a", False)], [("a", True)]]


async def test_a_hanging_channel_holds_up_nothing(room: Room) -> None:
    """While one hangs the others tell, and it is not started twice."""
    room.mail.gate = asyncio.Event()
    room.raise_("a")
    await room.after()
    room.now_us += MINUTE
    for _ in range(20):
        await room.desk.tick()
        await asyncio.sleep(0)
    assert room.webhook.words() == [[("a", False)]]
    room.mail.gate.set()
    await room.desk.wait_told()
    assert room.mail.words() == [[("a", False)]]


async def test_sources_are_summed(room: Room) -> None:
    """The same condition from two places is one alert, over when both say so, since the first."""
    early = Alert(kind="k", subject="s", text="t", since_us=5)
    room.desk.replace("worker 0", [early])
    room.desk.replace("worker 1", [Alert(kind="k", subject="s", text="t", since_us=9)])
    await room.after()
    (stored,) = room.store.list_alerts(everything=False, limit=9)
    assert stored.alert.since_us == 5
    room.desk.replace("worker 0", [])
    await room.after(5 * MINUTE)
    await room.after(5 * MINUTE)
    assert len(room.store.list_alerts(everything=False, limit=9)) == 1
    room.desk.drop_source("worker 1")
    await room.after()
    await room.after(5 * MINUTE)
    assert room.store.list_alerts(everything=False, limit=9) == []


async def test_kinds_that_a_mail_leaves_out(room: Room) -> None:
    """Held mail is told by the digest, not by an alert mail; the webhook hears of it."""
    room.raise_("", kind="mail-held")
    await room.after()
    await room.after(MINUTE)
    assert room.mail.told == []
    assert room.webhook.words() == [[("", False)]]
    room.raise_("a")
    await room.after()
    await room.after(MINUTE)
    assert room.mail.words() == [[("a", False)]]


async def test_thousands_at_once_are_bounded(room: Room) -> None:
    """No more are stored than a person could read, and notices stay small."""
    for number in range(MOST_STANDING + 50):
        room.raise_(f"mx:d{number}.example")
    await room.after()
    assert len(room.store.list_alerts(everything=False, limit=9999)) == MOST_STANDING
    await room.after(MINUTE)
    assert len(room.mail.told[0].alerts) == 100


async def test_a_clock_set_back_silences_nobody(room: Room) -> None:
    """A channel that told in the future may tell now."""
    room.raise_("a")
    await room.after()
    await room.after(MINUTE)
    room.now_us -= DAY
    room.raise_("b")
    await room.after()
    await room.after(MINUTE)
    assert room.mail.words() == [[("a", False)], [("b", False)]]


async def test_a_clock_set_back_keeps_nothing_standing(room: Room) -> None:
    """What stands is announced, and what is gone is over, though the time comes only next year."""
    room.raise_("a")
    await room.after()
    room.now_us -= 365 * DAY
    await room.after()
    assert room.webhook.words() == [[("a", False)]]
    room.now_us += 365 * DAY
    room.clear("a")
    await room.after()
    room.now_us -= 365 * DAY
    await room.after(MINUTE)
    await room.after(MINUTE)
    assert room.webhook.words() == [[("a", False)], [("a", True)]]
    assert room.store.list_alerts(everything=False, limit=9) == []


async def test_what_is_gone_at_a_stop_does_not_stand_again(room: Room) -> None:
    """Cleared a moment before: over on disk, and told after the next start; what stands stays."""
    for subject in "ab":
        room.raise_(subject)
    await room.after()
    await room.after(MINUTE)
    room.clear("a")
    await room.restart()
    assert [s.alert.subject for s in room.store.list_alerts(everything=False, limit=9)] == ["b"]
    await room.after(MINUTE)
    assert room.webhook.words() == [[("a", False), ("b", False)], [("a", True)]]


async def test_a_stop_before_everybody_has_spoken_ends_nothing(room: Room) -> None:
    """Stopped seconds after a start it does not know what is gone."""
    room.raise_("a")
    await room.after()
    await room.restart()
    await room.after()
    await room.restart()
    assert [s.alert.subject for s in room.store.list_alerts(everything=False, limit=9)] == ["a"]


async def test_a_stop_amid_a_look_leaves_the_store_to_one_thread(room: Room) -> None:
    """Whoever is cancelled waits for the store; what is gone is over all the same."""
    room.raise_("a")
    await room.after()
    room.clear("a")
    for turns in range(12):
        work = asyncio.get_running_loop().create_task(room.desk.tick())
        for _ in range(turns):
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    await room.restart()
    assert room.store.list_alerts(everything=False, limit=9) == []
