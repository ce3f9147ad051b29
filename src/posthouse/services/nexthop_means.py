"""What all next hops on the board share: ports, clock, timers, tasks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from posthouse.ports_dns import Resolver
from posthouse.ports_relay import Connector
from posthouse.services.relay_ledger import Later
from posthouse.services.relay_settings import RelaySettings

if TYPE_CHECKING:
    from posthouse.services.nexthop_entry import Entry

MAX_PROBES: Final = 50
"""Probes at once, all next hops together: a node of thousands starts without a storm."""


@dataclass(slots=True, kw_only=True)
class BoardMeans:
    """`settings` is swapped whole by a reload.

    changed: hears of every change of a state or its reason. expected: see `NextHopBoard`; it
    counts for `nexthop_entry.START_SECONDS`.
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
