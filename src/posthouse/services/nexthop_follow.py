"""A worker's side of the shared states: what the control process says, and what if it is gone.

Promise: orders come from the control process while there is a line to it. When
there is none for `ALONE_SECONDS`, the last orders stay in force on a board of
our own, which probes and decides for this worker alone; the line being back
ends that. So a control process that dies stops no mail, and one that cannot
start does not leave a next hop down for ever.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from posthouse import observe
from posthouse.domain.drain import Health
from posthouse.ports_dns import Resolver
from posthouse.ports_drain import (
    DrainLine,
    Experience,
    Follow,
    Follower,
    Leave,
    NextHopView,
    Order,
    Ordered,
    Reply,
    Retry,
    Told,
)
from posthouse.ports_relay import Connector
from posthouse.services.nexthop_entry import RECENT_US
from posthouse.services.nexthops import NextHopBoard
from posthouse.services.relay_ledger import Later, Timer
from posthouse.services.relay_settings import RelaySettings, RouteSettings, group_routes

ALONE_SECONDS: Final = 5.0
"""How long without a line before this worker decides for itself: the control process is
as a rule replaced within a second."""


class SharedStates:
    """See the module, and `ports_drain.NextHopAuthority`. `later`: `loop.call_later` by default."""

    def __init__(
        self,
        line: DrainLine,
        *,
        connector: Connector,
        resolver: Resolver,
        clock_us: Callable[[], int],
        dice: random.Random,
        later: Later | None = None,
    ) -> None:
        self._line = line
        self._connector = connector
        self._resolver = resolver
        self._clock_us = clock_us
        self._dice = dice
        self._later = later or asyncio.get_running_loop().call_later
        self._routes: Mapping[str, RouteSettings] = {}
        self._settings: RelaySettings | None = None
        self._domains: dict[str, tuple[str, ...]] = {}
        self._keys: dict[str, str] = {}
        self._orders: dict[str, Order] = {}
        self._seats: dict[int, tuple[str, Follower]] = {}
        self._numbers: dict[tuple[str, Follower], int] = {}
        self._next_seat = 0
        self._delivered_us: dict[int, int] = {}
        self._listeners: list[Callable[[NextHopView], None]] = []
        self._connected = False
        self._board: NextHopBoard | None = None
        self._alone_timer: Timer | None = None
        self._ending: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Connect, and go on alone if that does not come about."""
        self._line.open(up=self._on_up, heard=self._on_heard, lost=self._on_lost)
        self._wait_alone()

    def set_routes(self, routes: Mapping[str, RouteSettings], settings: RelaySettings) -> None:
        """What there is; to be called before relays are made, and before they reload."""
        self._routes, self._settings = routes, settings
        groups = group_routes(routes)
        self._domains = {key: domains for key, (_, domains) in groups.items()}
        self._keys = {domain: key for key, domains in self._domains.items() for domain in domains}
        self._orders = {key: o for key, o in self._orders.items() if key in self._domains}
        if self._board is not None:
            self._board.set_routes(routes, settings)

    async def stop(self) -> None:
        """End line and board."""
        if self._alone_timer is not None:
            self._alone_timer.cancel()
        await self._line.close()
        self._end_board()
        if self._ending:
            await asyncio.wait(self._ending)

    # ------------------------------------------------------------------ relays

    def follow(self, next_hop: str, follower: Follower) -> None:
        """See `ports_drain.NextHopAuthority`."""
        seat = self._next_seat
        self._next_seat += 1
        self._seats[seat] = (next_hop, follower)
        self._numbers[next_hop, follower] = seat
        self._line.send(Follow(seat, next_hop))
        if self._board is not None:
            self._board.follow(next_hop, follower)

    def leave(self, next_hop: str, follower: Follower) -> None:
        """See `ports_drain.NextHopAuthority`."""
        seat = self._numbers.pop((next_hop, follower), None)
        if seat is None:
            return
        del self._seats[seat]
        self._delivered_us.pop(seat, None)
        self._line.send(Leave(seat))
        if self._board is not None:
            self._board.leave(next_hop, follower)

    def tell(self, follower: Follower, experience: Experience) -> None:
        """See `ports_drain.NextHopAuthority`."""
        seat = self._numbers.get((experience.next_hop, follower))
        if seat is None:
            return
        if experience.delivered:
            self._delivered_us[seat] = self._clock_us()
        if self._board is not None:
            self._board.tell(follower, experience)
        else:
            self._line.send(Told(seat, experience))

    # ------------------------------------------------------------------ who asks

    def state_of(self, next_hop: str) -> NextHopView | None:
        """See `ports_drain.NextHopStates`."""
        if self._board is not None:
            return self._board.state_of(next_hop)
        order = self._orders.get(next_hop)
        return None if order is None else self._view(order)

    def of_domain(self, domain: str) -> NextHopView | None:
        """See `ports_drain.NextHopStates`."""
        key = self._keys.get(domain)
        return None if key is None else self.state_of(key)

    def all_states(self) -> Sequence[NextHopView]:
        """See `ports_drain.NextHopStates`."""
        views = (self.state_of(key) for key in sorted(self._domains))
        return [view for view in views if view is not None]

    def watch(self, listener: Callable[[NextHopView], None]) -> None:
        """See `ports_drain.NextHopStates`."""
        self._listeners.append(listener)

    def retry(self, domain: str | None = None) -> None:
        """See `ports_drain.NextHopStates`."""
        if self._board is not None:
            self._board.retry(domain)
        else:
            self._line.send(Retry(domain or ""))

    def _view(self, order: Order) -> NextHopView:
        return NextHopView(
            next_hop=order.next_hop,
            domains=self._domains.get(order.next_hop, ()),
            state=order.health.state,
            since_us=order.health.since_us,
            why=order.health.why,
            next_probe_us=order.next_probe_us,
            guarded=order.health.guarded,
        )

    # ------------------------------------------------------------------ the line

    def _on_up(self) -> None:
        self._connected = True
        if self._alone_timer is not None:
            self._alone_timer.cancel()
            self._alone_timer = None
        since_us = self._clock_us() - RECENT_US
        for seat, (next_hop, _) in self._seats.items():
            delivering = self._delivered_us.get(seat, 0) >= since_us
            self._line.send(Follow(seat, next_hop, delivering))

    def _on_heard(self, reply: Reply) -> None:
        if not isinstance(reply, Ordered):
            return
        if self._board is not None:
            observe.note("drain", "the control process is back: its states are in force")
            self._end_board()
        next_hop, follower = self._seats.get(reply.seat, ("", None))
        if follower is None:
            return
        before = self._orders.get(next_hop)
        self._orders[next_hop] = reply.order
        follower.obey(reply.order)
        if before is None or before.health != reply.order.health:
            self._tell_listeners(self._view(reply.order))

    def _tell_listeners(self, view: NextHopView) -> None:
        for listener in self._listeners:
            try:
                listener(view)
            except Exception as error:  # who only listens must not stop the mail
                observe.trouble("drain", f"{view.next_hop}: a listener failed", error)

    def _on_lost(self) -> None:
        self._connected = False
        self._wait_alone()

    def _wait_alone(self) -> None:
        if self._alone_timer is None and self._board is None:
            self._alone_timer = self._later(ALONE_SECONDS, self._go_alone)

    def _go_alone(self) -> None:
        self._alone_timer = None
        if self._connected or self._board is not None or self._settings is None:
            return
        observe.note("drain", "the control process does not answer: this worker decides alone")
        board = self._board = NextHopBoard(
            connector=self._connector,
            resolver=self._resolver,
            settings=self._settings,
            clock_us=self._clock_us,
            dice=self._dice,
            later=self._later,
        )
        known: dict[str, Health] = {key: o.health for key, o in self._orders.items()}
        board.take_over(known)
        board.watch(self._tell_listeners)
        board.set_routes(self._routes, self._settings)
        for next_hop, follower in tuple(self._seats.values()):
            board.follow(next_hop, follower)

    def _end_board(self) -> None:
        board, self._board = self._board, None
        if board is not None:
            task = asyncio.get_running_loop().create_task(board.stop())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
