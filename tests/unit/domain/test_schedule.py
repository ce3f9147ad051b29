"""Retry delays."""

from __future__ import annotations

import pytest

from posthouse.domain.schedule import delay_us


@pytest.mark.parametrize(
    ("attempts", "expected"), [(0, 1), (1, 5), (2, 15), (3, 30), (4, 30), (1000, 30)]
)
def test_last_delay_repeats(attempts: int, expected: int) -> None:
    """Each attempt has its delay; behind the end of the list the last one repeats."""
    assert delay_us((1, 5, 15, 30), attempts) == expected


def test_single_delay() -> None:
    """A list of one delay means that delay for ever."""
    assert [delay_us((7,), n) for n in range(3)] == [7, 7, 7]
