"""The probes of one next hop on the board: when the next one is due, and what it asks.

A probe asks DNS for the way, then each place in turn whether it takes mail, for
postmaster and for a few addresses that should exist: a host that answers and
refuses them all is not the next hop it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from posthouse import observe
from posthouse.domain.drain import Event
from posthouse.domain.nexthop import HostPort, patience_seconds
from posthouse.errors import NextHopFailure
from posthouse.services.nexthop_means import BoardMeans
from posthouse.services.relay_ledger import Timer
from posthouse.services.relay_targets import find_way, judge_failures

MAX_KNOWN: Final = 3
"""Addresses a probe asks for, besides postmaster."""


class Prober:
    """One probe at a time, or the timer for the next. told: hears what a probe found.

    domain: whose MX leads there now, and whose postmaster is asked for; hops: see `find_way`.
    due_us: when the next one is due, if it is announced. trusting: the operator vouches for
    the next hop, whatever RCPT is answered.
    """

    __slots__ = (
        "_domain",
        "_hops",
        "_key",
        "_known",
        "_means",
        "_probe",
        "_timer",
        "_told",
        "due_us",
        "trusting",
    )

    def __init__(
        self,
        key: str,
        means: BoardMeans,
        hops: tuple[HostPort, ...],
        *,
        domain: Callable[[], str],
        told: Callable[[Event, str], None],
    ) -> None:
        self.due_us: int | None = None
        self.trusting = False
        self._key = key
        self._means = means
        self._hops = hops
        self._domain = domain
        self._told = told
        self._known: tuple[str, ...] = ()
        self._timer: Timer | None = None
        self._probe: asyncio.Task[None] | None = None

    @property
    def armed(self) -> bool:
        """True while a timer runs."""
        return self._timer is not None

    def learn(self, known: Sequence[str]) -> None:
        """Hear of addresses that should exist there."""
        self._known = tuple(known[:MAX_KNOWN])

    def start(self) -> None:
        """Probe now."""
        self._timer = None
        self._probe = self._means.start(self._run())

    def arm(self, delay_us: int, then: Callable[[], None], *, announced: bool) -> None:
        """Call `then` after `delay_us` instead of whatever was to come. announced: see `due_us`."""
        self.cancel()
        if announced:
            self.due_us = self._means.clock_us() + delay_us
        self._timer = self._means.later(delay_us / 1e6, then)

    def cancel(self) -> None:
        """Forget what was to come; a probe under way is given up, unless it is who calls."""
        self.due_us = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._probe is not None and self._probe is not asyncio.current_task():
            self._probe.cancel()
        self._probe = None

    async def _run(self) -> None:
        try:
            async with self._means.probes:
                event, why = await self._look()
        except Exception as error:  # a supervised task: the next probe may do better
            observe.trouble("drain", f"{self._key}: probe", error)
            event, why = Event.LOST, f"local error: {type(error).__name__}"
        if self._probe is asyncio.current_task():
            self._probe = None
            self._told(event, why)

    async def _look(self) -> tuple[Event, str]:
        """Ask DNS, then each place in turn."""
        means = self._means
        way = await find_way(
            means.resolver,
            domain=self._domain(),
            hops=self._hops,
            settings=means.settings,
            shuffle=means.dice.shuffle,
        )
        if way.obstacle is not None:
            return (Event.LOST if way.obstacle.temporary else Event.NO_WAY), way.text
        seconds = patience_seconds(means.settings.probe_interval_us)
        addresses = (*self._known, f"postmaster@{self._domain()}")
        failures = []
        for target in way.targets:
            try:
                try:
                    async with asyncio.timeout(seconds):
                        replies = await means.connector.probe(target, addresses)
                except TimeoutError:
                    raise NextHopFailure("no answer to a probe", stage="session") from None
            except NextHopFailure as failure:
                failures.append((target, failure))
                continue
            return self._judge(f"{target.host}[{target.address}]", replies)
        return judge_failures(failures)

    def _judge(self, place: str, replies: Sequence[tuple[int, str]]) -> tuple[Event, str]:
        if self._known and not self.trusting and _all_refused(replies):
            return Event.REFUSED, (
                f"{place} answers, but refuses all of {len(replies)} addresses "
                f"that should exist: {replies[0][1]}"
            )
        return Event.GREETED, f"{place} answers"


def _all_refused(replies: Sequence[tuple[int, str]]) -> bool:
    return len(replies) > 1 and all(500 <= code <= 599 for code, _ in replies)
