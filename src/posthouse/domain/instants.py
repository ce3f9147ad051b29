"""Instants that were written down by a clock that may have been wrong.

Whoever waits until an instant knows how long the wait can be. One that lies further
ahead was set while the clock was ahead, and has come: nothing waits for a year because
a clock was a year ahead for a minute.
"""

from __future__ import annotations


def left_us(until_us: int, now_us: int, *, longest_us: int) -> int:
    """Microseconds until `until_us`; 0: it has come, or no wait is so long."""
    left = until_us - now_us
    return left if 0 < left <= longest_us else 0
