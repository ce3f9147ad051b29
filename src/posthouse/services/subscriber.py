"""Keeps the rosters current: asks their sources, has what came checked, and says what is wrong.

One per node, in the control process. A source is asked again after the time that
its roster names, sooner after a failure; a failed attempt keeps what is in
force. A delta that does not fit is followed by the whole file at once. What an
operator must decide (a roster that shrank) is set aside and told once; what is
damaged is refused and told. 304 extends nothing: an old roster grows stale
though its primary answers.

The store does the checking, in threads; this duty knows when, and whom to tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from posthouse import observe
from posthouse.domain.instants import left_us
from posthouse.domain.refresh import DEFAULT_SECONDS, plan_refresh
from posthouse.domain.roster import DEFAULT_MAX_LOSS_PERCENT, Arrival
from posthouse.errors import PeerFailure, RosterRefused, StorageError
from posthouse.ports_alerts import AlertKind, AlertSink
from posthouse.ports_roster import (
    Fetched,
    RosterFacts,
    RosterKeys,
    RosterNote,
    RosterSource,
    RosterState,
    RosterStore,
    Taken,
)

TICK_SECONDS: Final = 1.0
# At once: a thousand primaries are asked one after the other rather than all together.
MAX_ATTEMPTS: Final = 4

REFUSED: Final = "roster-refused"
SET_ASIDE: Final = "roster-set-aside"
NOT_FETCHED: Final = "roster-not-fetched"


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """What to keep current. max_loss_percent: see domain.roster.judge_arrival."""

    keys: RosterKeys
    source: RosterSource
    max_loss_percent: int = DEFAULT_MAX_LOSS_PERCENT


class _Watch:
    """What the subscriber remembers of one domain."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.verified = False
        self.due_us = 0
        self.interval_us = 0
        self.failures = 0
        self.expires_us = 0
        self.refresh_seconds = DEFAULT_SECONDS
        self.told_stale: bool | None = None
        self.note = RosterNote(source=subscription.source.name)
        self.busy = asyncio.Lock()

    def waits(self, now_us: int) -> bool:
        """It is not to be asked yet; a clock that was set back puts off nothing."""
        return left_us(self.due_us, now_us, longest_us=self.interval_us) > 0

    @property
    def domain(self) -> str:
        return self.subscription.keys.domain


class Subscriber:
    """See the module."""

    def __init__(
        self,
        store: RosterStore,
        subscriptions: Iterable[Subscription],
        *,
        alerts: AlertSink,
        now_us: Callable[[], int],
        dice: Callable[[], float],
        wait: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """dice: gives numbers from [0, 1). wait: sleeps so many seconds."""
        self._store = store
        self._alerts = alerts
        self._now_us = now_us
        self._dice = dice
        self._wait = wait
        self._slots = asyncio.Semaphore(MAX_ATTEMPTS)
        self._attempts: set[asyncio.Task[str]] = set()
        self._watches: dict[str, _Watch] = {}
        self.set_subscriptions(subscriptions)

    def set_subscriptions(self, subscriptions: Iterable[Subscription]) -> None:
        """Watch these from now on; `refresh` deals with them at once."""
        known = self._watches
        self._watches = {}
        for subscription in subscriptions:
            domain = subscription.keys.domain
            watch = known.pop(domain, None)
            if watch is None:
                watch = _Watch(subscription)
            else:
                watch.subscription = subscription
                watch.note = msgspec.structs.replace(watch.note, source=subscription.source.name)
            self._watches[domain] = watch
        for domain in known:
            for kind in (REFUSED, SET_ASIDE, NOT_FETCHED, AlertKind.LIST_STALE):
                self._alerts.clear(kind, domain)

    async def refresh(self, domain: str = "") -> Mapping[str, str]:
        """Ask now; "" asks all. Returns by domain what became of it, in words.

        Rosters of domains that are no longer watched are removed.
        """
        if not domain:
            try:
                await asyncio.to_thread(self._store.keep_only, list(self._watches))
            except StorageError as error:
                observe.trouble("rosters", "old rosters stay on disk", error)
        watches = [watch for name, watch in self._watches.items() if domain in ("", name)]
        words = await asyncio.gather(*map(self._attempt, watches))
        return {watch.domain: said for watch, said in zip(watches, words, strict=True)}

    async def run(self) -> None:
        """Ask whoever is due, for ever."""
        try:
            while True:
                now_us = self._now_us()
                for watch in list(self._watches.values()):
                    if not watch.waits(now_us) and not watch.busy.locked():
                        task = asyncio.ensure_future(self._attempt(watch))
                        self._attempts.add(task)
                        task.add_done_callback(self._attempts.discard)
                    self._tell_age(watch, now_us)
                await self._wait(TICK_SECONDS)
        finally:
            for task in self._attempts:
                task.cancel()
            await asyncio.gather(*self._attempts, return_exceptions=True)

    # ------------------------------------------------------------------ what operators say

    async def accept(self, domain: str, serial: int) -> RosterFacts:
        """Put what was set aside in force.

        Raises KeyError when there is no such domain or serial, RosterRefused, StorageError.
        """
        watch = self._watches[domain]
        async with watch.busy:
            facts = await asyncio.to_thread(
                self._store.accept,
                watch.subscription.keys,
                serial,
                now_us=self._now_us(),
            )
        self._note_state(watch, RosterState(in_force=facts))
        observe.note("rosters", f"{domain}: serial {serial} accepted by an operator, in force")
        return facts

    async def reset_serial(self, domain: str) -> None:
        """Let a lower serial pass, and ask anew. Raises KeyError, StorageError."""
        watch = self._watches[domain]
        async with watch.busy:
            await asyncio.to_thread(self._store.forget_serials, domain)
        self._alerts.clear(SET_ASIDE, domain)
        watch.due_us = 0
        observe.note("rosters", f"{domain}: known serials forgotten by an operator")

    # ------------------------------------------------------------------ one attempt

    async def _attempt(self, watch: _Watch) -> str:
        """Ask the source of one domain; returns what became of it, in words. Never raises."""
        async with watch.busy, self._slots:
            asked_us = self._now_us()
            retry_after: int | None = None
            problem = stage = words = ""
            try:
                state = await self._get_state(watch)
                words = await self._ask(watch, state)
                if words:
                    self._clear_trouble(watch)
                else:  # refused before, and the same still
                    problem, stage = watch.note.problem, watch.note.stage
            except RosterRefused as error:
                stage = "check"
                problem = f"refused ({error.check}): {error.detail}"
                self._tell_refused(watch, problem)
            except (PeerFailure, StorageError) as error:
                problem = error.detail
                stage = error.stage if isinstance(error, PeerFailure) else "storage"
                retry_after = getattr(error, "retry_after_seconds", None)
                if retry_after is None or watch.failures:
                    self._tell_not_fetched(watch, problem)
            except Exception as error:  # our own fault; the next attempt may go better
                problem = f"failed: {error!r}"
                observe.trouble("rosters", f"{watch.domain}: attempt failed", error)
            watch.failures = watch.failures + 1 if problem else 0
            await self._plan(watch, asked_us, (problem, stage), retry_after)
            return words or problem

    async def _get_state(self, watch: _Watch) -> RosterState:
        """What lies on disk; checked to the last octet the first time."""
        if watch.verified:
            return await asyncio.to_thread(self._store.get_state, watch.domain)
        state = await asyncio.to_thread(self._store.verify, watch.subscription.keys)
        watch.verified = True
        return state

    async def _ask(self, watch: _Watch, state: RosterState) -> str:
        """Fetch and take in. "" when there is nothing but what was refused before."""
        keys = watch.subscription.keys
        in_force = state.in_force
        readable = in_force is not None and in_force.known.key_id in keys.roster_key_ids
        serial = in_force.known.serial if in_force is not None and readable else 0
        try:
            taken = await self._fetch(watch, serial, whole=False)
        except RosterRefused as error:
            if error.check != "delta":
                raise
            observe.note("rosters", f"{watch.domain}: delta not used: {error.detail}")
            taken = await self._fetch(watch, serial, whole=True)
        if isinstance(taken, Fetched):
            self._note_state(watch, state)
            return "not modified" if taken is Fetched.NOT_MODIFIED else ""
        return self._tell_taken(watch, state, taken)

    async def _fetch(self, watch: _Watch, serial: int, *, whole: bool) -> Taken | Fetched:
        subscription = watch.subscription
        intake = self._store.begin(watch.domain)
        try:
            fetched = await subscription.source.fetch(intake, serial=serial, whole=whole)
            if fetched is not Fetched.NEW:
                return fetched
            try:
                taken = await asyncio.to_thread(
                    self._store.take_in,
                    intake,
                    subscription.keys,
                    now_us=self._now_us(),
                    max_loss_percent=subscription.max_loss_percent,
                )
            except RosterRefused:
                subscription.source.settle(good=False)
                raise
            subscription.source.settle(good=True)
            return taken
        finally:
            intake.discard()

    async def _plan(
        self, watch: _Watch, asked_us: int, failed: tuple[str, str], retry_after: int | None
    ) -> None:
        """Leave word, and say when to ask again. failed: in words, and where; or "", ""."""
        problem, stage = failed
        interval = watch.subscription.source.interval_seconds
        if interval is None:
            interval = plan_refresh(
                watch.refresh_seconds,
                failures=watch.failures,
                dice=self._dice(),
                retry_after=retry_after,
            )
        now_us = self._now_us()
        watch.interval_us = int(interval * 1_000_000)
        watch.due_us = now_us + watch.interval_us
        note = RosterNote(
            source=watch.note.source,
            asked_us=asked_us,
            answered_us=watch.note.answered_us if problem else now_us,
            next_us=watch.due_us,
            problem=problem,
            stage=stage,
        )
        quiet = watch.subscription.source.interval_seconds is not None
        if not quiet or problem != watch.note.problem or not watch.note.asked_us:
            await asyncio.to_thread(self._store.leave_note, watch.domain, note)
        watch.note = note
        self._tell_age(watch, now_us)

    # ------------------------------------------------------------------ who must know

    def _note_state(self, watch: _Watch, state: RosterState) -> None:
        facts = state.in_force
        watch.refresh_seconds = facts.refresh_seconds if facts else DEFAULT_SECONDS
        watch.expires_us = facts.expires_s * 1_000_000 if facts else 0
        aside = state.set_aside
        if aside is None:
            self._alerts.clear(SET_ASIDE, watch.domain)
            return
        serial = aside.known.serial
        self._alerts.raise_(
            SET_ASIDE,
            watch.domain,
            f"roster {serial} of {watch.domain} is set aside: {aside.why}",
            f"ask the primary whether that is meant; then: "
            f"posthouse roster accept {watch.domain} {serial}",
            since_us=aside.taken_us,
        )

    def _tell_taken(self, watch: _Watch, state: RosterState, taken: Taken) -> str:
        domain, known = watch.domain, taken.facts.known
        if taken.arrival is Arrival.SET_ASIDE:
            self._note_state(watch, RosterState(in_force=state.in_force, set_aside=taken.facts))
            observe.alert("rosters", f"{domain}: {known.serial} set aside: {taken.why}")
            return f"serial {known.serial} set aside: {taken.why}"
        if taken.arrival is Arrival.NOT_MODIFIED:
            self._note_state(watch, state)
            return "not modified"
        self._note_state(watch, RosterState(in_force=taken.facts))
        words = f"serial {known.serial} in force, {known.count} entries"
        observe.note("rosters", f"{domain}: {words}, from {watch.subscription.source.name}")
        return words

    def _clear_trouble(self, watch: _Watch) -> None:
        self._alerts.clear(REFUSED, watch.domain)
        self._alerts.clear(NOT_FETCHED, watch.domain)

    def _tell_refused(self, watch: _Watch, problem: str) -> None:
        self._alerts.clear(NOT_FETCHED, watch.domain)
        if problem != watch.note.problem:
            observe.alert("rosters", f"{watch.domain}: roster {problem}", domain=watch.domain)
        self._alerts.raise_(
            REFUSED,
            watch.domain,
            f"a roster of {watch.domain} from {watch.subscription.source.name} was {problem}",
            "the roster of before stays in force; ask the primary to publish a good one",
        )

    def _tell_not_fetched(self, watch: _Watch, problem: str) -> None:
        if problem != watch.note.problem:
            observe.note("rosters", f"{watch.domain}: not fetched: {problem}")
        self._alerts.raise_(
            NOT_FETCHED,
            watch.domain,
            f"the roster of {watch.domain} cannot be had from "
            f"{watch.subscription.source.name}: {problem}",
            "the roster of before stays in force until it expires; see that the source answers",
        )

    def _tell_age(self, watch: _Watch, now_us: int) -> None:
        stale = watch.expires_us > 0 and now_us >= watch.expires_us
        if stale is watch.told_stale:
            return
        watch.told_stale = stale
        if stale:
            self._alerts.raise_(
                AlertKind.LIST_STALE,
                watch.domain,
                f"the roster of {watch.domain} has expired: it refuses nobody any more",
                "see why no newer one can be had: posthouse status",
                since_us=watch.expires_us,
            )
        else:
            self._alerts.clear(AlertKind.LIST_STALE, watch.domain)

    def describe(self) -> Mapping[str, Mapping[str, Any]]:
        """For `status`, by domain: what was asked, when, and what is wrong."""
        return {
            domain: msgspec.structs.asdict(watch.note) for domain, watch in self._watches.items()
        }
