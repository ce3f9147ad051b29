"""One next hop: its state, and the probes that bring it back.

Domains with the same list of fixed places share one route; a domain that
follows its MX has its own. Each route works by itself: one that is slow or
dead takes nothing from the others but the memory of a timer. What each event
does to the state is the table in `posthouse.domain.nexthop`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from posthouse import observe
from posthouse.domain.nexthop import (
    Event,
    Health,
    HostPort,
    State,
    move,
    patience_seconds,
    probe_delay_us,
    quick_probe_delay_us,
)
from posthouse.errors import NextHopFailure
from posthouse.services.relay_ledger import Timer
from posthouse.services.relay_means import Means
from posthouse.services.relay_pool import Failures, SessionPool
from posthouse.services.relay_settings import Condition, NextHopStatus
from posthouse.services.relay_targets import Way, find_way

_KINDS: Final = {
    State.DOWN: "next-hop-down",
    State.BLOCKED: "next-hop-blocked",
    State.HELD: "next-hop-held",
}


class Route:
    """One next hop. `key` names it in logs; `hops` () means: follow the MX of its one domain."""

    def __init__(
        self, key: str, means: Means, hops: tuple[HostPort, ...], domains: Sequence[str]
    ) -> None:
        self.key = key
        self.means = means
        self.hops = hops
        self.domains = tuple(domains)
        self.health = Health(since_us=means.clock_us())
        self.pool = SessionPool(key, means, self)
        self.queue = self.pool.queue
        self._tasks: set[asyncio.Task[None]] = set()
        self._probe_timer: Timer | None = None
        self._probing = False
        self._probe_task: asyncio.Task[None] | None = None
        self._next_probe_us: int | None = None
        self._retired = False

    # ------------------------------------------------------------------ what the relay asks

    def start(self) -> None:
        """Begin: the next hop is taken to be up until it proves otherwise."""
        self.queue.is_open = True
        self.queue.set_domains(self.domains)

    def set_domains(self, domains: Sequence[str]) -> None:
        """Serve exactly these domains from now on."""
        self.domains = tuple(domains)
        self.queue.set_domains(domains)

    def retry(self) -> None:
        """Look again now: probe if not up, else read the queue from its oldest row."""
        self.pool.forget_refusals()
        if not self.health.flowing:
            if self._probe_task is not None:  # one that hangs must not outlast a person's wish
                self._probe_task.cancel()
                self._probe_task, self._probing = None, False
            self._probe_now()
        elif not self._retired:
            self.queue.close()
            self.queue.open()

    def recheck(self) -> None:
        """See whether DNS still leads where the open sessions lead."""
        if len(self.pool) and not self.hops and self.health.flowing:
            self._start(self._recheck(), "MX")

    def retire(self) -> None:
        """Stop sending: sessions end in good order, what is ready goes back to the table."""
        self._retired = True
        self.pool.retire()
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        for task in self._tasks:
            task.cancel()

    def status(self) -> NextHopStatus:
        """See `NextHopStatus`."""
        return NextHopStatus(
            next_hop=self.key,
            domains=self.domains,
            state=self.health.state,
            since_us=self.health.since_us,
            why=self.health.why,
            sessions=len(self.pool),
            in_hand=self.pool.in_hand,
            next_probe_us=None if self.health.flowing else self._next_probe_us,
        )

    def condition(self) -> Condition | None:
        """What a person should know of it, None while mail flows."""
        health = self.health
        if health.flowing:
            return None
        text = f"next hop {self.key} is {health.state}: {health.why}"
        return Condition(kind=_KINDS[health.state], text=text, since_us=health.since_us)

    # ------------------------------------------------------------------ what the pool tells

    async def find_way(self) -> Way:
        """See `relay_pool.Leader`."""
        return await find_way(
            self.means.resolver,
            domain=self.domains[0],
            hops=self.hops,
            settings=self.means.settings,
            shuffle=self.means.dice.shuffle,
        )

    def obstructed(self, way: Way) -> None:
        """See `relay_pool.Leader`."""
        temporary = way.obstacle is not None and way.obstacle.temporary
        self._change(Event.LOST if temporary else Event.NO_WAY, way.text)

    def failed(self, failures: Failures) -> None:
        """See `relay_pool.Leader`. Refused when every target said 5xx, else lost."""
        told = [
            f.detail if t.address in f.detail else f"{t.host}[{t.address}]:{t.port}: {f.detail}"
            for t, f in failures[:3]
        ]
        permanent = all(failure.permanent for _, failure in failures)
        self._change(Event.REFUSED if permanent else Event.LOST, "; ".join(told))

    def refused_at_mail(self, why: str, refusals: int, *, permanent: bool) -> None:
        """See `relay_pool.Leader`. A probe soon tells whether we or one sender were meant."""
        interval_us = self.means.settings.probe_interval_us
        event = Event.REFUSED if permanent else Event.LOST
        self._change(event, why, quick_probe_delay_us(interval_us, refusals))

    def lost(self, why: str) -> None:
        """See `relay_pool.Leader`."""
        self._change(Event.LOST, why)

    # ------------------------------------------------------------------ state

    def _change(self, event: Event, why: str, probe_delay_us: int | None = None) -> None:
        if self._retired:
            return
        before = self.health
        self.health = move(before, event, now_us=self.means.clock_us(), why=why)
        if self.health.state is not before.state:
            self._tell(why)
        if not self.health.flowing:
            self.pool.close()
            self._arm_probe(probe_delay_us)
        elif not before.flowing:
            self.pool.open()

    def _tell(self, why: str) -> None:
        state = self.health.state
        observe.next_hop_changed(self.key, state, why)
        if state in (State.BLOCKED, State.HELD):
            observe.alert(_KINDS[state], f"next hop {self.key} is {state}: {why}")

    async def _recheck(self) -> None:
        way = await self.find_way()
        if not self.health.flowing:
            return
        if way.obstacle is None:
            self.pool.keep_only(way.targets)
        elif not way.obstacle.temporary:  # what is open is still right when DNS is unwell
            self.obstructed(way)

    def _start(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        task = self.means.start(work, f"{self.key}: {what}", self.lost)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ------------------------------------------------------------------ probing

    def _arm_probe(self, delay_us: int | None) -> None:
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        if delay_us is None:
            interval_us = self.means.settings.probe_interval_us
            delay_us = probe_delay_us(interval_us, self.means.dice.random)
        self._next_probe_us = self.means.clock_us() + delay_us
        self._probe_timer = self.means.later(delay_us / 1e6, self._probe_now)

    def _probe_now(self) -> None:
        if self._probing or self.health.flowing or self._retired:
            return
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        self._probing = True
        self._probe_task = self._start(self._probe(), "probe")

    async def _probe(self) -> None:
        seconds = patience_seconds(self.means.settings.probe_interval_us)
        this = self._probe_task
        try:
            way = await self.find_way()
            failures = []
            for target in way.targets:
                try:
                    try:
                        async with asyncio.timeout(seconds):
                            await self.means.connector.probe(target)
                    except TimeoutError:
                        raise NextHopFailure("no answer to a probe", stage="session") from None
                except NextHopFailure as failure:
                    failures.append((target, failure))
                else:
                    self._probing = False
                    self._change(Event.GREETED, f"{target.host}[{target.address}] answers")
                    return
        finally:
            if self._probe_task is this:
                self._probing = False
        if way.obstacle is not None:
            self.obstructed(way)
        else:
            self.failed(failures)
