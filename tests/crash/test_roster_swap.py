"""A disk that fails at any step of a swap: the old roster or the new, never a mix."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.roster_disk import RosterDisk, ask
from fakes.rosters import make_roster
from fakes.vectors import DOMAIN
from posthouse.domain.finding import Finding
from posthouse.errors import StorageError

USERS = [f"u{n}" for n in range(50)]
OLD = make_roster(USERS, serial=100)
NEW = make_roster([*USERS, "late"], serial=200)
STEPS = ("fsync", "replace", "chmod", "unlink")


class Failing:
    """Counts calls of these functions of `os`; the one with number `at` fails, and all after."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        self.calls = 0
        self._at = at
        for name in STEPS:
            patch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls >= self._at:
                raise OSError(errno.EIO, "failed as the test wants it")
            return real(*arguments, **named)

        return call


def swap(directory: Path, fail_at: int) -> int:
    """Take OLD, then NEW on a failing disk; returns how many steps there were."""
    disk = RosterDisk(directory)
    disk.take_in(OLD)
    with pytest.MonkeyPatch.context() as patch:
        failing = Failing(patch, fail_at)
        with contextlib.suppress(StorageError):
            disk.take_in(NEW)
    return failing.calls


def test_every_step_of_a_swap_may_fail(tmp_path: Path) -> None:
    """After a failure anywhere the next start has one whole roster, and the swap can be made."""
    steps = swap(tmp_path / "whole", 10_000)
    assert steps >= 8
    serials = set()
    for number in range(1, steps + 1):
        directory = tmp_path / str(number)
        swap(directory, number)
        disk = RosterDisk(directory)  # the next start
        serials.add(disk.serial())
        roster = disk.get()
        late = Finding.VOUCHED if disk.serial() == 200 else Finding.ABSENT
        assert ask(roster, "late").finding is late
        assert ask(roster, "u7").finding is Finding.VOUCHED
        assert disk.files.verify(disk.keys).in_force is not None
        disk.take_in(NEW)
        assert disk.serial() == 200
        left = [name for name in disk.names() if name.startswith(DOMAIN)]
        assert len(left) == 3, left  # the state, the file, its index
    assert serials == {100, 200}
