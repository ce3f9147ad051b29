"""When to ask for a roster again."""

from __future__ import annotations

import pytest

from posthouse.domain.refresh import plan_refresh


@pytest.mark.parametrize(
    ("asked", "dice", "seconds"),
    [
        (3600, 0.5, 3600),
        (3600, 0.0, 3240),
        (3600, 0.999, 3959),
        (1, 0.0, 60),
        (60, 0.0, 60),
        (10**9, 0.999, 86_400),
        (86_400, 0.0, 77_760),
    ],
)
def test_after_a_good_answer(asked: int, dice: float, seconds: int) -> None:
    """As the roster says, ten percent more or less, from a minute to a day."""
    assert int(plan_refresh(asked, failures=0, dice=dice)) == seconds


def test_after_failures() -> None:
    """From the lower of refresh_seconds and a minute, doubling to an hour."""
    waits = [plan_refresh(3600, failures=n, dice=0.9) for n in range(1, 10)]
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert plan_refresh(20, failures=1, dice=0) == 20
    assert plan_refresh(3600, failures=10_000, dice=0) == 3600


def test_retry_after_is_honoured_up_to_an_hour() -> None:
    """What the other side asks for counts when it is longer, and not beyond an hour."""
    assert plan_refresh(3600, failures=1, dice=0, retry_after=600) == 600
    assert plan_refresh(3600, failures=1, dice=0, retry_after=1) == 60
    assert plan_refresh(3600, failures=1, dice=0, retry_after=10**6) == 3600
