"""Token buckets: how often somebody may ask."""

from __future__ import annotations

from posthouse.domain import buckets as buckets_module
from posthouse.domain.buckets import Buckets


def test_a_burst_then_a_rate() -> None:
    """`burst` at once, then one each so many seconds; the wait that is told is enough."""
    now = [0.0]
    buckets = Buckets(per_minute=6, burst=3, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 10]
    assert buckets.peek("a") == 10
    assert buckets.take("b") == 0
    now[0] = 4.5
    assert buckets.take("a") == 6
    now[0] = 10.0
    assert buckets.peek("a") == 0
    assert buckets.take("a") == 0
    assert buckets.take("a") == 10


def test_it_never_holds_more_than_a_burst() -> None:
    """A long silence saves up no more."""
    now = [0.0]
    buckets = Buckets(per_minute=60, burst=2, clock=lambda: now[0])
    buckets.take("a")
    now[0] = 1e6
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 1]


def test_memory_is_bounded() -> None:
    """The key asked longest ago is forgotten first."""
    buckets = Buckets(per_minute=1, burst=1, clock=lambda: 0.0)
    buckets.take("first")
    for number in range(buckets_module._MAX_KEYS - 1):
        buckets.take(str(number))
    assert buckets.peek("first") > 0
    buckets.take("one more")
    assert buckets.peek("first") == 0
    assert buckets.peek("0") > 0
