"""A bucket that fills again."""

from __future__ import annotations

from posthouse.domain.allowance import Allowance

SECOND = 1_000_000


def test_fills_again() -> None:
    """What is taken comes back over the period, never more than the capacity."""
    bucket = Allowance(60, 60 * SECOND)
    assert bucket.left(0) == 60
    bucket.take(60, 0)
    assert bucket.left(0) == 0
    assert bucket.wait_seconds(10, 0) == 11
    assert bucket.left(10 * SECOND) == 10
    assert bucket.left(10**12) == 60


def test_in_debt() -> None:
    """More than is left may be taken once; then it takes its time."""
    bucket = Allowance(60, 60 * SECOND)
    bucket.take(120, 0)
    assert bucket.left(60 * SECOND) == 0
    assert bucket.left(61 * SECOND) == 1
    assert bucket.wait_seconds(1, 61 * SECOND) == 1


def test_a_clock_set_back_takes_nothing() -> None:
    """Time that runs backwards neither fills nor empties."""
    bucket = Allowance(10, SECOND)
    bucket.take(4, 10 * SECOND)
    assert bucket.left(5 * SECOND) == 6
