"""The decision to turn a client away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.domain.standby import (
    FORGET_US,
    PATIENCE_US,
    PROVEN_US,
    Turned,
    decide_turn,
    is_proven,
)

MINUTE = 60_000_000


def come(minutes: list[float], patience: int = 3) -> list[bool]:
    """Let a client come at these minutes; True where it is let in."""
    known: Turned | None = None
    let_in = []
    for minute in minutes:
        turned = decide_turn(known, now_us=int(minute * MINUTE), patience=patience)
        let_in.append(turned is None)
        known = turned if turned is not None else known
    return let_in


@pytest.mark.parametrize(
    ("minutes", "let_in"),
    [
        pytest.param([0, 5, 10, 16], [False, False, False, True], id="three times, then in"),
        pytest.param([0, 1, 2, 3, 14.9, 15], [False] * 5 + [True], id="not before 15 minutes"),
        pytest.param([0, 60], [False, False], id="patience counts times, too"),
        pytest.param([0, 30, 60, 90, 91], [False] * 3 + [True] * 2, id="and stays in"),
        pytest.param([0, 30, 60, 8000], [False] * 4, id="forgotten after five days"),
        pytest.param([100, 130, 50, 60, 70, 80], [False] * 5 + [True], id="clock set back"),
    ],
)
def test_patience(minutes: list[float], let_in: list[bool]) -> None:
    """A client is turned away so often and so long, and never longer."""
    assert come(minutes) == let_in


@given(st.lists(st.integers(1, 6 * 60), min_size=40, max_size=60), st.integers(1, 10))
def test_nobody_is_turned_away_for_good(gaps: list[int], patience: int) -> None:
    """Who comes again within six hours, always, is let in in the end."""
    minutes: list[float] = []
    for gap in gaps:
        minutes.append((minutes[-1] if minutes else 0) + gap)
    reached = minutes[-1] >= 15
    assert any(come(minutes, patience)) is reached


def test_proof() -> None:
    """A network's proof counts for its time, and not before it was given."""
    assert not is_proven(None, now_us=5)
    assert is_proven(5, now_us=5)
    assert is_proven(5, now_us=5 + PROVEN_US)
    assert not is_proven(5, now_us=6 + PROVEN_US)
    assert not is_proven(5, now_us=4)
    assert FORGET_US > PATIENCE_US
