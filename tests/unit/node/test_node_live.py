"""The cache of live verification is made when it is needed, and its loss costs no mail."""

from __future__ import annotations

import asyncio
from pathlib import Path

from posthouse.domain.live_check import Entry
from posthouse.node_live import LazyLiveCache


async def test_no_file_before_the_first_look(tmp_path: Path) -> None:
    """Nodes with lists for all domains have none; many first looks open it once."""
    cache = LazyLiveCache(tmp_path / "live.db", lambda: 5)
    cache.put("a@example.com", Entry(True, 1))
    assert list(tmp_path.iterdir()) == []
    assert await asyncio.gather(*(cache.find("a@example.com") for _ in range(5))) == [None] * 5
    cache.put("a@example.com", Entry(True, 1))
    assert await cache.find("a@example.com") == Entry(True, 1)
    await cache.close()


async def test_a_file_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    """Findings are then remembered in memory only."""
    (tmp_path / "live.db").mkdir()
    cache = LazyLiveCache(tmp_path / "live.db", lambda: 5)
    for _ in range(2):
        assert await cache.find("a@example.com") is None
        cache.put("a@example.com", Entry(True, 1))
    await cache.close()
