"""Relays and books that only remember, for tests of who decides the states of next hops."""

from __future__ import annotations

from collections.abc import Sequence

from posthouse.domain.drain import State
from posthouse.errors import StorageBroken
from posthouse.ports_drain import NextHopRecord, Order


class NotingFollower:
    """Keeps the orders it was given."""

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def obey(self, order: Order) -> None:
        self.orders.append(order)

    def state(self) -> State:
        """Of the last order."""
        return self.orders[-1].health.state


class MemoryBook:
    """See `ports_drain.NextHopBook`. saves: every content ever written; broken: cannot write."""

    def __init__(self, records: Sequence[NextHopRecord] = ()) -> None:
        self.records = tuple(records)
        self.saves: list[tuple[NextHopRecord, ...]] = []
        self.broken = False

    def load(self) -> Sequence[NextHopRecord]:
        return self.records

    def save(self, records: Sequence[NextHopRecord]) -> None:
        if self.broken:
            raise StorageBroken("no space left on device")
        self.records = tuple(records)
        self.saves.append(self.records)
