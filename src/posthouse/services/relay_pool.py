"""The sessions of one next hop: opened by demand, reused, closed when idle.

Free: as many as needed up to `concurrency`. While it drains: as a `Pace` allows,
and every reply counts (`relay_evidence`). Standing: those that are open carry on,
none is added.

One session first. More, up to `concurrency`, when the ready mail is more than
those can take soon, or when mail is stuck behind a slow peer. How one is opened
is `relay_walk`; who hears how it goes, `relay_leader`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from posthouse import observe
from posthouse.domain.drain import SurgeGuard
from posthouse.domain.pace import Pace
from posthouse.errors import NextHopFailure
from posthouse.ports_relay import Session, SessionEnd, Target, Transaction
from posthouse.services.relay_evidence import Evidence
from posthouse.services.relay_lane import Lane
from posthouse.services.relay_leader import Leader
from posthouse.services.relay_ledger import Timer
from posthouse.services.relay_means import Means
from posthouse.services.relay_queue import ReadyQueue
from posthouse.services.relay_targets import Failures
from posthouse.services.relay_walk import Walk, all_want_less, wants_less

MESSAGES_PER_SESSION: Final = 4
"""Ready messages that justify one more session: opening one costs about what four messages do."""


class SessionPool:
    """See the module. Sends while `queue` is open."""

    def __init__(self, key: str, means: Means, leader: Leader) -> None:
        self.key = key
        self.means = means
        self.queue = ReadyQueue(means, self.wake, self.see_whether_dry)
        self.evidence = Evidence(means, self.queue, leader, self.wake)
        self._standing = False
        self._served_before = 0  # over sessions that are gone
        self._leader = leader
        self._lanes: set[Lane] = set()
        self._resting: list[Lane] = []  # the last one is warmest
        self._opening = 0
        self._growth_paused = False
        self._stuck: Transaction | None = None
        self._tick_timer: Timer | None = None
        self._walk = Walk(means)
        self._openers: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Sessions open now."""
        return len(self._lanes)

    @property
    def in_hand(self) -> int:
        """Messages ready or under way."""
        return len(self.queue) + sum(lane.outstanding for lane in self._lanes)

    # ------------------------------------------------------------------ what the route asks

    @property
    def served(self) -> int:
        """Recipients delivered so far."""
        return self._served_before + sum(lane.served for lane in self._lanes)

    def free(self) -> None:
        """The next hop is up. A slow start that is under way goes on without a rate."""
        pace = self.queue.pace
        if pace is not None and pace.sessions < pace.limit and self.queue.is_open:
            pace = Pace(limit=pace.limit, sessions=pace.sessions)
        else:
            pace = None
        self.evidence.relax()
        self._go(pace)

    def drain(self, pace: Pace, guard: SurgeGuard | None) -> None:
        """The next hop is to be tried, or drained: slowly, and with an eye on every reply."""
        self.evidence.watch(guard)
        self._go(pace)

    def stand(self) -> None:
        """Nothing is known for certain: what is open carries on."""
        self._standing = True

    def _go(self, pace: Pace | None) -> None:
        self.queue.pace = pace
        self._standing = False
        if self.queue.is_open:
            self.wake()
            self.see_whether_dry()
            return
        self.evidence.forgive()
        self._growth_paused = False
        self._walk.forget()
        self.queue.open()

    def close(self) -> None:
        """The next hop takes none: sessions end once what is under way has its answers."""
        self.queue.pace = None
        self.evidence.relax()
        self._standing = False
        self.queue.close()
        self._resting.clear()
        for lane in self._lanes:
            lane.quit()

    def retire(self) -> None:
        """`close` for good: nothing is left behind but transactions under way."""
        self.close()
        if self._tick_timer is not None:
            self._tick_timer.cancel()
            self._tick_timer = None
        for task in self._openers:
            task.cancel()

    def keep_only(self, targets: Sequence[Target]) -> None:
        """End sessions that lead elsewhere."""
        for lane in self._lanes:
            if lane.session is not None and lane.session.target not in targets:
                lane.quit()

    # ------------------------------------------------------------------ what lanes tell

    def rest(self, lane: Lane) -> None:
        """See `relay_lane.Owner`."""
        self._resting.append(lane)

    def see_whether_dry(self) -> None:
        """Tell when nothing is left to drain."""
        if (
            self.evidence.watched
            and self.queue.dry
            and not any(lane.outstanding for lane in self._lanes)
        ):
            self._leader.dry()

    def slower(self, relay: str, reply: str) -> None:
        """See `relay_lane.Owner`: pause, and go on with fewer sessions."""
        if not self.queue.is_open:
            return
        seconds = self.evidence.slow_down(relay, reply, sessions=len(self._lanes))
        pace = self.queue.pace
        if not seconds or pace is None:
            return
        for lane in sorted(self._lanes, key=lambda lane: lane.outstanding)[pace.sessions :]:
            lane.quit()
        observe.note(
            "relay",
            f"{self.key}: {relay} wants less at a time ({reply}): pausing {seconds:g}s, "
            f"then {pace.sessions} sessions",
        )
        self.means.later(seconds, self.wake)

    # ------------------------------------------------------------------ opening

    def wake(self) -> None:
        """There may be ready mail: give it to resting sessions, open more if those are too few."""
        waiting = len(self.queue)
        if not waiting or self.means.ledger.full:
            return
        resting = self._resting
        poked = min(waiting, len(resting))
        for _ in range(poked):
            if not resting:
                break
            resting.pop().poke()
        left = min(len(self.queue), waiting - poked)
        if left > 0:
            self._grow(left)
        if self._tick_timer is None:
            self._arm_tick()

    def _grow(self, left: int) -> None:
        sessions = len(self._lanes) + self._opening
        if self._standing:
            return
        pace = self.queue.pace
        if pace is not None and pace.paused_us(self.means.clock_us()):
            return
        if not sessions:
            self._open_one()
        elif self._lanes and not self._growth_paused:
            wanted = min(self._limit(), left // MESSAGES_PER_SESSION)
            for _ in range(wanted - sessions):
                self._open_one()

    def _limit(self) -> int:
        """Sessions allowed: those that wait in vain do not count, up to as many again."""
        settings = self.means.settings
        ticks = settings.probe_interval_us / 1e6 / settings.idle_seconds
        still = sum(lane.still_ticks > ticks for lane in self._lanes)
        pace = self.queue.pace
        limit = settings.concurrency if pace is None else pace.sessions
        return limit + min(still, settings.concurrency)

    def _open_one(self) -> None:
        self._opening += 1
        task = self._start(self._open_session())
        self._openers.add(task)
        task.add_done_callback(self._openers.discard)

    async def _open_session(self) -> None:
        failures: list[tuple[Target, NextHopFailure]] = []
        try:
            way = await self._leader.find_way()
            opened = await self._walk.connect(way.targets, self._make_lane, failures)
        finally:
            self._opening -= 1
        if opened is not None:
            self._welcome(*opened)
        elif self._lanes:  # it serves us, only not with more sessions
            self._growth_paused = True
            self.means.later(self.means.settings.probe_interval_us / 1e6, self._resume_growth)
        elif self.queue.is_open and not self._opening:  # else another one is still trying
            if way.obstacle is not None:
                self._leader.obstructed(way)
            elif failures:
                self._turned_away(failures)

    def _turned_away(self, failures: Failures) -> None:
        """Nobody took us: too fast, or not at all?"""
        if not all_want_less(failures):
            self._leader.failed(failures)
            return
        target, failure = failures[-1]
        self.slower(f"{target.host}[{target.address}]:{target.port}", failure.reply_text)

    def _make_lane(self, target: Target) -> Lane | None:
        return Lane(self, target) if self.queue.is_open else None

    def _welcome(self, lane: Lane, session: Session) -> None:
        lane.session = session
        self._lanes.add(lane)
        self._start(self._watch(lane, session))
        if not self.queue.is_open:
            lane.quit()
            return
        lane.poke()
        self.wake()

    async def _watch(self, lane: Lane, session: Session) -> None:
        try:
            end = await session.wait_end()
        finally:
            self._lanes.discard(lane)
            self._served_before += lane.served
            if lane in self._resting:
                self._resting.remove(lane)
        if end.failure is not None:
            self._ended(lane, end)
        self.wake()

    def _ended(self, lane: Lane, end: SessionEnd) -> None:
        said = end.reply_text or end.failure or ""
        if end.stage == "auth":
            self.means.vouching.broke(lane.target)
        if end.stage == "mail" and end.reply_code:  # `finished` told the rest of it already
            if 500 <= end.reply_code <= 599 and self.queue.is_open:
                self._leader.refused_at_mail(
                    f"{lane.relay} refuses MAIL: {said}", 1, permanent=True
                )
        elif lane.useful:  # a limit of messages or errors in one session, or a restart
            pass
        elif end.reply_code and wants_less(end.reply_code, end.reply_text, "mail"):
            self.slower(lane.relay, said)
        else:
            self.evidence.stumbled(f"{lane.relay}: {said}")

    def _resume_growth(self) -> None:
        self._growth_paused = False
        self.wake()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self.means.start(work, f"{self.key}: session", self._leader.lost)

    # ------------------------------------------------------------------ the slow pulse

    def _arm_tick(self) -> None:
        self._tick_timer = self.means.later(self.means.settings.idle_seconds, self._tick)

    def _tick(self) -> None:
        """Close sessions that were idle for a whole tick; add one where mail is stuck."""
        self._tick_timer = None
        self._leader.ticked()
        for lane in self._lanes:
            if lane.outstanding:
                lane.still_ticks += 1
            if lane.idle:
                lane.quiet_ticks += 1
                if lane.quiet_ticks > 1 and not lane.leaving:
                    self._resting.remove(lane)
                    lane.quit()
        self._let_another_canary_go()
        head = self.queue.head
        sessions = len(self._lanes) + self._opening
        if (
            head is not None
            and head is self._stuck
            and self._lanes
            and not self._growth_paused
            and sessions < self._limit()
        ):
            self._open_one()
        self._stuck = head
        self.wake()
        if (self._lanes or head is not None) and self._tick_timer is None:
            self._arm_tick()

    def _let_another_canary_go(self) -> None:
        """A canary whose reply does not come must not keep everybody waiting for minutes."""
        pace, settings = self.queue.pace, self.means.settings
        ticks = settings.probe_interval_us / 1e6 / settings.idle_seconds
        if (
            pace is not None
            and pace.allowance == 0
            and all(lane.still_ticks > ticks for lane in self._lanes)
            and len(self._lanes) < settings.concurrency
        ):
            pace.allowance = 1
