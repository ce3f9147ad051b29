"""What workers learn about agreements, handed to the control process as small files.

One file is one report: written beside its place, flushed, renamed. The control
process takes the oldest first, puts what they say on record and removes them;
the book knows the names of those it took, so a crash in between counts nothing
twice. A power cut may lose what was gathered within the last second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from posthouse import observe
from posthouse.errors import StorageError
from posthouse.ports_agreements import RefusedLogin, Report, Sighting
from posthouse.storage.whole_files import replace_file, storage_errors

HAND_OVER_SECONDS: Final = 1.0
# Addresses in one report: a worker under attack fills no disk (1,000 a second at most).
MAX_GATHERED: Final = 5_000
# Reports nobody takes (the control process is down): beyond this the newest are dropped.
MAX_FILES: Final = 10_000
_SUFFIX: Final = ".report"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Report).decode


class SightingsOutbox:
    """A worker's end; `ports_agreements.Sightings`. Run `run` beside it."""

    def __init__(self, directory: Path, *, source: str, clock_us: Callable[[], int]) -> None:
        """source: tells this worker from the others."""
        self._directory = directory
        self._source = source
        self._clock_us = clock_us
        self._gathered: dict[tuple[str, str], Sighting] = {}
        self._logins: dict[str, RefusedLogin] = {}
        self._dropped = 0
        self._in_trouble = False

    def note_message(self, sighting: Sighting) -> None:
        """Add to what is known of the address since the last report."""
        key = (sighting.canonical, sighting.address)
        known = self._gathered.get(key)
        if known is None:
            if len(self._gathered) >= MAX_GATHERED:
                self._dropped += 1
                return
            self._gathered[key] = sighting
            return
        self._gathered[key] = msgspec.structs.replace(
            sighting,
            messages=known.messages + sighting.messages,
            bytes=known.bytes + sighting.bytes,
        )

    def note_wanted(self, sighting: Sighting) -> None:
        """As a sighting without a message."""
        if (sighting.canonical, sighting.address) not in self._gathered:
            self.note_message(sighting)

    def note_refused_login(self, agreement_id: str, why: str) -> None:
        """Once for each agreement and report."""
        if len(self._logins) < MAX_GATHERED:
            self._logins[agreement_id] = RefusedLogin(
                agreement_id=agreement_id, why=why[:500], at_us=self._clock_us()
            )

    async def run(self) -> None:
        """Hand over about once a second, for ever."""
        while True:
            await asyncio.sleep(HAND_OVER_SECONDS)
            await self.hand_over()

    async def hand_over(self) -> None:
        """Write what was gathered; kept for later when the disk does not take it."""
        if not self._gathered and not self._logins:
            return
        gathered, logins = self._gathered, self._logins
        self._gathered, self._logins = {}, {}
        name = f"{self._clock_us():020d}-{self._source}-{secrets.token_hex(4)}"
        report = Report(
            name=name,
            sightings=tuple(gathered.values()),
            refused_logins=tuple(logins.values()),
        )
        try:
            await asyncio.to_thread(self._write, report)
        except StorageError as error:
            if not self._in_trouble:  # once, not every second
                observe.trouble("agreements", "what was learned cannot be handed over", error)
            self._in_trouble = True
            for sighting in gathered.values():
                self.note_message(sighting)
            self._logins.update(logins)
        else:
            self._in_trouble = False
        if self._dropped:
            observe.note("agreements", f"{self._dropped} addresses were not reported: too many")
            self._dropped = 0

    def _write(self, report: Report) -> None:
        with storage_errors(self._directory):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            waiting = sum(1 for _ in os.scandir(self._directory))
        if waiting >= MAX_FILES:
            observe.note("agreements", "nobody takes what is learned of addresses; it is dropped")
            return
        replace_file(self._directory / f"{report.name}{_SUFFIX}", [_encode(report)])


class ReportsInbox:
    """The control process's end; `ports_agreements.Reports`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, limit: int) -> Sequence[Report]:
        """The oldest reports, at most `limit`. Raises StorageError."""
        with storage_errors(self._directory):
            try:
                names = sorted(
                    name for name in os.listdir(self._directory) if name.endswith(_SUFFIX)
                )
            except FileNotFoundError:
                return []
            reports: list[Report] = []
            for name in names[:limit]:
                path = self._directory / name
                try:
                    report = _decode(path.read_bytes())
                except msgspec.MsgspecError as error:
                    observe.trouble("agreements", f"{path}: set aside", error)
                    path.rename(path.with_suffix(".damaged"))
                    continue
                if f"{report.name}{_SUFFIX}" == name:
                    reports.append(report)
                else:
                    path.rename(path.with_suffix(".damaged"))
            return reports

    def forget(self, reports: Iterable[Report]) -> None:
        """Remove them. What cannot be removed is known to the book by its name."""
        for report in reports:
            with contextlib.suppress(OSError):
                (self._directory / f"{report.name}{_SUFFIX}").unlink(missing_ok=True)
