"""Waits that a wrong clock began."""

from __future__ import annotations

from posthouse.domain.instants import left_us
from posthouse.domain.pace import MAX_PAUSE_US, Pace

YEAR_US = 365 * 86_400_000_000
SECOND = 1_000_000


def test_no_wait_is_longer_than_it_can_be() -> None:
    """What lies further ahead has come; what lies ahead has not; the past has."""
    assert [left_us(at, 100, longest_us=50) for at in (0, 100, 101, 150, 151, YEAR_US)] == [
        0, 0, 1, 50, 0, 0,
    ]  # fmt: skip


def test_a_pace_goes_on_when_the_clock_is_set_back() -> None:
    """A pause and a rate of last year's clock hold up no mail."""
    pace = Pace(limit=4, per_second=10)
    pace.slower(YEAR_US)
    assert pace.take(YEAR_US) == SECOND
    assert pace.paused_us(SECOND) == 0
    assert pace.slower(SECOND) <= MAX_PAUSE_US
    pace = Pace(limit=4, per_second=10)
    assert [pace.take(YEAR_US) for _ in range(11)][-1] > 0
    assert pace.take(SECOND) == 0
