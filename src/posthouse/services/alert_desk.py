"""The alert desk: what stands, what is to be told, and the telling of it. One per node.

Everybody says what *is* (`raise_`, `clear`, `replace`); once a second the desk
compares that with what is stored. A condition that came is stored at once, and
announced when it has stood for `delay_us`: a primary that restarts wakes
nobody. One that is gone is over when it has been gone for as long. After a
start nothing is taken to be over before `sources_complete` was called: what is
still wrong is about to be said again. `stop` does not wait: what is gone then is over.

Each channel tells what was announced since it told last, grouped, at most once
an interval, and tries again until it works or `give_up_us` is over; one that
fails or hangs holds up no other. The store is asked in a thread.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from posthouse import observe
from posthouse.errors import StorageError, TellingFailed
from posthouse.log_sink import clean
from posthouse.ports_alerts import (
    Alert,
    AlertChannel,
    AlertKind,
    AlertStore,
    ChannelRecord,
    Notice,
    StoredAlert,
)

T = TypeVar("T")
Key = tuple[str, str]

TICK_SECONDS: Final = 1.0
MOST_AT_ONCE: Final = 100
"""Alerts in one notice; the rest comes with the next."""
MOST_STANDING: Final = 2000
"""More are not stored: a provider's whole uplink is one event, not ten thousand mails."""
RETRY_US: Final = tuple(minutes * 60_000_000 for minutes in (1, 5, 15, 30, 60))
KEEP_US: Final = 400 * 86_400_000_000
PRUNE_US: Final = 3_600_000_000


class DeskSettings(msgspec.Struct, frozen=True, kw_only=True):
    """node: our name. Times in microseconds; see the module. intervals: by channel name."""

    node: str
    delay_us: int = 60_000_000
    intervals: Mapping[str, int] = {}
    give_up_us: int = 5 * 86_400_000_000


UNTOLD: Final[Mapping[str, frozenset[str]]] = {
    # The digest tells it better; and mail about mail that fails would come late.
    "mail": frozenset({AlertKind.MAIL_HELD, AlertKind.CONTACT}),
}
"""Kinds that a channel leaves out."""


class _Standing(msgspec.Struct, kw_only=True):
    stored: StoredAlert
    announced: bool
    gone_us: int | None = None


class AlertDesk:
    """See the module; `ports_alerts.AlertSink` for whoever raises."""

    def __init__(
        self,
        store: AlertStore,
        channels: Sequence[AlertChannel],
        settings: DeskSettings,
        *,
        clock_us: Callable[[], int],
    ) -> None:
        self._store = store
        self._channels = {channel.name: channel for channel in channels}
        self._settings = settings
        self._clock_us = clock_us
        self._sources: dict[str, dict[Key, Alert]] = {"": {}}
        self._standing: dict[Key, _Standing] | None = None
        self._complete = False
        self._telling: dict[str, asyncio.Task[None]] = {}
        self._store_lock = asyncio.Lock()
        self._trouble = ""
        self._greeted: set[str] = set()
        self._pruned_us = 0

    # ------------------------------------------------------------------ what others say

    def raise_(
        self, kind: str, subject: str, text: str, what_to_do: str, *, since_us: int = 0
    ) -> None:
        """See `ports_alerts.AlertSink`."""
        self._sources[""][kind, subject] = Alert(
            kind=kind, subject=subject, text=text, what_to_do=what_to_do, since_us=since_us
        )

    def clear(self, kind: str, subject: str) -> None:
        """See `ports_alerts.AlertSink`."""
        self._sources[""].pop((kind, subject), None)

    def replace(self, source: str, alerts: Iterable[Alert]) -> None:
        """Say all that is wrong as `source` sees it; what it said before and not now is gone."""
        self._sources[source] = {(alert.kind, alert.subject): alert for alert in alerts}

    def drop_source(self, source: str) -> None:
        """There is no such source any more."""
        self._sources.pop(source, None)

    def sources_complete(self) -> None:
        """Everybody has said once what is wrong."""
        self._complete = True

    def reload(self, channels: Sequence[AlertChannel], settings: DeskSettings) -> None:
        """Take new ways and settings; a telling under way ends as it began."""
        self._channels = {channel.name: channel for channel in channels}
        self._settings = settings

    # ------------------------------------------------------------------ the work

    async def run(self) -> None:
        """Work for ever."""
        try:
            while True:
                await self.tick()
                await asyncio.sleep(TICK_SECONDS)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Let go of tellings under way: they are tried again after the next start.

        What is gone now is over: nobody will see it out, and it must not stand again after
        the next start. A store that fails leaves that to the next start.
        """
        tasks = list(self._telling.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._standing is None or not self._complete:
            return
        now_us, wanted = self._clock_us(), self._wanted()
        for key, one in self._standing.items():
            if key not in wanted and one.gone_us is None:
                one.gone_us = now_us
        try:
            await self._end(now_us, for_us=0)
        except StorageError as error:
            observe.trouble("alerts", "alerts cannot be stored", error)

    async def tick(self) -> None:
        """Bring the store up to date, and start what is to be told now."""
        try:
            await self._greet_channels()
            await self._reconcile(self._clock_us())
            for name in self._channels:
                if name not in self._telling:
                    await self._look(name)
        except StorageError as error:
            if error.detail != self._trouble:
                self._trouble = error.detail
                observe.trouble("alerts", "alerts cannot be stored", error)
        else:
            self._trouble = ""

    async def wait_told(self) -> None:
        """Wait for tellings under way."""
        while self._telling:
            await asyncio.wait(self._telling.values())

    async def _ask(self, question: Callable[[], T]) -> T:
        """Cancelled it returns when the store is free: two threads never meet there."""
        async with self._store_lock:
            asked = asyncio.ensure_future(asyncio.to_thread(question))
            try:
                return await asyncio.shield(asked)
            finally:
                if not asked.done():
                    await asyncio.wait((asked,))

    async def _greet_channels(self) -> None:
        """A new channel does not tell the past, but all that is announced from now on."""
        for name in self._channels.keys() - self._greeted:
            await self._ask(functools.partial(self._store.get_channel, name))
            self._greeted.add(name)

    def _wanted(self) -> dict[Key, Alert]:
        wanted: dict[Key, Alert] = {}
        for alerts in self._sources.values():
            for key, alert in alerts.items():
                known = wanted.setdefault(key, alert)
                if known is not alert and 0 < alert.since_us < known.since_us:
                    wanted[key] = alert
        return wanted

    async def _reconcile(self, now_us: int) -> None:
        if self._standing is None:
            loaded = await self._ask(self._store.load_standing)
            self._standing = {
                (stored.alert.kind, stored.alert.subject): _Standing(
                    stored=stored, announced=announced
                )
                for stored, announced in loaded
            }
        wanted = self._wanted()
        await self._begin(wanted, now_us)
        await self._follow(wanted, now_us)
        await self._end(now_us, for_us=self._settings.delay_us)
        if now_us - self._pruned_us > PRUNE_US:
            self._pruned_us = now_us
            await self._ask(lambda: self._store.prune(before_us=now_us - KEEP_US))

    async def _begin(self, wanted: Mapping[Key, Alert], now_us: int) -> None:
        standing = self._get_standing()
        room = max(0, MOST_STANDING - len(standing))
        fresh = [alert for key, alert in wanted.items() if key not in standing][:room]
        if not fresh:
            return
        for stored in await self._ask(lambda: self._store.begin(fresh, now_us=now_us)):
            alert = stored.alert
            standing[alert.kind, alert.subject] = _Standing(stored=stored, announced=False)
            observe.note("alerts", f"{alert.kind}: {alert.text}", kind=alert.kind)

    async def _follow(self, wanted: Mapping[Key, Alert], now_us: int) -> None:
        """Words of what stands, what is gone, and what has stood long enough to be told."""
        announce = []
        for key, one in self._get_standing().items():
            alert = wanted.get(key)
            if alert is None:
                if one.gone_us is None and self._complete:
                    one.gone_us = now_us
                continue
            one.gone_us = None
            stored = one.stored
            if (alert.text, alert.what_to_do) != (stored.alert.text, stored.alert.what_to_do):
                words = msgspec.structs.replace(stored.alert, text=alert.text)
                words = msgspec.structs.replace(words, what_to_do=alert.what_to_do)
                one.stored = msgspec.structs.replace(stored, alert=words)
                await self._ask(lambda n=stored.number, w=words: self._store.update(n, w))  # type: ignore[misc]
            # A clock that was set back must not keep it secret until that time comes again.
            stood_us = now_us - stored.raised_us
            if not one.announced and not 0 <= stood_us < self._settings.delay_us:
                announce.append(one)
        if announce:
            numbers = [one.stored.number for one in announce]
            await self._ask(lambda: self._store.announce(numbers))
            for one in announce:
                one.announced = True

    async def _end(self, now_us: int, *, for_us: int) -> None:
        """What has been gone for so long is over. A clock that was set back begins it anew."""
        standing = self._get_standing()
        over: dict[int, list[Key]] = {}
        for key, one in standing.items():
            if one.gone_us is not None:
                one.gone_us = min(one.gone_us, now_us)
            if one.gone_us is not None and now_us - one.gone_us >= for_us:
                over.setdefault(one.gone_us, []).append(key)
        for gone_us, keys in over.items():
            numbers = [standing[key].stored.number for key in keys]
            await self._ask(lambda n=numbers, at=gone_us: self._store.end(n, over_us=at))  # type: ignore[misc]
            for key in keys:
                alert = standing.pop(key).stored.alert
                observe.note("alerts", f"over: {alert.kind}: {alert.text}", kind=alert.kind)

    def _get_standing(self) -> dict[Key, _Standing]:
        assert self._standing is not None
        return self._standing

    # ------------------------------------------------------------------ telling

    async def _look(self, name: str) -> None:
        """Start to tell what a channel has not told, when it may."""
        record = await self._ask(lambda: self._store.get_channel(name))
        now_us = self._clock_us()
        since_us = now_us - record.last_us
        # A clock that was set back must not silence anybody.
        if 0 <= since_us < self._settings.intervals.get(name, 0):
            return
        if record.attempts and now_us < record.due_us <= now_us + max(RETRY_US):
            return
        news, until = await self._ask(lambda: self._store.find_news(record.told, MOST_AT_ONCE))
        if until == record.told:
            return
        told = tuple(n for n in news if n.alert.kind not in UNTOLD.get(name, ()))
        channel = self._channels[name]
        notice = Notice(
            node=self._settings.node, number=record.notices + 1, alerts=told, made_us=now_us
        )
        work = self._tell(channel, record, notice, until)
        self._telling[name] = asyncio.get_running_loop().create_task(work, name=f"telling {name}")

    async def _tell(
        self, channel: AlertChannel, record: ChannelRecord, notice: Notice, until: int
    ) -> None:
        try:
            after = await self._deliver(channel, record, notice, until)
            await self._ask(lambda: self._store.save_channel(channel.name, after))
        except StorageError as error:
            observe.trouble("alerts", f"{channel.name}: what was told cannot be stored", error)
        finally:
            del self._telling[channel.name]

    async def _deliver(
        self, channel: AlertChannel, record: ChannelRecord, notice: Notice, until: int
    ) -> ChannelRecord:
        """Tell it; the record to keep."""
        name = channel.name
        done = ChannelRecord(told=until, last_us=record.last_us, notices=record.notices)
        if not notice.alerts:
            return done
        try:
            await _fully(channel.deliver(notice))
        except TellingFailed as failure:
            return self._failed(name, record, done, failure)
        self.clear(AlertKind.CONTACT, name)
        observe.note("alerts", f"told {len(notice.alerts)} alerts by {name}")
        return msgspec.structs.replace(done, last_us=self._clock_us(), notices=record.notices + 1)

    def _failed(
        self, name: str, record: ChannelRecord, done: ChannelRecord, failure: TellingFailed
    ) -> ChannelRecord:
        now_us = self._clock_us()
        since_us = record.failing_since_us or now_us
        observe.trouble("alerts", f"cannot tell by {name}", failure)
        self.raise_(
            AlertKind.CONTACT,
            name,
            f"alerts cannot be told by {name}: {clean(failure.detail)}",
            f"check [alerts] {name} and `contact`; `posthouse alerts` shows what was not told",
            since_us=since_us,
        )
        if failure.for_good or now_us - since_us >= self._settings.give_up_us:
            observe.trouble("alerts", f"given up telling by {name}: {failure.detail}")
            return done
        return msgspec.structs.replace(
            record,
            attempts=record.attempts + 1,
            due_us=now_us + RETRY_US[min(record.attempts, len(RETRY_US) - 1)],
            failing_since_us=since_us,
            trouble=failure.detail[:500],
        )


async def _fully(work: Awaitable[None]) -> None:
    """Any fault of a channel is a failure to tell: the desk goes on."""
    try:
        await work
    except TellingFailed:
        raise
    except Exception as error:
        raise TellingFailed(f"{type(error).__name__}: {error}") from error
