"""Look-ups that take milliseconds, outside the event loop, and not too many of them.

One for all rosters of a worker; a `ports_roster.SlowLookUps`. A few threads
compute (scrypt gives up the GIL), a bounded number waits. What a client network
may guess wrong in an hour is bounded too (domain/guesses): a dictionary attack
costs us a minute of a core, and the attacker learns nothing afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from posthouse.domain.guesses import GuessBudget

# With 40 ms a digest the last of them waits for four seconds.
WAITING_PER_THREAD: Final = 100
DEFAULT_THREADS: Final = 2
DEFAULT_GUESSES: Final = 100


class LookUpPool:
    """See the module. Used in one event loop."""

    def __init__(
        self, *, threads: int = DEFAULT_THREADS, guesses_an_hour: int = DEFAULT_GUESSES
    ) -> None:
        """threads: at most so many digests at once, each with up to 64 MiB of memory."""
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None  # most nodes never need it
        self._under_way = 0
        self._budget = GuessBudget(guesses_an_hour)

    def set_guesses(self, guesses_an_hour: int) -> None:
        """Change the budget; everybody begins with a full one."""
        if guesses_an_hour != self._budget.misses_an_hour:
            self._budget = GuessBudget(guesses_an_hour)

    def run(self, test: Callable[[], bool]) -> Awaitable[bool] | None:
        """See the port."""
        if self._under_way >= self._threads * (1 + WAITING_PER_THREAD):
            return None
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="look-up")
        self._under_way += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, test)
        future.add_done_callback(self._on_done)
        return future

    def _on_done(self, _future: asyncio.Future[bool]) -> None:
        self._under_way -= 1

    def allows(self, network: str) -> bool:
        """See the port."""
        if not network:
            return True
        now_s = asyncio.get_running_loop().time()
        if not self._budget.allows(network, now_s):
            return False
        self._budget.spend(network, now_s)
        return True

    def refund(self, network: str) -> None:
        """See the port."""
        if network:
            self._budget.refund(network)

    def close(self) -> None:
        """What waits is not begun any more."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
