"""One next hop as one relay sees it: follows the state that the whole node shares.

Domains with the same list of fixed places share one route; a domain that
follows its MX has its own. Each route works by itself: one that is slow or
dead takes nothing from the others but the memory of a timer.

The authority (`ports_drain.NextHopAuthority`) orders; the route opens and
closes its pool accordingly and tells what it learns. What speaks against the
next hop closes the pool at once, without waiting for the order. An authority
that cannot be reached leaves the last order in force.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from posthouse import observe
from posthouse.domain.drain import Event, Health, State, SurgeGuard, move
from posthouse.domain.nexthop import HostPort, is_fetched, quick_probe_delay_us
from posthouse.domain.pace import Pace
from posthouse.errors import StorageError
from posthouse.ports_drain import Experience, NextHopAuthority, Order
from posthouse.ports_spool import QueuedMessage
from posthouse.services.relay_ledger import Timer
from posthouse.services.relay_means import Means
from posthouse.services.relay_pool import SessionPool
from posthouse.services.relay_settings import CONDITIONS, Condition, NextHopStatus
from posthouse.services.relay_targets import Failures, Way, find_way, judge_failures

_KNOWN: Final = 3  # addresses of the oldest mail that a probe may ask for


class Route:
    """One next hop. `key` names it in logs; `hops` () means: follow the MX of its one domain."""

    def __init__(
        self,
        key: str,
        means: Means,
        hops: tuple[HostPort, ...],
        domains: Sequence[str],
        authority: NextHopAuthority,
    ) -> None:
        self.key = key
        self.means = means
        self.hops = hops
        self.domains = tuple(domains)
        self.health = Health(state=State.SUSPECT, since_us=means.clock_us(), why="not known yet")
        self.pool = SessionPool(key, means, self)
        self.queue = self.pool.queue
        self._authority = authority
        self._next_probe_us: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._rest_timer: Timer | None = None
        self._told_delivered = 0
        self._known: dict[str, None] = {}
        self._retired = False

    # ------------------------------------------------------------------ what the relay asks

    def start(self) -> None:
        """Begin to follow."""
        self.queue.on_waiting = self._learn
        self.queue.set_domains(self.domains)
        self._authority.follow(self.key, self)

    def set_domains(self, domains: Sequence[str]) -> None:
        """Serve exactly these domains from now on."""
        self.domains = tuple(domains)
        self.queue.set_domains(domains)

    def retry(self) -> None:
        """Look again now: probe if not up, else read the queue from its oldest row."""
        self.pool.evidence.senders.forget()
        if self._retired:
            return
        if self.queue.is_open:
            self.queue.close()
            self.queue.open()
        else:
            self._authority.retry(self.domains[0])

    def recheck(self, waiting: Sequence[str]) -> None:
        """See whether DNS still leads where the open sessions lead.

        waiting: its domains that have queued mail; `ReadyQueue.notice` has heard of them.
        """
        self.queue.compared()
        if len(self.pool) and not self.hops and self.health.flowing:
            self._start(self._recheck(), "MX")
        self.pool.see_whether_dry()
        if waiting and not self.queue.is_open and not self._known:
            self._start(self._find_known(waiting[:_KNOWN]), "addresses")

    def retire(self) -> None:
        """Stop sending: sessions end in good order, what is ready goes back to the table."""
        self._retired = True
        self._authority.leave(self.key, self)
        self.pool.retire()
        if self._rest_timer is not None:
            self._rest_timer.cancel()
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
            next_probe_us=self._next_probe_us,
        )

    def condition(self) -> Condition | None:
        """What a person should know of it, None while mail flows."""
        health = self.health
        kind = CONDITIONS.get(health.state)
        if kind is None or (health.state is State.DOWN and is_fetched(self.key)):
            return None
        text = f"next hop {self.key} is {health.state}: {health.why}"
        return Condition(kind=kind, text=text, since_us=health.since_us)

    # ------------------------------------------------------------------ orders

    def obey(self, order: Order) -> None:
        """See `ports_drain.Follower`."""
        if self._retired:
            return
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None
        before = self.health
        self.health = order.health
        self._next_probe_us = order.next_probe_us
        if order.rest:
            self._rest(order)
            return
        match order.health.state:
            case State.UP:
                self.pool.free()
            case State.DRAINING:
                self.pool.drain(self._make_pace(), self._make_guard())
            case State.CANARY if order.canary:
                if before.round != order.health.round or not self.queue.is_open:
                    self.pool.close()
                    self.pool.drain(self._make_pace(allowance=1), self._make_guard())
            case State.SUSPECT:
                self.pool.stand()
            case _:
                self._shut()

    def _rest(self, order: Order) -> None:
        """Others deliver there, we could not connect: try again after a while."""
        self.pool.close()
        seconds = self.means.settings.probe_interval_us / 1e6
        again = Order(next_hop=order.next_hop, health=order.health)
        self._rest_timer = self.means.later(seconds, lambda: self.obey(again))

    def _shut(self) -> None:
        if self.queue.is_open:
            self._known = {}
            self.queue.on_waiting = self._learn
            self.pool.close()
            self.means.look()  # which of its domains have mail; see `recheck`

    def _make_pace(self, allowance: int | None = None) -> Pace:
        settings = self.means.settings
        return Pace(limit=settings.concurrency, per_second=settings.drain_rate, allowance=allowance)

    def _make_guard(self) -> SurgeGuard | None:
        settings = self.means.settings
        if not self.health.guarded:
            return None
        return SurgeGuard(
            share=settings.surge_share, window=settings.surge_window, least=settings.surge_least
        )

    # ------------------------------------------------------------------ what the pool tells

    async def find_way(self) -> Way:
        """See `relay_leader.Leader`."""
        return await find_way(
            self.means.resolver,
            domain=self.domains[0],
            hops=self.hops,
            settings=self.means.settings,
            shuffle=self.means.dice.shuffle,
        )

    def obstructed(self, way: Way) -> None:
        """See `relay_leader.Leader`."""
        temporary = way.obstacle is not None and way.obstacle.temporary
        self._trouble(Event.LOST if temporary else Event.NO_WAY, way.text)

    def failed(self, failures: Failures) -> None:
        """See `relay_leader.Leader`."""
        self._trouble(*judge_failures(failures))

    def refused_at_mail(self, why: str, refusals: int, *, permanent: bool) -> None:
        """See `relay_leader.Leader`. A probe soon tells whether we or one sender were meant."""
        interval_us = self.means.settings.probe_interval_us
        event = Event.REFUSED if permanent else Event.LOST
        self._trouble(event, why, quick_probe_delay_us(interval_us, refusals))

    def lost(self, why: str) -> None:
        """See `relay_leader.Leader`."""
        self._trouble(Event.LOST, why)

    def surged(self, why: str) -> None:
        """See `relay_leader.Leader`."""
        self._trouble(Event.SURGE, why)

    def proven(self) -> None:
        """See `relay_leader.Leader`."""
        self._tell(Event.PROVEN)

    def dry(self) -> None:
        """See `relay_leader.Leader`."""
        if self.health.state in (State.CANARY, State.DRAINING):
            self._tell(Event.DRAINED)

    def refused_for_good(self, why: str) -> None:
        """See `relay_leader.Leader`."""
        self._tell(None, why, refused=1)

    def ticked(self) -> None:
        """See `relay_leader.Leader`: say what was delivered since the last time."""
        if self.pool.served != self._told_delivered:
            self._tell(None)

    def _tell(
        self,
        event: Event | None,
        why: str = "",
        probe_delay_us: int | None = None,
        *,
        refused: int = 0,
        known: tuple[str, ...] = (),
    ) -> None:
        served = self.pool.served
        delivered, self._told_delivered = served - self._told_delivered, served
        self._authority.tell(
            self,
            Experience(
                next_hop=self.key,
                event=event,
                why=why,
                round=self.health.round,
                probe_delay_us=probe_delay_us,
                delivered=delivered,
                refused=refused,
                known=known,
            ),
        )

    def _trouble(self, event: Event, why: str, probe_delay_us: int | None = None) -> None:
        if self._retired:
            return
        self.health = move(self.health, event, now_us=self.means.clock_us(), why=why)
        self._shut()
        self._tell(event, why, probe_delay_us)

    # ------------------------------------------------------------------ within

    async def _recheck(self) -> None:
        way = await self.find_way()
        if not self.health.flowing:
            return
        if way.obstacle is None:
            self.pool.keep_only(way.targets)
        elif not way.obstacle.temporary:  # what is open is still right when DNS is unwell
            self.obstructed(way)

    async def _find_known(self, domains: Sequence[str]) -> None:
        """Learn addresses of the oldest mail: one look, nothing is taken."""
        for domain in domains:
            try:
                claim = await self.means.spool.claim(
                    domain,
                    after=None,
                    now_us=self.means.clock_us(),
                    max_messages=_KNOWN,
                    max_bytes=0,
                )
            except StorageError as error:
                observe.trouble("relay", f"{domain}: the queue cannot be read", error)
                return
            for message in claim.messages:
                self._learn(message)

    def _learn(self, message: QueuedMessage) -> None:
        """Tell addresses of mail that waits, for probes to ask for."""
        if self._retired or self.queue.is_open or self.queue.on_waiting is None:
            return
        before = len(self._known)
        for recipient in message.recipients:
            if len(self._known) < _KNOWN:
                self._known[recipient.address] = None
        if len(self._known) > before:
            self._tell(None, known=tuple(self._known))
        if len(self._known) >= _KNOWN:
            self.queue.on_waiting = None

    def _start(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        task = self.means.start(work, f"{self.key}: {what}", self.lost)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
