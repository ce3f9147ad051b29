"""The sessions of one next hop: opened by demand, reused, closed when idle.

Free: as many as needed up to `concurrency`. While it drains: as a `Pace` allows,
and a `SurgeGuard` looks at every reply. Standing: those that are open carry on,
none is added.

One session first. More, up to `concurrency`, when the ready mail is more than
those can take soon, or when mail is stuck behind a slow peer. Equal targets
share the load because each session walks the list anew; a target that failed
a moment ago is tried last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Final, Protocol

from posthouse import observe
from posthouse.domain.drain import SurgeGuard
from posthouse.domain.nexthop import patience_seconds
from posthouse.domain.pace import Pace
from posthouse.domain.replies import Effect, classify_reply
from posthouse.errors import NextHopFailure
from posthouse.ports import Session, SessionEnd, Target, Transaction
from posthouse.services.relay_lane import Lane
from posthouse.services.relay_ledger import Timer
from posthouse.services.relay_means import Means
from posthouse.services.relay_queue import ReadyQueue
from posthouse.services.relay_targets import Failures, Way

MESSAGES_PER_SESSION: Final = 4
"""Ready messages that justify one more session: opening one costs about what four messages do."""

MAX_STUMBLES: Final = 5
"""Sessions that broke, or MAILs that were deferred, in a row before anything was delivered."""

MAX_SLOWED: Final = 6
"""Pauses asked for in a row before anything was delivered: two minutes of patience."""

MAX_PUT_OFF: Final = 3
"""Canaries that were put off as greylisting does: such a next hop works."""

MAX_SENDERS: Final = 1000
SENDER_US: Final = 60_000_000
FULL_ROUNDS: Final = 5  # 1, 2, 4, 8, 16, then 32 senders a probe; only then do delays double
CALM_US: Final = 600_000_000  # without a probe about senders: the next refusal asks at once

MAX_STRIKES: Final = 1000
"""Messages remembered for having come back without an outcome."""


class Leader(Protocol):
    """Who decides what the pool's experience means for the next hop."""

    async def find_way(self) -> Way:
        """Where to connect now."""

    def obstructed(self, way: Way) -> None:
        """DNS leaves no target."""

    def failed(self, failures: Failures) -> None:
        """No target took us, and no session is open."""

    def refused_at_mail(self, why: str, refusals: int, *, permanent: bool) -> None:
        """MAILs were refused that a probe must explain; `refusals` >= 1 sets its delay."""

    def lost(self, why: str) -> None:
        """Nothing gets through, or we failed ourselves."""

    def surged(self, why: str) -> None:
        """Too many refusals for good."""

    def refused_for_good(self, why: str) -> None:
        """One more refusal for good while it drains."""

    def proven(self) -> None:
        """The canary came home."""

    def dry(self) -> None:
        """Nothing is due and nothing under way."""

    def ticked(self) -> None:
        """Another `idle_seconds` went by with sessions open."""


class SessionPool:
    """See the module. Sends while `queue` is open."""

    def __init__(self, key: str, means: Means, leader: Leader) -> None:
        self.key = key
        self.means = means
        self.queue = ReadyQueue(means, self.wake, self.see_whether_dry)
        self.pace: Pace | None = None
        self.watched = False
        self._guard: SurgeGuard | None = None
        self._standing = False
        self._put_off = 0
        self._slowed = 0
        self._served_before = 0  # over sessions that are gone
        self._leader = leader
        self._lanes: set[Lane] = set()
        self._resting: list[Lane] = []  # the last one is warmest
        self._opening = 0
        self._growth_paused = False
        self._stuck: Transaction | None = None
        self._tick_timer: Timer | None = None
        self._stumbles = 0
        self.refused_senders: dict[str, tuple[int, str]] = {}  # until when, and the reply
        self._doubted: dict[str, int] = {}  # senders refused at least once, until when it counts
        self._refusals = 0  # of distinct senders, since a delivery or the last round
        self._rounds = 0  # how often a probe was asked to explain them
        self._round_us = 0
        self._strikes: dict[int, int] = {}
        self._unreachable: dict[Target, int] = {}
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
        pace = self.pace
        if pace is not None and pace.sessions < pace.limit and self.queue.is_open:
            pace = Pace(limit=pace.limit, sessions=pace.sessions)
        else:
            pace = None
        self._set(pace, None, watched=False)

    def drain(self, pace: Pace, guard: SurgeGuard | None) -> None:
        """The next hop is to be tried, or drained: slowly, and with an eye on every reply."""
        self._put_off = 0
        self._set(pace, guard, watched=True)

    def stand(self) -> None:
        """Nothing is known for certain: what is open carries on."""
        self._standing = True

    def _set(self, pace: Pace | None, guard: SurgeGuard | None, *, watched: bool) -> None:
        self.pace = self.queue.pace = pace
        self._guard = guard
        self.watched = watched
        self._standing = False
        if self.queue.is_open:
            self.wake()
            self.see_whether_dry()
            return
        self._stumbles = self._slowed = 0
        self._growth_paused = False
        self._unreachable.clear()
        self.queue.open()

    def close(self) -> None:
        """The next hop takes none: sessions end once what is under way has its answers."""
        self.pace = self.queue.pace = self._guard = None
        self.watched = self._standing = False
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

    def delivered(self) -> None:
        """See `relay_lane.Owner`."""
        self._stumbles = self._refusals = self._slowed = 0
        if self._rounds > FULL_ROUNDS:
            self._rounds = FULL_ROUNDS
        if self.pace is not None:
            self._delivered_at(self.pace)

    def _delivered_at(self, pace: Pace) -> None:
        if self._guard is not None:
            self._guard.note(refused=False)
        if pace.allowance is not None:
            self._leader.proven()
        elif pace.delivered():
            self.wake()
        if pace.full and not self.watched:
            self.pace = self.queue.pace = None

    def held_for_good(self, relay: str, reply: str) -> None:
        """See `relay_lane.Owner`."""
        why = f"{relay}: {reply}"
        self.unproven()
        self._leader.refused_for_good(why)
        guard = self._guard
        if guard is not None and guard.note(refused=True):
            self._leader.surged(
                f"{guard.refused} of the last {len(guard)} replies refused mail for good: {why}"
            )

    def put_off(self, *, proves: bool) -> None:
        """See `relay_lane.Owner`."""
        if self._guard is not None:
            self._guard.note(refused=False)
        self._put_off += proves
        if self._put_off >= MAX_PUT_OFF and self.pace is not None and self.pace.allowance == 0:
            self._leader.proven()
        else:
            self.unproven()

    def unproven(self) -> None:
        """See `relay_lane.Owner`: the next message may be the canary."""
        if self.pace is not None and self.pace.allowance == 0:
            self.pace.allowance = 1

    def see_whether_dry(self) -> None:
        """Tell when nothing is left to drain."""
        if self.watched and self.queue.dry and not any(lane.outstanding for lane in self._lanes):
            self._leader.dry()

    def slower(self, relay: str, reply: str) -> None:
        """See `relay_lane.Owner`: pause, and go on with fewer sessions."""
        if not self.queue.is_open:
            return
        now_us = self.means.clock_us()
        if self.pace is None:
            limit = self.means.settings.concurrency
            self.pace = self.queue.pace = Pace(limit=limit, sessions=max(1, len(self._lanes)))
        if self.pace.paused_us(now_us):
            return
        self._slowed += 1
        if self._slowed > MAX_SLOWED:
            self._leader.lost(f"nothing gets through: {relay}: {reply}")
            return
        seconds = self.pace.slower(now_us) / 1e6
        for lane in sorted(self._lanes, key=lambda lane: lane.outstanding)[self.pace.sessions :]:
            lane.quit()
        observe.note(
            "relay",
            f"{self.key}: {relay} wants less at a time ({reply}): pausing {seconds:g}s, "
            f"then {self.pace.sessions} sessions",
        )
        self.means.later(seconds, self.wake)

    def refused(self, relay: str, reply: str, sender: str, *, permanent: bool) -> None:
        """See `relay_lane.Owner`.

        The first refusal stops the drain for a quick probe with the null sender. Where that
        passes, senders are meant: one refused twice is passed over for a minute, and twice as
        many as before may be refused until the next probe.
        """
        now_us = self.means.clock_us()
        known = self._doubted.get(sender, 0) > now_us
        senders = self.refused_senders
        if known:
            if len(senders) >= MAX_SENDERS:
                del senders[next(iter(senders))]
            senders[sender] = (now_us + SENDER_US, reply)
        if len(self._doubted) >= MAX_SENDERS:
            del self._doubted[next(iter(self._doubted))]
        self._doubted[sender] = now_us + 2 * SENDER_US
        if known or not self.queue.is_open:
            return
        if now_us - self._round_us > CALM_US:
            self._rounds = 0
        self._refusals += 1
        full_rounds = min(self._rounds, FULL_ROUNDS)
        if self._refusals >= max(1 << full_rounds, 1 if permanent else MAX_STUMBLES):
            self._refusals = 0
            self._rounds += 1
            self._round_us = now_us
            delays = max(1, self._rounds - FULL_ROUNDS)
            why = f"{relay} refuses MAIL: {reply}"
            self._leader.refused_at_mail(why, delays, permanent=permanent)

    def forget_refusals(self) -> None:
        """Try every sender again."""
        self.refused_senders.clear()
        self._doubted.clear()

    def stumbled(self, why: str) -> None:
        """See `relay_lane.Owner`."""
        if self.queue.is_open:
            self._stumbles += 1
            if self._stumbles >= MAX_STUMBLES:
                self._leader.lost(f"nothing gets through: {why}")

    def strike(self, queue_id: int) -> int:
        """See `relay_lane.Owner`."""
        strikes = self._strikes
        count = strikes.pop(queue_id, 0) + 1
        if count < 2:
            if len(strikes) >= MAX_STRIKES:
                del strikes[next(iter(strikes))]
            strikes[queue_id] = count
        return count

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
        if self.pace is not None and self.pace.paused_us(self.means.clock_us()):
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
        limit = settings.concurrency if self.pace is None else self.pace.sessions
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
            opened = await self._connect_first(way.targets, failures)
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
        for _, failure in failures:
            meaning = classify_reply(failure.reply_code, failure.reply_text, failure.stage)
            if meaning.effect is not Effect.SLOWER:
                self._leader.failed(failures)
                return
        target, failure = failures[-1]
        self.slower(f"{target.host}[{target.address}]:{target.port}", failure.reply_text)

    async def _connect_first(
        self, targets: Sequence[Target], failures: list[tuple[Target, NextHopFailure]]
    ) -> tuple[Lane, Session] | None:
        """Connect to the first target that greets us; failures are added to the list."""
        seconds = patience_seconds(self.means.settings.probe_interval_us)
        for target in self._lucky_first(targets):
            if not self.queue.is_open:
                return None
            lane = Lane(self, target)
            try:
                try:
                    async with asyncio.timeout(seconds):
                        return lane, await self.means.connector.connect(target, lane)
                except TimeoutError:
                    raise NextHopFailure("slow to greet", stage="greeting") from None
            except NextHopFailure as failure:
                failures.append((target, failure))
                self._unreachable[target] = (
                    self.means.clock_us() + self.means.settings.probe_interval_us
                )
        return None

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
        elif end.reply_code and _wants_less(end):
            self.slower(lane.relay, said)
        else:
            self.stumbled(f"{lane.relay}: {said}")

    def _resume_growth(self) -> None:
        self._growth_paused = False
        self.wake()

    def _lucky_first(self, targets: Sequence[Target]) -> list[Target]:
        now_us = self.means.clock_us()
        self._unreachable = {t: until for t, until in self._unreachable.items() if until > now_us}
        return sorted(targets, key=lambda target: target in self._unreachable)

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
        pace, settings = self.pace, self.means.settings
        ticks = settings.probe_interval_us / 1e6 / settings.idle_seconds
        if (
            pace is not None
            and pace.allowance == 0
            and all(lane.still_ticks > ticks for lane in self._lanes)
            and len(self._lanes) < settings.concurrency
        ):
            pace.allowance = 1


def _wants_less(end: SessionEnd) -> bool:
    return classify_reply(end.reply_code, end.reply_text, "mail").effect is Effect.SLOWER
