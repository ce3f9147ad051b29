"""One next hop on the board: its state, its probes, its canary.

What each event does to the state is the table in `posthouse.domain.drain`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from posthouse import observe
from posthouse.domain.drain import (
    PROBED,
    Event,
    Health,
    State,
    SurgeGuard,
    move,
)
from posthouse.domain.nexthop import WAITS, HostPort, is_fetched, patience_seconds, probe_delay_us
from posthouse.errors import NextHopFailure
from posthouse.ports import Connector, Resolver
from posthouse.ports_drain import Experience, Follower, NextHopView, Order
from posthouse.services.relay_ledger import Later, Timer
from posthouse.services.relay_settings import CONDITIONS, RelaySettings
from posthouse.services.relay_targets import Way, find_way, judge_failures

RECENT_US: Final = 5_000_000
"""A delivery this long ago speaks for a next hop against one relay that cannot connect."""

MAX_PROBES: Final = 50
"""Probes at once, all next hops together: a node of thousands starts without a storm."""

START_SECONDS: Final = 10.0
"""How long after its start a board waits for relays that do not come."""

MAX_KNOWN: Final = 3
"""Addresses a probe asks for, besides postmaster."""


@dataclass(slots=True, kw_only=True)
class BoardMeans:
    """What all entries share. `changed` hears of every change of a state or its reason.

    expected: see `NextHopBoard`; it counts for START_SECONDS.
    """

    connector: Connector
    resolver: Resolver
    settings: RelaySettings
    clock_us: Callable[[], int]
    dice: random.Random
    later: Later
    start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    changed: Callable[[Entry], None]
    expected: int = 1
    probes: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_PROBES))


@dataclass(slots=True)
class _Share:
    """One follower. drained: nothing waits there in this round."""

    delivered_us: int = 0
    drained: bool = False


class Entry:
    """See the module."""

    def __init__(
        self,
        key: str,
        means: BoardMeans,
        hops: tuple[HostPort, ...],
        domains: tuple[str, ...],
        health: Health,
    ) -> None:
        self.key = key
        self.domains = domains
        self.health = health
        self._means = means
        self._hops = hops
        self._followers: dict[Follower, _Share] = {}
        self._canary: Follower | None = None
        self._guard = _make_guard(means.settings)
        self._known: tuple[str, ...] = ()
        self._trusting = False  # the operator wants a canary whatever RCPT is answered
        self._timer: Timer | None = None
        self._probe: asyncio.Task[None] | None = None
        self._next_probe_us: int | None = None
        self._retired = False
        self._complete = means.expected <= 1
        if not self._complete:
            means.later(START_SECONDS, self._wait_no_longer)

    def begin(self) -> None:
        """Look now when it is not known to be up."""
        if self.health.state in PROBED:
            self.probe_now()
        elif self.health.state is State.UP:
            self._watch()

    def retire(self) -> None:
        """Probe no more."""
        self._retired = True
        self._cancel_probe()

    def view(self) -> NextHopView:
        """See `NextHopView`."""
        health = self.health
        return NextHopView(
            next_hop=self.key,
            domains=self.domains,
            state=health.state,
            since_us=health.since_us,
            why=health.why,
            next_probe_us=self._next_probe_us,
            guarded=health.guarded,
        )

    # ------------------------------------------------------------------ followers

    def follow(self, follower: Follower, *, delivering: bool = False) -> None:
        """Serve one more."""
        self._followers[follower] = _Share(delivered_us=self._means.clock_us() if delivering else 0)
        self._complete = self._complete or len(self._followers) >= self._means.expected
        if delivering and self.health.state in (State.SUSPECT, State.CANARY):
            self.change(Event.PROVEN, "")  # tells this one too
            return
        if self.health.state is State.CANARY and self._canary is None:
            self._canary = follower
        follower.obey(self._order(follower))

    def _wait_no_longer(self) -> None:
        self._complete = True
        if self._retired:
            return
        if self.health.state is State.CANARY and self._canary is None:
            self._next_canary()
        elif self.health.state is State.DRAINING:
            self._see_whether_drained()

    def leave(self, follower: Follower) -> None:
        """Serve one less; a canary it had goes to the next."""
        if self._followers.pop(follower, None) is None:
            return
        if self._canary is follower:
            self._canary = None
            if self._followers:
                self._next_canary()
        elif self.health.state is State.DRAINING:
            self._see_whether_drained()

    def hear(self, follower: Follower, experience: Experience) -> None:
        """Take what one of them learned."""
        share = self._followers.get(follower)
        if share is None or self._retired:
            return
        if experience.known:
            self._known = experience.known[:MAX_KNOWN]
        if experience.delivered or experience.refused:
            self._count(share, experience)
        event = experience.event
        if event is None or experience.round != self.health.round:
            return
        match event:
            case Event.DRAINED:
                self._hear_drained(follower, share)
            case Event.LOST if self._others_deliver(follower):
                follower.obey(msgspec.structs.replace(self._order(follower), rest=True))
            case Event.PROVEN if follower is not self._canary:
                pass
            case _:
                self.change(event, experience.why, experience.probe_delay_us)

    def _count(self, share: _Share, experience: Experience) -> None:
        if experience.delivered:
            share.delivered_us = self._means.clock_us()
            if self.health.state is State.SUSPECT and experience.round == self.health.round:
                self.change(Event.PROVEN, "")
        if not self.health.guarded or self.health.state not in (State.CANARY, State.DRAINING):
            return
        guard = self._guard
        for _ in range(min(experience.delivered, guard.window)):
            guard.note(refused=False)
        too_many = [guard.note(refused=True) for _ in range(experience.refused)]
        if any(too_many):
            self.change(Event.SURGE, _tell_surge(guard, experience.why))

    def _others_deliver(self, follower: Follower) -> bool:
        if self.health.state not in (State.UP, State.DRAINING):
            return False
        since_us = self._means.clock_us() - RECENT_US
        return any(
            share.delivered_us >= since_us
            for other, share in self._followers.items()
            if other is not follower
        )

    def _hear_drained(self, follower: Follower, share: _Share) -> None:
        share.drained = True
        if self.health.state is State.CANARY and follower is self._canary:
            self._next_canary()
        elif self.health.state is State.DRAINING:
            self._see_whether_drained()

    def _see_whether_drained(self) -> None:
        if self._complete and all(share.drained for share in self._followers.values()):
            self.change(Event.DRAINED, "")

    def _next_canary(self) -> None:
        """Let the next one send that may have mail; nobody has any: nothing is to be proven."""
        for follower, share in self._followers.items():
            if not share.drained:
                self._canary = follower
                follower.obey(self._order(follower))
                return
        self._canary = None
        if self._complete:
            self.change(Event.DRAINED, "")

    def _order(self, follower: Follower) -> Order:
        return Order(
            next_hop=self.key,
            health=self.health,
            canary=follower is self._canary and self.health.state is State.CANARY,
            next_probe_us=self._next_probe_us,
        )

    # ------------------------------------------------------------------ state

    def change(self, event: Event, why: str, probe_delay_us: int | None = None) -> None:
        """Apply an event, tell everybody, see to the next probe."""
        if self._retired:
            return
        if event is Event.LOST and is_fetched(self.key):
            why = WAITS  # not that its socket is not there
        before = self.health
        after = self.health = move(before, event, now_us=self._means.clock_us(), why=why)
        if after.state is not before.state:
            self._enter(after, why)
        if after.state is State.UP:
            self._watch()
        elif after.state not in PROBED:
            self._cancel_probe()
        elif after.state is not before.state or self._timer is None or probe_delay_us is not None:
            self._arm(probe_delay_us)
        if after is before:
            return
        self._means.changed(self)
        for follower in tuple(self._followers):
            # What one of them does at once may change the state: that order was newer.
            if self.health is not after:
                return
            follower.obey(self._order(follower))

    def resume(self, *, guarded: bool) -> None:
        """See `NextHopBoard.resume`."""
        if self._retired:
            return
        if self.health.guarded and not guarded:
            self.health = msgspec.structs.replace(self.health, guarded=False)
        self._trusting = True
        self.change(Event.RESUME, "resumed by the operator")
        self.probe_now()

    def _enter(self, after: Health, why: str) -> None:
        state = after.state
        self._canary = None
        if state in (State.CANARY, State.DRAINING):
            for share in self._followers.values():
                share.drained = False
        if state is State.CANARY:
            self._trusting = False
            self._guard = _make_guard(self._means.settings)
            self._canary = next(iter(self._followers), None)
        observe.next_hop_changed(self.key, state, why)
        kind = CONDITIONS.get(state)
        if kind is not None and state not in (State.DOWN, State.SUSPENDED):
            observe.alert(kind, f"next hop {self.key} is {state}: {why}")

    # ------------------------------------------------------------------ probing

    def probe_now(self) -> None:
        """Probe unless mail flows; one that hangs must not outlast a person's wish."""
        if self._retired or self.health.state not in PROBED:
            return
        self._cancel_probe()
        self._probe = self._means.start(self._run_probe())

    def _watch(self) -> None:
        """Look again after a while, lest an outage be learned from the first message."""
        self._cancel_probe()
        interval_us = self._means.settings.watch_interval_us
        if interval_us:
            delay_us = probe_delay_us(interval_us, self._means.dice.random)
            self._timer = self._means.later(delay_us / 1e6, self._look_idle)

    def _look_idle(self) -> None:
        self._timer = None
        if self._retired or self.health.state is not State.UP:
            return
        since_us = self._means.clock_us() - self._means.settings.watch_interval_us
        if any(share.delivered_us >= since_us for share in self._followers.values()):
            self._watch()
        else:
            self._probe = self._means.start(self._run_probe())

    def _cancel_probe(self) -> None:
        self._next_probe_us = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._probe is not None and self._probe is not asyncio.current_task():
            self._probe.cancel()
        self._probe = None

    def _arm(self, delay_us: int | None) -> None:
        if delay_us is None:
            interval_us = self._means.settings.probe_interval_us
            delay_us = probe_delay_us(interval_us, self._means.dice.random)
        self._cancel_probe()
        self._next_probe_us = self._means.clock_us() + delay_us
        self._timer = self._means.later(delay_us / 1e6, self.probe_now)

    async def _run_probe(self) -> None:
        try:
            async with self._means.probes:
                event, why = await self._look()
        except Exception as error:  # a supervised task: the next probe may do better
            observe.trouble("drain", f"{self.key}: probe", error)
            event, why = Event.LOST, f"local error: {type(error).__name__}"
        if self._probe is asyncio.current_task():
            self._probe = None
            self.change(event, why)

    async def _look(self) -> tuple[Event, str]:
        """Ask DNS, then each place in turn."""
        way = await self._find_way()
        if way.obstacle is not None:
            return (Event.LOST if way.obstacle.temporary else Event.NO_WAY), way.text
        seconds = patience_seconds(self._means.settings.probe_interval_us)
        addresses = (*self._known, f"postmaster@{self.domains[0]}")
        failures = []
        for target in way.targets:
            try:
                try:
                    async with asyncio.timeout(seconds):
                        replies = await self._means.connector.probe(target, addresses)
                except TimeoutError:
                    raise NextHopFailure("no answer to a probe", stage="session") from None
            except NextHopFailure as failure:
                failures.append((target, failure))
                continue
            place = f"{target.host}[{target.address}]"
            if self._known and not self._trusting and _all_refused(replies):
                return Event.REFUSED, (
                    f"{place} answers, but refuses all of {len(replies)} addresses "
                    f"that should exist: {replies[0][1]}"
                )
            return Event.GREETED, f"{place} answers"
        return judge_failures(failures)

    async def _find_way(self) -> Way:
        means = self._means
        return await find_way(
            means.resolver,
            domain=self.domains[0],
            hops=self._hops,
            settings=means.settings,
            shuffle=means.dice.shuffle,
        )


def _all_refused(replies: Sequence[tuple[int, str]]) -> bool:
    return len(replies) > 1 and all(500 <= code <= 599 for code, _ in replies)


def _make_guard(settings: RelaySettings) -> SurgeGuard:
    return SurgeGuard(
        share=settings.surge_share, window=settings.surge_window, least=settings.surge_least
    )


def _tell_surge(guard: SurgeGuard, why: str) -> str:
    return f"{guard.refused} of the last {len(guard)} replies refused mail for good: {why}"
