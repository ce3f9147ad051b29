"""Rosters on a disk in a test's own directory, and what is asked of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from fakes.vectors import DOMAIN, NOW_S, PUBLIC_KEY, ROSTER_KEY
from posthouse.domain.finding import Answer
from posthouse.ports_roster import RosterKeys, Taken
from posthouse.storage.roster_directory import MappedRoster
from posthouse.storage.roster_store import RosterFiles

KEYS = RosterKeys(domain=DOMAIN, party=DOMAIN, public_keys=(PUBLIC_KEY,), roster_keys=(ROSTER_KEY,))
NOW_US = NOW_S * 1_000_000


class AtOnce:
    """`ports_roster.SlowLookUps` without threads. room: how many may still be started."""

    def __init__(self, *, room: int = 1_000_000, guesses: int = 1_000_000) -> None:
        self.room = room
        self.guesses = guesses
        self.started = 0

    def run(self, test: Callable[[], bool]) -> Awaitable[bool] | None:
        if not self.room:
            return None
        self.room -= 1
        self.started += 1
        return self._run(test)

    async def _run(self, test: Callable[[], bool]) -> bool:
        return test()

    def allows(self, network: str) -> bool:
        if not network:
            return True
        self.guesses -= 1
        return self.guesses >= 0

    def refund(self, network: str) -> None:
        self.guesses += bool(network)


class RosterDisk:
    """One domain's rosters in `directory`. now_us: the clock, to be set."""

    def __init__(self, directory: Path, *, domain: str = DOMAIN) -> None:
        self.now_us = NOW_US
        self.keys = msgspec.structs.replace(KEYS, domain=domain)
        self.directory = directory
        self.files = RosterFiles(directory, clock_s=lambda: self.now_us / 1_000_000)
        self.files.prepare()

    def take_in(self, data: bytes, *, keys: RosterKeys = KEYS, loss: int = 20) -> Taken:
        """Take in a file, in two pieces."""
        intake = self.files.begin(keys.domain)
        intake.write(data[:100])
        intake.write(data[100:])
        return self.files.take_in(intake, keys, now_us=self.now_us, max_loss_percent=loss)

    def open(self, slow: AtOnce | None = None) -> MappedRoster | None:
        """The roster in force, as a worker has it."""
        return self.files.open(self.keys, slow or AtOnce())

    def get(self, slow: AtOnce | None = None) -> MappedRoster:
        roster = self.open(slow)
        assert roster is not None
        return roster

    def serial(self) -> int:
        """Of the roster in force, 0 without one."""
        facts = self.files.get_state(DOMAIN).in_force
        return facts.known.serial if facts else 0

    def names(self) -> list[str]:
        """What lies in the directory."""
        return sorted(path.name for path in self.directory.iterdir())


def ask(roster: MappedRoster, local_part: str) -> Answer:
    """What a roster with a fast digest says."""
    answer = roster.find(local_part)
    assert isinstance(answer, Answer)
    return answer
