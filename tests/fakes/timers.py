"""A clock and timers that a test moves by hand: nothing waits, nothing depends on the machine."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

TURNS = 40


async def turn_over(turns: int = TURNS) -> None:
    """Let everything that is ready in the loop run, and what that makes ready, and so on."""
    for _ in range(turns):
        await asyncio.sleep(0)


class _Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Timers:
    """`clock_us` and `later` for what is tested; `advance` for the test."""

    def __init__(self, now_us: int = 1_700_000_000_000_000) -> None:
        self.now_us = now_us
        self._due: list[tuple[int, int, _Timer]] = []
        self._order = count()

    def clock_us(self) -> int:
        return self.now_us

    def later(self, seconds: float, callback: Callable[[], None], /) -> _Timer:
        timer = _Timer(callback)
        heapq.heappush(self._due, (self.now_us + round(seconds * 1e6), next(self._order), timer))
        return timer

    @property
    def pending(self) -> int:
        """Timers that will still call."""
        return sum(timer.callback is not None for _, _, timer in self._due)

    async def advance(self, seconds: float) -> None:
        """Let that time pass: timers fire in order, the loop turns over after each."""
        end_us = self.now_us + round(seconds * 1e6)
        await turn_over()
        while self._due and self._due[0][0] <= end_us:
            due_us, _, timer = heapq.heappop(self._due)
            if timer.callback is None:
                continue
            self.now_us = max(self.now_us, due_us)
            timer.callback()
            await turn_over()
        self.now_us = end_us
