"""Findings of live verification on disk: restarts, damage, bounds, and no addresses to read."""

from __future__ import annotations

from pathlib import Path

from posthouse.domain.live_check import NEGATIVE_US, POSITIVE_US, Entry
from posthouse.storage.live_cache import EmbeddedLiveCache

NOW_US = 1_700_000_000_000_000


async def open_cache(path: Path, now_us: int = NOW_US, limit: int = 1000) -> EmbeddedLiveCache:
    return await EmbeddedLiveCache.open(path, lambda: now_us, max_entries=limit)


async def test_survives_a_restart_and_is_shared(tmp_path: Path) -> None:
    """What one worker wrote the next start finds, and another worker beside it."""
    first = await open_cache(tmp_path / "live.db")
    first.put("alice@example.com", Entry(True, NOW_US))
    await first.close()
    second = await open_cache(tmp_path / "live.db")
    third = await open_cache(tmp_path / "live.db")
    for cache in (second, third):
        assert await cache.find("alice@example.com") == Entry(True, NOW_US)
        await cache.close()


async def test_holds_no_address(tmp_path: Path) -> None:
    """The file of a thief is no list of users."""
    cache = await open_cache(tmp_path / "live.db")
    cache.put("alice@example.com", Entry(True, NOW_US))
    await cache.close()
    for path in tmp_path.iterdir():
        assert b"alice" not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0


async def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    """It is a cache: nothing but time is lost."""
    (tmp_path / "live.db").write_bytes(b"no database" * 1000)
    cache = await open_cache(tmp_path / "live.db")
    cache.put("a@example.com", Entry(True, NOW_US))
    assert await cache.find("a@example.com") == Entry(True, NOW_US)
    await cache.close()


async def test_expired_ones_go_and_negative_ones_make_room(tmp_path: Path) -> None:
    """Strangers fill it with addresses that do not exist; whom we know to exist stays."""
    cache = await open_cache(tmp_path / "live.db", limit=12)
    cache.put("old@example.com", Entry(True, NOW_US - POSITIVE_US))
    cache.put("guess@example.com", Entry(False, NOW_US - NEGATIVE_US))
    for number in range(10):
        cache.put(f"user{number}@example.com", Entry(True, NOW_US - number))
        cache.put(f"guess{number}@example.com", Entry(False, NOW_US - number))
    await cache.close()
    cache = await open_cache(tmp_path / "live.db")
    assert await cache.find("old@example.com") is None
    assert await cache.find("guess@example.com") is None
    for number in range(10):
        assert await cache.find(f"user{number}@example.com") is not None
        kept = await cache.find(f"guess{number}@example.com")
        assert (kept is not None) == (number < 2)
    await cache.close()
