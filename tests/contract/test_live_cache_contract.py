"""Promises of `ports_live.LiveCache`, kept by the engine and by the fake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fakes.live_cache import MemoryLiveCache
from posthouse.domain.live_check import Entry
from posthouse.node_live import LazyLiveCache
from posthouse.ports_live import LiveCache
from posthouse.storage.live_cache import EmbeddedLiveCache

NOW_US = 1_700_000_000_000_000


@pytest.fixture(params=["embedded", "lazy", "fake"])
async def cache(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LiveCache]:
    made: LiveCache
    if request.param == "fake":
        made = MemoryLiveCache()
    elif request.param == "lazy":
        made = LazyLiveCache(tmp_path / "live.db", lambda: NOW_US)
    else:
        made = await EmbeddedLiveCache.open(tmp_path / "live.db", lambda: NOW_US)
    yield made
    await made.close()


async def test_what_is_put_is_found(cache: LiveCache) -> None:
    """At once, and the last word counts."""
    assert await cache.find("a@example.com") is None
    cache.put("a@example.com", Entry(True, NOW_US))
    cache.put('"ü b"@example.com', Entry(False, NOW_US - 5))
    assert await cache.find("a@example.com") == Entry(True, NOW_US)
    assert await cache.find('"ü b"@example.com') == Entry(False, NOW_US - 5)
    assert await cache.find("A@example.com") is None
    cache.put("a@example.com", Entry(False, NOW_US + 1))
    assert await cache.find("a@example.com") == Entry(False, NOW_US + 1)
