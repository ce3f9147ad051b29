"""One next hop on the board: its state, its followers, its canary; `nexthop_probe` looks there.

What each event does to the state is the table in `posthouse.domain.drain`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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
from posthouse.domain.nexthop import WAITS, HostPort, is_fetched, probe_delay_us
from posthouse.ports_drain import Experience, Follower, NextHopView, Order
from posthouse.services.nexthop_means import BoardMeans
from posthouse.services.nexthop_probe import Prober
from posthouse.services.relay_settings import CONDITIONS, RelaySettings

RECENT_US: Final = 5_000_000
"""A delivery this long ago speaks for a next hop against one relay that cannot connect."""

START_SECONDS: Final = 10.0
"""How long after its start a board waits for relays that do not come."""


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
        self._followers: dict[Follower, _Share] = {}
        self._canary: Follower | None = None
        self._guard = _make_guard(means.settings)
        self._prober = Prober(key, means, hops, domain=lambda: self.domains[0], told=self.change)
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
        self._prober.cancel()

    def view(self) -> NextHopView:
        """See `NextHopView`."""
        health = self.health
        return NextHopView(
            next_hop=self.key,
            domains=self.domains,
            state=health.state,
            since_us=health.since_us,
            why=health.why,
            next_probe_us=self._prober.due_us,
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
            self._prober.learn(experience.known)
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
            next_probe_us=self._prober.due_us,
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
            self._prober.cancel()
        elif (
            after.state is not before.state or not self._prober.armed or probe_delay_us is not None
        ):
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
        self._prober.trusting = True
        self.change(Event.RESUME, "resumed by the operator")
        self.probe_now()

    def _enter(self, after: Health, why: str) -> None:
        state = after.state
        self._canary = None
        if state in (State.CANARY, State.DRAINING):
            for share in self._followers.values():
                share.drained = False
        if state is State.CANARY:
            self._prober.trusting = False
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
        self._prober.cancel()
        self._prober.start()

    def _watch(self) -> None:
        """Look again after a while, lest an outage be learned from the first message."""
        self._prober.cancel()
        interval_us = self._means.settings.watch_interval_us
        if interval_us:
            delay_us = probe_delay_us(interval_us, self._means.dice.random)
            self._prober.arm(delay_us, self._look_idle, announced=False)

    def _look_idle(self) -> None:
        if self._retired or self.health.state is not State.UP:
            return
        since_us = self._means.clock_us() - self._means.settings.watch_interval_us
        if any(share.delivered_us >= since_us for share in self._followers.values()):
            self._watch()
        else:
            self._prober.start()

    def _arm(self, delay_us: int | None) -> None:
        if delay_us is None:
            interval_us = self._means.settings.probe_interval_us
            delay_us = probe_delay_us(interval_us, self._means.dice.random)
        self._prober.arm(delay_us, self.probe_now, announced=True)


def _make_guard(settings: RelaySettings) -> SurgeGuard:
    return SurgeGuard(
        share=settings.surge_share, window=settings.surge_window, least=settings.surge_least
    )


def _tell_surge(guard: SurgeGuard, why: str) -> str:
    return f"{guard.refused} of the last {len(guard)} replies refused mail for good: {why}"
