"""Keeps the published rosters true: makes them anew when a source changes, or in time.

Sources that tell of changes (files) are looked at every second; a change is taken
up once two looks in a row found it the same, so that a copy under way is not taken
for the whole. The others are read every `rebuild_seconds`. In any case sources are
read often enough for a roster to get new dates before its old ones matter.

One roster is made at a time, in a thread; those with slow digests, which may take
an hour, apart from the others and in the background. What fails keeps the roster of
before in force, is told once for each reason, and is tried again: at once when a
source changes, else after a pause that doubles.

`find` is for the HTTPS door; it looks at the disk, so that a roster made by
`posthouse roster build` beside us is served too.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import msgspec

from posthouse import observe
from posthouse.domain.digests import roster_key_id
from posthouse.errors import PosthouseError, PublishRefused, StorageBusy, StorageError
from posthouse.log_sink import clean
from posthouse.ports_alerts import AlertSink
from posthouse.ports_publish import (
    BuildReport,
    PublishedDomain,
    RosterInForce,
    RosterOrder,
    RosterReply,
    RosterStock,
    RosterWorks,
)

LOOK_EVERY_SECONDS: Final = 1.0
FIRST_PAUSE_SECONDS: Final = 60
LONGEST_PAUSE_SECONDS: Final = 3600
_BUSY_SECONDS: Final = 5
_DAY_SECONDS: Final = 86_400
ALERT_KIND: Final = "roster-not-made"

Wait = Callable[[float], Awaitable[object]]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is made for one domain, and how often sources without versions are read."""

    order: RosterOrder
    rebuild_seconds: int


class _Desk:
    """What the publisher knows of one domain."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.built: tuple[str, ...] | None = None  # versions that were dealt with
        self.seen: tuple[str, ...] | None = None  # at the last look
        self.due_s = 0
        self.pause_seconds = 0
        self.problem = ""
        self.stop = threading.Event()
        self.slow: asyncio.Task[None] | None = None  # a build under way in the background

    @property
    def is_slow(self) -> bool:
        """Whether one digest takes milliseconds."""
        return self.plan.order.digest.scheme == "scrypt"

    @property
    def is_busy(self) -> bool:
        """Whether it is being made in the background."""
        return self.slow is not None and not self.slow.done()

    def is_due(self, now_s: int) -> bool:
        """Its time has come; one that is further away than a day was set by a fast clock."""
        return not 0 < self.due_s - now_s <= _DAY_SECONDS

    def interval(self) -> int:
        """Seconds after which sources are read though nothing says that they changed."""
        # A roster is given new dates after a day or a quarter of its time (domain/roster_build).
        dates = min(_DAY_SECONDS, self.plan.order.valid_seconds // 4) // 8
        silent = any(not version for version in self.built or ())
        return max(1, min(self.plan.rebuild_seconds, dates) if silent else dates)


class RosterPublisher:
    """The rosters of all domains of a primary. `ports_publish.PublishedRosters` for the door."""

    def __init__(
        self,
        works: RosterWorks,
        stock: RosterStock,
        plans: Iterable[Plan],
        *,
        alerts: AlertSink,
        now_s: Callable[[], int],
        wait: Wait = asyncio.sleep,
    ) -> None:
        """now_s: seconds since 1970. wait: between two looks."""
        self._works = works
        self._stock = stock
        self._alerts = alerts
        self._now_s = now_s
        self._wait = wait
        self._busy = asyncio.Lock()
        self._busy_slowly = asyncio.Lock()
        self._desks: dict[str, _Desk] = {}
        self.set_plans(plans)

    def set_plans(self, plans: Iterable[Plan]) -> None:
        """Make these from now on; `refresh` deals with what is new at once."""
        before = self._desks
        self._desks = {plan.order.domain: _Desk(plan) for plan in plans}
        for domain, desk in before.items():
            desk.stop.set()
            if domain in self._desks:
                self._desks[domain].problem = desk.problem
            else:
                self._alerts.clear(ALERT_KIND, domain)

    async def refresh(self) -> None:
        """Make every roster now, without waiting for quiet: at the start and on SIGHUP.

        Those with slow digests are begun.
        """
        async with self._busy:
            for desk in list(self._desks.values()):
                desk.seen = await asyncio.to_thread(_look_at, desk.plan.order)
                await self._begin(desk, desk.seen)

    async def run(self) -> None:
        """Look again and again, for ever. Cancelled, it stops what is being made."""
        try:
            while True:
                await self._wait(LOOK_EVERY_SECONDS)
                await self.look()
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop what is being made; what is in force stays."""
        for desk in self._desks.values():
            desk.stop.set()
        await self.finish_slow()

    async def finish_slow(self) -> None:
        """Wait for the builds in the background."""
        tasks = [desk.slow for desk in self._desks.values() if desk.slow is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self) -> None:
        """Look at all sources once, and make what is due."""
        async with self._busy:
            for desk in list(self._desks.values()):
                if desk.is_busy:
                    continue
                versions = await asyncio.to_thread(_look_at, desk.plan.order)
                quiet = versions == desk.seen
                desk.seen = versions
                if (quiet and versions != desk.built) or desk.is_due(self._now_s()):
                    await self._begin(desk, versions)

    async def _begin(self, desk: _Desk, versions: tuple[str, ...]) -> None:
        """Make it, or have it made in the background."""
        if not desk.is_slow:
            await self._make(desk, versions)
        elif not desk.is_busy:
            desk.slow = asyncio.create_task(self._make_slowly(desk, versions))

    async def _make_slowly(self, desk: _Desk, versions: tuple[str, ...]) -> None:
        async with self._busy_slowly:
            await self._make(desk, versions)

    async def _make(self, desk: _Desk, versions: tuple[str, ...]) -> None:
        domain = desk.plan.order.domain
        try:
            reports = await asyncio.to_thread(
                self._works.make, desk.plan.order, stopped=desk.stop.is_set
            )
        except asyncio.CancelledError:
            desk.stop.set()  # a thread cannot be cancelled, but told
            raise
        except StorageBusy:  # somebody types `roster build`: nothing is wrong
            desk.due_s = self._now_s() + _BUSY_SECONDS
            return
        except PosthouseError as error:
            desk.built = versions
            self._fail(desk, error)
            return
        desk.built = versions
        desk.pause_seconds = 0
        desk.due_s = self._now_s() + desk.interval()
        if desk.problem:
            desk.problem = ""
            self._alerts.clear(ALERT_KIND, domain)
        for report in reports:
            if report.published:
                observe.note("publish", _tell(report), domain=domain, serial=report.serial)
                for warning in report.warnings:
                    observe.note("publish", f"warning: {domain}: {warning}", domain=domain)

    def _fail(self, desk: _Desk, error: PosthouseError) -> None:
        domain = desk.plan.order.domain
        pause = desk.pause_seconds * 2 or FIRST_PAUSE_SECONDS
        desk.pause_seconds = min(pause, LONGEST_PAUSE_SECONDS)
        desk.due_s = self._now_s() + desk.pause_seconds
        if error.detail == desk.problem:
            return
        desk.problem = error.detail
        what = error.detail.removeprefix(f"{domain}: ")
        observe.trouble("publish", f"{domain}: the roster of before stays in force: {what}")
        remedy = (
            "if that is meant: posthouse roster build --accept-loss"
            if isinstance(error, PublishRefused)
            else "mend it; backups go on with the roster of before until that expires"
        )
        self._alerts.raise_(ALERT_KIND, domain, clean(what), remedy)

    # ------------------------------------------------------------------ for the door

    async def find(
        self, domain: str, key_id: str, *, since: int | None = None, if_none_match: str = ""
    ) -> RosterReply | None:
        """See `ports_publish.PublishedRosters`."""
        return await asyncio.to_thread(
            self._stock.find, domain, key_id, since=since, if_none_match=if_none_match
        )

    async def describe(self) -> Sequence[PublishedDomain]:
        """For `status` and for whoever watches: every domain, as it is in force. Never raises."""
        return [await asyncio.to_thread(self._describe, desk) for desk in self._desks.values()]

    def _describe(self, desk: _Desk) -> PublishedDomain:
        domain = desk.plan.order.domain
        problem = desk.problem
        found: list[RosterInForce | None] = []
        try:
            found += [self._stock.look(domain, roster_key_id(key)) for key in desk.plan.order.keys]
        except StorageError as error:
            problem = problem or error.detail
        return PublishedDomain(
            name=domain,
            rosters=tuple(roster for roster in found if roster is not None),
            tried=desk.built is not None,
            problem=problem,
            due_s=desk.due_s,
        )


def _look_at(order: RosterOrder) -> tuple[str, ...]:
    return tuple(source.get_version() for source in order.sources)


def _tell(report: BuildReport) -> str:
    changes = f", {report.added} in, {report.removed} out" if report.added >= 0 else ""
    return (
        f"{report.domain}: serial {report.serial} with {report.count} entries for key "
        f"{report.key_id}{changes}"
    )
