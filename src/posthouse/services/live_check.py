"""Live verification: asks the primary, while it is up, whether an address exists.

For domains without a list or roster, and where the roster is stale. What the
primary said is remembered (31 days when it takes the address, asked again
after 7 while the old answer holds; two hours when it does not), so an outage
finds most regular recipients known. While the primary is down nothing is
asked and nothing waits: what is not remembered is UNDECIDED.

Bounded: one question an address at a time, two sessions a primary, 200 waiting,
20 s of a client's time, and for each client network a budget of addresses that
do not exist. "Absent" is believed only while the next hop is `up` as the relay
knows it: one that is just coming back may have lost its users.
What is made of replies: `posthouse.domain.live_check`.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

from posthouse import observe
from posthouse.domain.drain import State
from posthouse.domain.instants import left_us
from posthouse.domain.live_check import (
    UNDECIDED_US,
    Entry,
    LiveFinding,
    Use,
    judge_age,
)
from posthouse.errors import StorageError
from posthouse.mail.address import quote_local_part
from posthouse.ports_drain import NextHopStates
from posthouse.ports_live import LiveCache
from posthouse.ports_relay import Target
from posthouse.ports_standby import PrimaryConnector
from posthouse.services.live_primary import LivePrimary
from posthouse.services.relay_settings import Condition

V = TypeVar("V")

MAX_REMEMBERED: Final = 20_000
PATIENCE_SECONDS: Final = 20.0
RETRY_REFRESH_US: Final = 3_600_000_000
_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"


class Ways(Protocol):
    """Where primaries are (`services.ways`)."""

    def next_hop_of(self, domain: str) -> str: ...
    async def find_targets(self, domain: str) -> tuple[Target, ...]: ...


class Budget(Protocol):
    """Misses a client network may have (`domain.guesses`)."""

    def allows(self, network: str, now_s: float) -> bool: ...
    def spend(self, network: str, now_s: float) -> None: ...
    def refund(self, network: str) -> None: ...


class LiveChecks:
    """See the module. senders: domain to verify → envelope sender of questions ("" the null one).

    cache: None keeps findings in memory only. states: None asks whatever the next hop does.
    """

    def __init__(
        self,
        senders: Mapping[str, str],
        *,
        connector: PrimaryConnector,
        ways: Ways,
        budget: Budget,
        cache: LiveCache | None,
        states: NextHopStates | None,
        clock_us: Callable[[], int],
        dice: random.Random,
    ) -> None:
        self._senders = dict(senders)
        self._connector = connector
        self._ways = ways
        self._budget = budget
        self._cache = cache
        self._states = states
        self._clock_us = clock_us
        self._dice = dice
        self._primaries: dict[str, LivePrimary] = {}
        self._remembered: OrderedDict[str, Entry] = OrderedDict()
        self._undecided: OrderedDict[str, int] = OrderedDict()  # until when
        self._refreshed: OrderedDict[str, int] = OrderedDict()  # not again until when
        self._flights: dict[str, asyncio.Future[LiveFinding]] = {}
        self._retired: set[asyncio.Task[None]] = set()

    def reload(self, senders: Mapping[str, str], budget: Budget) -> None:
        """Put other domains in force; next hops may have changed, so conversations end."""
        self._senders = dict(senders)
        self._budget = budget
        for primary in self._primaries.values():
            task = asyncio.get_running_loop().create_task(primary.close())
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)
        self._primaries = {}

    def covers(self, domain: str) -> bool:
        """Tell whether the domain's addresses are verified at all."""
        return domain in self._senders

    def find(self, domain: str, local: str, network: str) -> LiveFinding | Awaitable[LiveFinding]:
        """What is known of the content of a local part, asking if need be.

        network: the client's, "" for nobody's. The awaitable never fails and may be cancelled.
        """
        address = f"{quote_local_part(local)}@{domain}"
        now_us = self._clock_us()
        entry = self._remembered.get(address)
        if entry is not None:
            use = judge_age(entry, now_us)
            if use is Use.FRESH:
                return LiveFinding.EXISTS if entry.exists else LiveFinding.ABSENT
            if use is Use.AGING:
                return self._use_aging(domain, address)
        if left_us(self._undecided.get(address, 0), now_us, longest_us=UNDECIDED_US):
            return LiveFinding.UNDECIDED
        return self._look_up(domain, address, network)

    def conditions(self) -> Sequence[Condition]:
        """What a person should see: primaries whose yes says nothing."""
        return [
            Condition(
                kind="live-check",
                text=f"the primary of {domain} takes every address: asking it says nothing; "
                "use a roster or a list of recipients",
                since_us=since_us,
            )
            for primary in self._primaries.values()
            for domain, since_us in primary.find_useless()
        ]

    async def close(self) -> None:
        """End every conversation."""
        await asyncio.gather(*(primary.close() for primary in self._primaries.values()))
        if self._retired:
            await asyncio.wait(self._retired)

    # ------------------------------------------------------------------ remembered

    def _use_aging(self, domain: str, address: str) -> LiveFinding:
        """A yes that is good for a while yet: ask again beside it (optimistic refresh)."""
        now_us = self._clock_us()
        if self._refreshed.get(address, 0) <= now_us and self._reachable(domain):
            _limit(self._refreshed, address, now_us + RETRY_REFRESH_US)
            self._start(domain, address)
        return LiveFinding.EXISTS

    async def _look_up(self, domain: str, address: str, network: str) -> LiveFinding:
        entry = await self._recall(address)
        if entry is not None:
            use = judge_age(entry, self._clock_us())
            if use is not Use.EXPIRED:
                _limit(self._remembered, address, entry)
                if use is Use.AGING:
                    return self._use_aging(domain, address)
                return LiveFinding.EXISTS if entry.exists else LiveFinding.ABSENT
        if not self._reachable(domain):
            return LiveFinding.UNDECIDED
        return await self._ask(domain, address, network)

    async def _recall(self, address: str) -> Entry | None:
        if self._cache is None:
            return None
        try:
            return await self._cache.find(address)
        except StorageError as error:
            observe.trouble("live", "the cache cannot be read", error)
            return None

    # ------------------------------------------------------------------ asking

    def _reachable(self, domain: str) -> bool:
        view = self._states.of_domain(domain) if self._states is not None else None
        if view is not None and not view.takes_mail:
            return False
        primary = self._primaries.get(self._ways.next_hop_of(domain))
        return primary is None or not primary.rests

    async def _ask(self, domain: str, address: str, network: str) -> LiveFinding:
        flight = self._flights.get(address)
        budget = self._budget  # a reload may put another one in force meanwhile
        paid = flight is None and bool(network)
        if paid:
            now_s = self._clock_us() / 1e6
            if not budget.allows(network, now_s):
                return LiveFinding.GUESSED
            budget.spend(network, now_s)
        if flight is None:
            flight = self._start(domain, address)
        finding = LiveFinding.BUSY
        try:
            if flight is not None:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    finding = await asyncio.shield(flight)
        except TimeoutError:
            finding = LiveFinding.BUSY
        if paid and finding is not LiveFinding.ABSENT:
            budget.refund(network)
        return finding

    def _start(self, domain: str, address: str) -> asyncio.Future[LiveFinding] | None:
        """Ask the primary, once for all who want to know; None when too many questions wait."""
        sender = self._senders.get(domain)
        if sender is None or address in self._flights:
            return self._flights.get(address)
        key = self._ways.next_hop_of(domain)
        primary = self._primaries.get(key)
        if primary is None:
            primary = self._primaries[key] = LivePrimary(
                self._connector,
                self._ways.find_targets,
                clock_us=self._clock_us,
                random_local=self._make_local,
            )
        flight = primary.ask(domain, address, sender)
        if flight is None:
            return None
        answer: asyncio.Future[LiveFinding] = asyncio.get_running_loop().create_future()
        self._flights[address] = answer
        flight.add_done_callback(lambda done: self._landed(domain, address, answer, done.result()))
        return answer

    def _landed(
        self,
        domain: str,
        address: str,
        answer: asyncio.Future[LiveFinding],
        finding: LiveFinding,
    ) -> None:
        if self._flights.get(address) is answer:
            del self._flights[address]
        if finding is LiveFinding.ABSENT and not self._is_up(domain):
            finding = LiveFinding.UNDECIDED
        if finding is LiveFinding.UNDECIDED:
            _limit(self._undecided, address, self._clock_us() + UNDECIDED_US)
        else:
            entry = Entry(finding is LiveFinding.EXISTS, self._clock_us())
            self._undecided.pop(address, None)
            _limit(self._remembered, address, entry)
            if self._cache is not None:
                self._cache.put(address, entry)
        if not answer.done():
            answer.set_result(finding)

    def _is_up(self, domain: str) -> bool:
        view = self._states.of_domain(domain) if self._states is not None else None
        return view is None or view.state is State.UP

    def _make_local(self) -> str:
        return "no-such-user-" + "".join(self._dice.choice(_LETTERS) for _ in range(16))


def _limit(table: OrderedDict[str, V], key: str, value: V) -> None:
    table.pop(key, None)
    table[key] = value
    if len(table) > MAX_REMEMBERED:
        table.popitem(last=False)
