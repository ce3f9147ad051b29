"""`ports_live.LiveCache` in memory."""

from __future__ import annotations

from posthouse.domain.live_check import Entry
from posthouse.errors import StorageError


class MemoryLiveCache:
    """failure: raised by `find` while it is set."""

    def __init__(self, max_entries: int = 1000) -> None:
        self.entries: dict[str, Entry] = {}
        self.failure: StorageError | None = None
        self._max_entries = max_entries

    async def find(self, address: str) -> Entry | None:
        if self.failure is not None:
            raise self.failure
        return self.entries.get(address)

    def put(self, address: str, entry: Entry) -> None:
        self.entries[address] = entry
        if len(self.entries) > self._max_entries:
            order = sorted(self.entries, key=lambda a: self.entries[a].exists)  # stable: by age
            del self.entries[order[0]]

    async def close(self) -> None:
        pass
