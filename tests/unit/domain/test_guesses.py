"""The budget of wrong guesses."""

from __future__ import annotations

import pytest

from posthouse.domain import guesses
from posthouse.domain.guesses import GuessBudget


def test_a_network_may_miss_so_often_and_regains_it() -> None:
    """A full budget at once, then one miss for each part of the hour."""
    budget = GuessBudget(60)
    for _ in range(60):
        assert budget.allows("a", 0)
        budget.spend("a", 0)
    assert not budget.allows("a", 59)
    assert budget.allows("a", 61)
    budget.spend("a", 61)
    assert not budget.allows("a", 61)
    assert budget.allows("b", 61)
    assert budget.allows("a", 61 + 3600)


def test_right_guesses_cost_nothing() -> None:
    """A miss that was none is taken back, and never more than was spent."""
    budget = GuessBudget(1)
    budget.spend("a", 0)
    budget.refund("a")
    assert budget.allows("a", 0)
    budget.refund("a")
    budget.spend("a", 0)
    assert not budget.allows("a", 0)


def test_networks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network longest unseen is forgotten first."""
    monkeypatch.setattr(guesses, "MAX_NETWORKS", 2)
    budget = GuessBudget(1)
    for network in ("a", "b", "a", "c"):
        budget.spend(network, 0)
    assert not budget.allows("a", 0)
    assert budget.allows("b", 0)
    assert not budget.allows("c", 0)
