"""A roster file on this machine's disk, put there by whoever looks after it. A `RosterSource`.

It is copied, never mapped where it lies: somebody may write to it in place.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from posthouse.errors import StorageBroken
from posthouse.ports_recipients import Fingerprint
from posthouse.ports_roster import Fetched, RosterIntake
from posthouse.storage.whole_files import make_fingerprint

LOOK_SECONDS: Final = 2.0
_PIECE_BYTES: Final = 1 << 20


class LocalRoster:
    """See the module. A file that changed is read anew; a damaged one is refused like any."""

    interval_seconds: float | None = LOOK_SECONDS

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._seen: Fingerprint | None = None
        self._good: Fingerprint | None = None
        self._bad: Fingerprint | None = None

    async def fetch(self, sink: RosterIntake, *, serial: int, whole: bool) -> Fetched:  # noqa: ARG002
        """See the port. whole: always. Reads in the loop, pieces of 1 MiB from the page cache."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise StorageBroken(f"{self._path}: {error.strerror or error}") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StorageBroken(f"{self._path}: not a regular file")
            version = make_fingerprint(status)
            if version == self._bad:
                return Fetched.STILL_BAD
            if version == self._good and serial:
                return Fetched.NOT_MODIFIED
            while piece := os.read(descriptor, _PIECE_BYTES):
                sink.write(piece)
        except OSError as error:
            raise StorageBroken(f"{self._path}: {error.strerror or error}") from error
        finally:
            os.close(descriptor)
        self._seen = version
        return Fetched.NEW

    def settle(self, *, good: bool) -> None:
        """Remember which state of the file that was."""
        self._good, self._bad = (self._seen, None) if good else (None, self._seen)
