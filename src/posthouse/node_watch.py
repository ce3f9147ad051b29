"""What the control process sees to for people: alerts, the digest, the log of availability.

It asks each worker's control desk every few seconds how it is, looks at the
next hops, the disk, the certificates and the lists, and hands all of it to the alert desk and
the recorder. Counts of the queue cost by rows, so they are asked for at most
once a minute and never for more than a hundredth of the time. Nothing here is
needed for mail: whatever fails is logged and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from posthouse import observe
from posthouse.config_schema import Config
from posthouse.errors import StorageError, TellingFailed
from posthouse.interfaces.control_client import DeskSilent, WorkerDesk
from posthouse.interfaces.control_wire import WorkerStatus
from posthouse.log_sink import clean
from posthouse.node_tellers import alerts_file, as_us, make_desk_settings, make_ways
from posthouse.ports_alerts import Alert, AlertSink, Reason
from posthouse.ports_drain import NextHopStates, NextHopView
from posthouse.ports_spool import DomainTotals, QueuedMessage
from posthouse.services import conditions
from posthouse.services.alert_desk import AlertDesk
from posthouse.services.availability import (
    UNCERTAIN,
    AvailabilityRecorder,
    classify,
    is_up,
)
from posthouse.services.clock_watch import ClockWatch
from posthouse.services.conditions import Hop
from posthouse.services.digest import Digest
from posthouse.services.relay_settings import CONDITIONS
from posthouse.storage.alert_store import SqliteAlertStore
from posthouse.storage.availability_store import SqliteAvailability
from posthouse.transports.certificate import find_end_us

LOOK_SECONDS: Final = 2.0
STATUS_SECONDS: Final = 5.0
SLOW_LOOK_SECONDS: Final = 30.0
TOTALS_SECONDS: Final = 60.0
TOTALS_SHARE: Final = 100
"""Counting takes at most one part in so many of the time."""
AGAIN_SECONDS: Final = 30.0

_HOP_CONDITIONS: Final = frozenset(CONDITIONS.values())
_OF_ONE_WORKER: Final = ("storage", "settle", "shard")

Facts = Callable[[], Mapping[str, Mapping[str, str | int | bool]]]


def availability_file(data_dir: Path) -> Path:
    """Where the log of availability is."""
    return data_dir / "watch" / "availability.db"


class Watch:
    """See the module. `lists`: what is known of recipient lists, by domain."""

    def __init__(
        self,
        config: Config,
        *,
        lists: Facts,
        states: NextHopStates,
        listening: Sequence[tuple[str, int]],
        clock_us: Callable[[], int],
        elapsed_us: Callable[[], int],
    ) -> None:
        self._config = config
        self.lists = lists
        self.states = states
        self.listening = listening
        states.watch(self._hear)
        self.clock_us = clock_us
        self.direct = _Direct()
        self.clock = ClockWatch(alerts=self.direct, clock_us=clock_us, elapsed_us=elapsed_us)
        self._room: _Room | None = None
        self._reloaded = asyncio.Event()

    @property
    def alerts(self) -> AlertSink:
        """Where others in this process raise and clear."""
        return self.direct

    async def reload(self, config: Config) -> None:
        """Take a new configuration."""
        self._config = config
        self._reloaded.set()
        if self._room is not None:
            await self._room.reload(config)

    async def run(self) -> None:
        """Watch for ever; a store that cannot be opened is tried again, after a reload at once."""
        while True:
            self._reloaded.clear()
            try:
                room = await _Room.open(self, self._config)
            except (StorageError, OSError) as error:
                observe.trouble("alerts", "alerts cannot be stored", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._reloaded.wait(), AGAIN_SECONDS)
                continue
            self._room = room
            try:
                await room.run()
            finally:
                self._room = None
                await room.close()

    def _hear(self, view: NextHopView) -> None:
        if self._room is not None:
            self._room.hear(view)


class _Direct:
    """Takes what is raised before the desk is there, and hands it on."""

    def __init__(self) -> None:
        self.standing: dict[tuple[str, str], Alert] = {}

    def raise_(
        self, kind: str, subject: str, text: str, what_to_do: str, *, since_us: int = 0
    ) -> None:
        self.standing[kind, subject] = Alert(
            kind=kind, subject=subject, text=text, what_to_do=what_to_do, since_us=since_us
        )

    def clear(self, kind: str, subject: str) -> None:
        self.standing.pop((kind, subject), None)


class _Room:
    """Everything that lives while the stores are open."""

    def __init__(
        self, watch: Watch, config: Config, stores: tuple[SqliteAlertStore, SqliteAvailability]
    ) -> None:
        self._config = config
        self._watch = watch
        clock_us = self._clock_us = watch.clock_us
        self._stores = stores
        self._ways = make_ways(config, watch.listening, clock_us)
        self._desk = AlertDesk(
            stores[0],
            self._ways.channels,
            make_desk_settings(config.hostname, config.alerts),
            clock_us=clock_us,
        )
        self._recorder = AvailabilityRecorder(stores[1], clock_us=clock_us)
        self._digest = Digest(
            stores[0],
            node=config.hostname,
            list_held=self._list_held,
            send=self._send,
            clock_us=clock_us,
            interval_us=as_us(config.alerts.digest),
            delay_us=as_us(config.alerts.digest_delay),
        )
        self._statuses: dict[int, WorkerStatus] = {}
        self._totals: tuple[DomainTotals, ...] = ()
        self._totals_at = 0.0
        self._status_at = 0.0
        self._slow_at = 0.0

    @classmethod
    async def open(cls, watch: Watch, config: Config) -> _Room:
        """Raises StorageError, OSError."""
        alerts = await asyncio.to_thread(SqliteAlertStore.open, alerts_file(config.data_dir))
        try:
            path = availability_file(config.data_dir)
            log = await asyncio.to_thread(SqliteAvailability.open, path)
        except BaseException:
            alerts.close()
            raise
        return cls(watch, config, (alerts, log))

    async def reload(self, config: Config) -> None:
        old = self._ways
        self._config = config
        self._ways = make_ways(config, self._watch.listening, self._clock_us)
        self._desk.reload(self._ways.channels, make_desk_settings(config.hostname, config.alerts))
        self._digest.interval_us = as_us(config.alerts.digest)
        self._digest.delay_us = as_us(config.alerts.digest_delay)
        self._slow_at = 0.0
        await old.close()

    async def close(self) -> None:
        self._desk.replace("direct", self._watch.direct.standing.values())
        await self._desk.stop()
        await self._ways.close()
        for store in self._stores:
            store.close()

    async def run(self) -> None:
        """Look, tell, look again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._desk.run())
            group.create_task(self._look_forever())

    async def _look_forever(self) -> None:
        complete = False
        while True:
            workers = self._count_workers()
            answered = await self._ask_workers(workers)
            await self._ask_totals(workers)
            self._look_slowly()
            self._watch.clock.look()
            self._desk.replace("direct", self._watch.direct.standing.values())
            self._look_at_next_hops()
            await self._recorder.tick()
            # A worker that is slow to start must not make an old alert look over.
            if answered < workers:
                self._status_at = 0.0
            if not complete and workers and answered == workers and self._totals_at:
                complete = True
                self._desk.sources_complete()
            await self._look_at_held()
            await asyncio.sleep(LOOK_SECONDS)

    # ------------------------------------------------------------------ the workers

    def _desk_of(self, index: int) -> WorkerDesk:
        return WorkerDesk(self._config.data_dir / "run" / f"worker-{index}.sock")

    def _count_workers(self) -> int:
        try:
            facts = json.loads((self._config.data_dir / "run" / "node.json").read_bytes())
            return int(facts["workers"])
        except (OSError, ValueError, KeyError):
            return 0

    async def _ask_workers(self, workers: int) -> int:
        """How many have answered ever; those that do not now are as they were."""
        now = time.monotonic()
        if now < self._status_at:
            return len(self._statuses)
        self._status_at = now + STATUS_SECONDS
        answers = await asyncio.gather(
            *(self._desk_of(index).status() for index in range(workers)), return_exceptions=True
        )
        for index, answer in enumerate(answers):
            if isinstance(answer, WorkerStatus):
                self._statuses[index] = answer
                self._desk.replace(f"worker {index}", worker_alerts(index, answer))
            elif not isinstance(answer, DeskSilent):
                raise answer
        return len(self._statuses)

    async def _ask_totals(self, workers: int) -> None:
        now = time.monotonic()
        if now < self._totals_at or not workers:
            return
        try:
            found = await asyncio.gather(
                *(self._desk_of(index).totals() for index in range(workers))
            )
        except DeskSilent:
            return
        took = time.monotonic() - now
        self._totals_at = now + max(TOTALS_SECONDS, TOTALS_SHARE * took)
        self._totals = tuple(row for rows in found for row in rows)
        self._desk.replace(
            "queue",
            conditions.queue_alerts(
                self._totals,
                oldest_age_us=as_us(self._config.alerts.oldest_age),
                now_us=self._clock_us(),
            ),
        )

    def _look_at_next_hops(self) -> None:
        views = self._watch.states.all_states()
        hops = [Hop(v.next_hop, str(v.state), v.since_us, v.why, v.domains) for v in views]
        self._desk.replace("next hops", conditions.next_hop_alerts(hops))
        for view in views:
            self.hear(view)
        self._recorder.keep_only([view.next_hop for view in views])

    def hear(self, view: NextHopView) -> None:
        """A next hop is, or came, in this state."""
        state = str(view.state)
        if state in UNCERTAIN:
            return
        up = is_up(view.next_hop, state)
        self._recorder.note(
            view.next_hop,
            view.domains,
            up=up,
            reason=Reason.NONE if up else classify(state, view.why),
            why=view.why,
            since_us=view.since_us,
        )

    # ------------------------------------------------------------------ held mail

    async def _look_at_held(self) -> None:
        if self._ways.mail is None:
            return
        held = sum(row.held for row in self._totals)
        counted = sum(one.counters.get("recipients_held", 0) for one in self._statuses.values())
        pids = tuple(one.pid for one in self._statuses.values())
        try:
            await self._digest.tick(held or counted, (held, counted, pids))
        except DeskSilent as error:
            observe.trouble("alerts", "held mail cannot be listed now", error)

    async def _list_held(self) -> AsyncIterator[QueuedMessage]:
        for index in range(self._count_workers()):
            async for message in self._desk_of(index).list_held():
                yield message

    async def _send(self, subject: str, text: str) -> None:
        if self._ways.mail is None:
            raise TellingFailed("there is no contact any more")
        await self._ways.mail.send(subject, text)

    # ------------------------------------------------------------------ disk, certificates, lists

    def _look_slowly(self) -> None:
        self._desk.replace("lists", conditions.list_alerts(self._watch.lists()))
        now = time.monotonic()
        if now < self._slow_at:
            return
        self._slow_at = now + SLOW_LOOK_SECONDS
        config = self._config
        room = os.statvfs(config.data_dir)
        wanted = min(config.alerts.disk_free, room.f_blocks * room.f_frsize // 10)
        alerts = [
            conditions.disk_alert(room.f_bavail * room.f_frsize, wanted, str(config.data_dir)),
            *(self._look_at_certificate(path) for path in find_certificates(config)),
        ]
        self._desk.replace("host", [alert for alert in alerts if alert is not None])

    def _look_at_certificate(self, path: Path) -> Alert | None:
        try:
            end_us = find_end_us(path)
        except (OSError, ValueError):
            return None  # told by whoever uses it
        days = self._config.alerts.certificate_days
        return conditions.certificate_alert(str(path), end_us, days=days, now_us=self._clock_us())


def find_certificates(config: Config) -> list[Path]:
    """Those that we show to others."""
    shown = (config.smtp.certificate, config.https.certificate)
    return list(dict.fromkeys(path for path in shown if path is not None))


def worker_alerts(index: int, status: WorkerStatus) -> list[Alert]:
    """What one worker says is wrong, next hops apart: those are summed over all workers."""
    found = []
    for one in status.alerts:
        if one.kind in _HOP_CONDITIONS:
            continue
        subject = one.subject or one.text[:100]
        if one.kind.startswith(_OF_ONE_WORKER):
            subject = f"worker {index}"
        found.append(
            Alert(
                kind=one.kind,
                subject=subject,
                text=clean(one.text),
                what_to_do=one.what_to_do or "See `posthouse status` and the node's log",
                since_us=one.since_us or 0,
            )
        )
    if status.intake_problem and not status.alerts:
        intake = conditions.intake_alert(status.intake_problem)
        assert intake is not None
        found.append(intake)
    return found
