"""How much one page of the queue holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from posthouse.interfaces.control import MAX_PAGE_RECIPIENTS, count_fitting


def make(recipients: int) -> Any:
    return SimpleNamespace(recipients=(None,) * recipients)


def test_a_page_is_bounded_by_recipients() -> None:
    """Messages with many recipients make shorter pages, of one message at least."""
    assert count_fitting([make(1)] * 500) == 500
    assert count_fitting([make(1000)] * 300) == MAX_PAGE_RECIPIENTS // 1000
    assert count_fitting([make(50_000)] * 2) == 1
    assert count_fitting([]) == 0
