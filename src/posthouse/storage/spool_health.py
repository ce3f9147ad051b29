"""Whether mail can be taken now: room on the disk, and whether it works. Used on the loop alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from posthouse import observe
from posthouse.errors import StorageBroken, StorageError, StorageFull
from posthouse.storage.spool_disk import Disk

_LOOK_AGAIN_SECONDS = 1.0
_MOST_OF_A_SMALL_DISK = 0.03
_FEWEST_INODES = 64


class Health:
    """Free space as of the last second, and the last failure until a test write succeeds."""

    def __init__(
        self,
        directory: Path,
        disk: Disk,
        *,
        min_free_bytes: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._disk = disk
        self._min_free_bytes = min_free_bytes
        self._monotonic = monotonic
        self._looked_at = float("-inf")
        self._full: str | None = None
        self.failure: StorageError | None = None

    def problem(self) -> StorageError | None:
        """Why no message can be taken, or None. At most one system call a second."""
        if self.failure is not None:
            return self.failure
        now = self._monotonic()
        if now - self._looked_at >= _LOOK_AGAIN_SECONDS:
            self._looked_at = now
            self._look(self._disk)
        return None if self._full is None else StorageFull(self._full)

    def _look(self, disk: Disk) -> None:
        try:
            room = disk.room(self._directory)
        except OSError as error:
            self._say(f"cannot ask for free space: {error}")
            return
        small = int(room.f_blocks * room.f_frsize * _MOST_OF_A_SMALL_DISK)
        wanted = min(self._min_free_bytes, small)
        free = room.f_bavail * room.f_frsize
        if free < wanted:
            self._say(f"{free >> 20} MiB free on disk, {wanted >> 20} MiB are kept free")
        elif room.f_files and room.f_favail < _FEWEST_INODES:
            self._say("no inodes left on disk")
        else:
            if self._full is not None:
                observe.note("spool", "room on the disk again: mail is taken")
            self._full = None

    def _say(self, text: str) -> None:
        if self._full is None:
            observe.alert("spool", f"no mail is taken: {text}")
        self._full = text

    def failed(self, error: StorageError) -> None:
        """Something could not be written: take nothing until `recovered`."""
        if self.failure is None:
            observe.alert("spool", f"no mail is taken: {error.detail}")
        kind = StorageFull if isinstance(error, StorageFull) else StorageBroken
        self.failure = kind(error.detail)
        self._looked_at = float("-inf")

    def recovered(self) -> None:
        """A test write succeeded."""
        if self.failure is not None:
            observe.note("spool", "storage works again: mail is taken")
        self.failure = None
