"""What all next hops of one relay share: ports, clock, timers, tasks, budget of memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from posthouse import observe
from posthouse.ports_dns import Resolver
from posthouse.ports_relay import Connector
from posthouse.ports_spool import Spool
from posthouse.services.relay_ledger import Later, Ledger
from posthouse.services.relay_settings import RelaySettings
from posthouse.services.relay_vouching import Vouching


class Means:
    """Handed to every route. `settings` is swapped whole by a reload.

    body_bytes: octets of message bodies in memory now, all routes together.
    vouching: the agreements that mail goes under.
    look: compare all queues with the table now (`ReadyQueue.notice` hears of it).
    """

    def __init__(
        self,
        *,
        spool: Spool,
        connector: Connector,
        resolver: Resolver,
        settings: RelaySettings,
        clock_us: Callable[[], int],
        dice: random.Random,
        later: Later,
        ledger: Ledger,
        look: Callable[[], None],
        vouching: Vouching,
    ) -> None:
        self.spool = spool
        self.connector = connector
        self.resolver = resolver
        self.settings = settings
        self.clock_us = clock_us
        self.dice = dice
        self.later = later
        self.ledger = ledger
        self.look = look
        self.vouching = vouching
        self.body_bytes = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def start(
        self,
        work: Coroutine[Any, Any, None],
        what: str,
        failed: Callable[[str], None] | None = None,
    ) -> asyncio.Task[None]:
        """Run a task that may not take the relay down: `failed` hears of a fault of our own."""
        task = asyncio.get_running_loop().create_task(_supervise(work, what, failed))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


async def _supervise(
    work: Coroutine[Any, Any, None], what: str, failed: Callable[[str], None] | None
) -> None:
    try:
        await work
    except Exception as error:  # a supervised task: the next hop is tried again later
        observe.trouble("relay", what, error)
        if failed is not None:
            failed(f"local error: {type(error).__name__}")
