"""Decides the state of every next hop, for all relays that follow it.

One board serves the whole node, in the control process; a relay that is on its
own (a test, a worker whose control process is gone) has one to itself. Relays
tell what they learned; the board applies `domain.drain`, probes, chooses who
sends the canary, and tells everybody. It never sees mail.

Promise: a state that a person must see (suspended, surge-stopped) and what an
outage taught is written down before `saved` returns, and a board that starts
begins with the cautious state of each (`drain.after_restart`). Nothing here
costs anything per message: relays report in batches.

Fails softly: a book that cannot be written is reported and tried again with
the next change.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from posthouse import observe
from posthouse.domain.drain import Event, Health, State, after_restart
from posthouse.errors import StorageError
from posthouse.ports_dns import Resolver
from posthouse.ports_drain import Experience, Follower, NextHopBook, NextHopRecord, NextHopView
from posthouse.ports_relay import Connector
from posthouse.services.nexthop_entry import Entry
from posthouse.services.nexthop_means import BoardMeans
from posthouse.services.relay_ledger import Later
from posthouse.services.relay_settings import RelaySettings, RouteSettings, group_routes

_SAVE_AGAIN_SECONDS: Final = 5.0
_WORTH_KEEPING: Final = frozenset(state for state in State if after_restart(state) is state) - {
    State.SUSPECT
}


class NextHopBoard:
    """See the module, and `ports_drain.NextHopAuthority`.

    first: the state of a next hop nothing is written of. expected: relays that will follow
    each next hop soon after the start; until they do, nothing counts as drained.
    `later`: `loop.call_later` by default.
    """

    def __init__(
        self,
        *,
        connector: Connector,
        resolver: Resolver,
        settings: RelaySettings,
        clock_us: Callable[[], int],
        dice: random.Random,
        later: Later | None = None,
        book: NextHopBook | None = None,
        first: State = State.SUSPECT,
        expected: int = 1,
    ) -> None:
        self._means = BoardMeans(
            connector=connector,
            resolver=resolver,
            settings=settings,
            clock_us=clock_us,
            dice=dice,
            later=later or asyncio.get_running_loop().call_later,
            start=self._start,
            changed=self._changed,
            expected=expected,
        )
        self._book = book
        self._first = first
        self._entries: dict[str, Entry] = {}
        self._by_domain: dict[str, Entry] = {}
        self._followers: dict[str, list[Follower]] = {}
        self._listeners: list[Callable[[NextHopView], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._saving: asyncio.Task[None] | None = None
        self._dirty = False
        self._kept: dict[str, Health] = {}
        self._taken: dict[str, Health] = {}
        if book is not None:
            self._kept = {record.next_hop: record.health for record in book.load()}

    # ------------------------------------------------------------------ life

    def set_routes(self, routes: Mapping[str, RouteSettings], settings: RelaySettings) -> None:
        """Watch over exactly these next hops; those that stay keep their state."""
        self._means.settings = settings
        groups = group_routes(routes)
        for key in self._entries.keys() - groups.keys():
            self._entries.pop(key).retire()
        self._by_domain = {}
        for key, (hops, domains) in groups.items():
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = Entry(
                    key, self._means, hops, domains, self._begin_with(key)
                )
                for follower in self._followers.get(key, ()):
                    entry.follow(follower)
                entry.begin()
            else:
                entry.domains = domains
            for domain in domains:
                self._by_domain[domain] = entry

    def take_over(self, known: Mapping[str, Health]) -> None:
        """Go on with what is in force now: mail that flows goes on flowing.

        To be called before `set_routes`.
        """
        self._taken = dict(known)

    def _begin_with(self, key: str) -> Health:
        taken = self._taken.get(key)
        if taken is not None and taken.flowing:
            return taken
        kept = taken or self._kept.get(key)
        now_us = self._means.clock_us()
        if kept is None:
            return Health(state=self._first, since_us=now_us)
        state = after_restart(kept.state)
        if state is kept.state:
            return kept
        return Health(state=state, since_us=now_us, round=kept.round)

    async def stop(self) -> None:
        """Probe no more; what is to be written is written."""
        for entry in self._entries.values():
            entry.retire()
        tasks = self._tasks - ({self._saving} if self._saving is not None else set())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.saved()

    async def saved(self) -> bool:
        """Wait until every change so far is durable; False when it cannot be made so."""
        while self._saving is not None:
            await asyncio.wait((self._saving,))
        return not self._dirty

    # ------------------------------------------------------------------ what relays say

    def follow(self, next_hop: str, follower: Follower, *, delivering: bool = False) -> None:
        """See `ports_drain.NextHopAuthority`. delivering: it delivered there a moment ago."""
        self._followers.setdefault(next_hop, []).append(follower)
        entry = self._entries.get(next_hop)
        if entry is not None:
            entry.follow(follower, delivering=delivering)

    def leave(self, next_hop: str, follower: Follower) -> None:
        """See `ports_drain.NextHopAuthority`."""
        followers = self._followers.get(next_hop, [])
        if follower in followers:
            followers.remove(follower)
        if not followers:
            self._followers.pop(next_hop, None)
        entry = self._entries.get(next_hop)
        if entry is not None:
            entry.leave(follower)

    def tell(self, follower: Follower, experience: Experience) -> None:
        """See `ports_drain.NextHopAuthority`."""
        entry = self._entries.get(experience.next_hop)
        if entry is not None:
            entry.hear(follower, experience)

    # ------------------------------------------------------------------ what others ask

    def state_of(self, next_hop: str) -> NextHopView | None:
        """See `ports_drain.NextHopStates`."""
        entry = self._entries.get(next_hop)
        return None if entry is None else entry.view()

    def of_domain(self, domain: str) -> NextHopView | None:
        """See `ports_drain.NextHopStates`."""
        entry = self._by_domain.get(domain)
        return None if entry is None else entry.view()

    def all_states(self) -> Sequence[NextHopView]:
        """See `ports_drain.NextHopStates`."""
        return [self._entries[key].view() for key in sorted(self._entries)]

    def watch(self, listener: Callable[[NextHopView], None]) -> None:
        """See `ports_drain.NextHopStates`."""
        self._listeners.append(listener)

    def retry(self, domain: str | None = None) -> None:
        """See `ports_drain.NextHopStates`."""
        if domain is None:
            for entry in self._entries.values():
                entry.probe_now()
        elif (one := self._by_domain.get(domain)) is not None:
            one.probe_now()

    def pause(self, next_hops: Sequence[str], why: str) -> None:
        """Suspend these next hops until `resume`."""
        for key in next_hops:
            self._entries[key].change(Event.PAUSE, why)

    def resume(self, next_hops: Sequence[str], *, guarded: bool) -> None:
        """Go on: what was suspended or stopped is probed now, what is down too.

        guarded False: this drain is not stopped by refusals again. A next hop that refuses
        addresses known to exist gets its canary all the same.
        """
        for key in next_hops:
            self._entries[key].resume(guarded=guarded)

    # ------------------------------------------------------------------ within

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _changed(self, entry: Entry) -> None:
        view = entry.view()
        for listener in self._listeners:
            try:
                listener(view)
            except Exception as error:  # who only listens must not stop the mail
                observe.trouble("drain", f"{view.next_hop}: a listener failed", error)
        before = self._kept.get(entry.key)
        if entry.health.state in _WORTH_KEEPING:
            self._kept[entry.key] = entry.health
        else:
            self._kept.pop(entry.key, None)
        if self._book is not None and before != self._kept.get(entry.key):
            self._dirty = True
            if self._saving is None:
                self._saving = self._start(self._save(self._book))

    async def _save(self, book: NextHopBook) -> None:
        try:
            while self._dirty:
                self._dirty = False
                records = [
                    NextHopRecord(next_hop=key, health=health)
                    for key, health in sorted(self._kept.items())
                ]
                try:
                    await asyncio.to_thread(book.save, records)
                except StorageError as error:
                    self._dirty = True
                    observe.trouble("drain", "states of next hops cannot be written", error)
                    return
        finally:
            self._saving = None
