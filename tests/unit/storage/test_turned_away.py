"""The table of those who were turned away."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from posthouse.domain.standby import Turned
from posthouse.storage.turned_away import SLOTS, TurnedAway


def test_finds_what_was_put(tmp_path: Path) -> None:
    """What was put is found under the same words only, and the latest counts."""
    table = TurnedAway(tmp_path / "table")
    assert table.find("a", "b") is None
    table.put(Turned(1, 2, 3), "a", "b")
    table.put(Turned(1, 9, 4), "a", "b")
    assert table.find("a", "b") == Turned(1, 9, 4)
    assert table.find("ab", "") is None
    assert table.find("b", "a") is None
    table.close()


def test_others_and_restarts_see_it(tmp_path: Path) -> None:
    """Another mapping of the file sees it, now and later."""
    one, two = TurnedAway(tmp_path / "table"), TurnedAway(tmp_path / "table")
    one.put(Turned(1, 2, 3), "x")
    assert two.find("x") == Turned(1, 2, 3)
    one.close()
    two.close()
    three = TurnedAway(tmp_path / "table")
    assert three.find("x") == Turned(1, 2, 3)
    three.close()
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_size_is_constant_and_the_oldest_go(tmp_path: Path) -> None:
    """A flood of strangers pushes out the oldest and makes nothing grow."""
    path = tmp_path / "table"
    table = TurnedAway(path)
    size = path.stat().st_size
    for number in range(3 * SLOTS):
        table.put(Turned(number, number, 1), "flood", str(number))
    assert path.stat().st_size == size
    kept = [n for n in range(3 * SLOTS) if table.find("flood", str(n)) is not None]
    assert len(kept) <= SLOTS
    assert sum(n >= 2 * SLOTS for n in kept) > SLOTS * 0.8
    table.close()


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 5_000_000])
def test_a_file_of_another_size_is_replaced(tmp_path: Path, content: bytes) -> None:
    """What an earlier version left is no trouble."""
    path = tmp_path / "table"
    path.write_bytes(content)
    table = TurnedAway(path)
    table.put(Turned(1, 1, 1), "x")
    assert table.find("x") == Turned(1, 1, 1)
    assert path.stat().st_mode & 0o777 == 0o600
    table.close()


def _open_and_put(path: Path, number: int) -> None:
    table = TurnedAway(path)
    table.put(Turned(number, number, number), str(number))
    table.close()


def test_made_by_many_at_once(tmp_path: Path) -> None:
    """Workers that start together end with one table."""
    path = tmp_path / "table"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_open_and_put, args=(path, n)) for n in range(1, 9)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    table = TurnedAway(path)
    assert [table.find(str(n)) for n in range(1, 9)] == [Turned(n, n, n) for n in range(1, 9)]
    assert os.listdir(tmp_path) == ["table"]
    table.close()


def test_the_disk_has_room_for_all_of_it(tmp_path: Path) -> None:
    """No holes: on a disk that fills up later a worker would die of SIGBUS at its next write."""
    path = tmp_path / "table"
    TurnedAway(path).close()
    size = path.stat().st_size
    assert path.stat().st_blocks * 512 >= size
    with path.open("r+b") as file:  # as an earlier version made it
        key = file.read(32)
        file.truncate(32)
        file.truncate(size)
    TurnedAway(path).close()
    assert path.stat().st_blocks * 512 >= size
    assert path.read_bytes()[:32] == key


def test_a_table_without_key_is_made_anew(tmp_path: Path) -> None:
    """What a power cut left of it has no key that nobody knows."""
    path = tmp_path / "table"
    TurnedAway(path).close()
    path.write_bytes(bytes(path.stat().st_size))
    TurnedAway(path).close()
    assert any(path.read_bytes()[:32])
