"""Due times that no reader can have passed.

A reader remembers how far it has read a queue as (due, queue id, seq), so a row
that becomes visible must fall due behind every cursor handed out before. The
writer and the readers settle that here: a batch under way has a first due time
and readers stop short of it; what readers have reached, later batches start behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class DueClock:
    """Ascending due times, shared by the writer thread and the readers."""

    def __init__(self, clock_us: Callable[[], int], *, last_us: int) -> None:
        self._clock_us = clock_us
        self._lock = threading.Lock()
        self._last_us = last_us  # the last due time given out
        self._visible_us = last_us  # the last one committed
        self._reached_us = last_us  # how far readers may have come
        self._first_open_us: int | None = None  # the first of the batch under way

    def now_us(self) -> int:
        """The time."""
        return self._clock_us()

    def start_behind(self, stamp_us: int) -> None:
        """After a restart: what was stored up to `stamp_us` is due, wherever the clock stands."""
        if stamp_us > self._clock_us():  # set back meanwhile; a batch took less than a second
            self._last_us = self._visible_us = stamp_us + 1_000_000

    def open_batch(self, count: int, now_us: int | None = None) -> int:
        """Begin a transaction that needs `count` due times; returns the first of them."""
        now = self._clock_us() if now_us is None else now_us
        with self._lock:
            first = max(now, self._last_us + 1, self._reached_us + 1)
            self._last_us = first + count - 1
            if self._first_open_us is None:
                self._first_open_us = first
        return first

    def close_batch(self) -> None:
        """The transaction is visible, or was rolled back."""
        with self._lock:
            self._first_open_us = None
            self._visible_us = self._last_us

    def limit(self, now_us: int) -> int:
        """Up to which due time a reader may read that starts now.

        Rows that were due at once are due, also when the clock has been set back since.
        """
        with self._lock:
            limit = max(now_us, self._visible_us)
            if self._first_open_us is not None:
                limit = min(limit, self._first_open_us - 1)
            self._reached_us = max(self._reached_us, min(limit, self._clock_us()))
        return limit

    def reached(self, due_us: int) -> None:
        """A reader handed out a cursor at `due_us`."""
        with self._lock:
            self._reached_us = max(self._reached_us, due_us)
