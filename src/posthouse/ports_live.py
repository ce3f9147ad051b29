"""What live verification needs of the world."""

from __future__ import annotations

from typing import Protocol

from posthouse.domain.live_check import Entry


class LiveCache(Protocol):
    """Findings that outlive the process, shared by all workers. Bounded: the oldest make room,
    those that say "absent" first.

    Addresses are kept as keyed digests: the file is no address book. Called in the event loop.
    """

    async def find(self, address: str) -> Entry | None:
        """The last finding, of whatever age. Raises StorageError."""

    def put(self, address: str, entry: Entry) -> None:
        """Remember; on disk within a second or so. Never blocks, never raises."""

    async def close(self) -> None:
        """Write what is left, close."""
