"""How much of something one party may do in a while: a bucket that fills again.

Time is handed in; instants are microseconds.
"""

from __future__ import annotations


class Allowance:
    """At most `capacity` at once, and as much again in `period_us`.

    `take` is never refused, and the bucket may fall below zero: where it is known only
    afterwards how much was used, a question larger than the bucket is answered once, not never.
    """

    __slots__ = ("_at_us", "_capacity", "_level", "_period_us")

    def __init__(self, capacity: int, period_us: int) -> None:
        self._capacity = capacity
        self._period_us = period_us
        self._level = float(capacity)
        self._at_us: int | None = None

    def _fill(self, now_us: int) -> None:
        if self._at_us is not None and now_us > self._at_us:
            gained = (now_us - self._at_us) * self._capacity / self._period_us
            self._level = min(self._capacity, self._level + gained)
        self._at_us = now_us

    def left(self, now_us: int) -> int:
        """How many may be taken now, >= 0."""
        self._fill(now_us)
        return max(0, int(self._level))

    def take(self, count: int, now_us: int) -> None:
        """Take `count`, whether or not they are left."""
        self._fill(now_us)
        self._level -= count

    def wait_seconds(self, count: int, now_us: int) -> int:
        """Whole seconds, >= 1, until `count` (at most the capacity) can be taken."""
        self._fill(now_us)
        missing = min(count, self._capacity) - self._level
        return max(1, int(-(-missing * self._period_us // self._capacity) // 1_000_000) + 1)
