"""How often somebody may ask: token buckets by key, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Protocol

_MAX_KEYS: Final = 10_000


class RateLimit(Protocol):
    """Says for each key whether it may go on."""

    def take(self, key: str) -> int:
        """0: go on; else the seconds to wait. What is refused does not count."""

    def peek(self, key: str) -> int:
        """As `take`, but nothing counts."""


class Buckets:
    """`burst` at once, then `per_minute`. clock: seconds that never go back.

    When there are too many keys the one asked longest ago is forgotten: an attacker with
    that many addresses has other means.
    """

    def __init__(self, *, per_minute: float, burst: int, clock: Callable[[], float]) -> None:
        self._per_second = per_minute / 60
        self._burst = burst
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}  # key → (left, when)

    def take(self, key: str) -> int:
        """See `RateLimit`."""
        left, now = self._look(key)
        if left < 1:
            return self._wait(left)
        self._levels.pop(key, None)
        self._levels[key] = left - 1, now
        if len(self._levels) > _MAX_KEYS:
            del self._levels[next(iter(self._levels))]
        return 0

    def peek(self, key: str) -> int:
        """See `RateLimit`."""
        left, _ = self._look(key)
        return 0 if left >= 1 else self._wait(left)

    def _look(self, key: str) -> tuple[float, float]:
        now = self._clock()
        left, when = self._levels.get(key, (float(self._burst), now))
        return min(self._burst, left + (now - when) * self._per_second), now

    def _wait(self, left: float) -> int:
        return max(1, math.ceil((1 - left) / self._per_second))
