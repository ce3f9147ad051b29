"""The rosters in force, as one worker sees them: opened, swapped whole, given back.

Opening reads a header and compiles its rules, giving back unmaps a body: both
happen in a thread, so that a swap costs the event loop a few milliseconds. A look-up
that is under way goes on with the roster it began with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from posthouse import observe
from posthouse.errors import StorageError
from posthouse.mail.wire_text import format_time
from posthouse.ports_recipients import Fingerprint, RecipientDirectory
from posthouse.ports_roster import (
    RosterDirectory,
    RosterKeys,
    RosterNote,
    RosterShelf,
    SlowLookUps,
)
from posthouse.services.aside import run_aside

LOOK_EVERY_SECONDS: Final = 1.0
QUIET_US: Final = 10_000_000
"""A file is looked at so often that its note is not written anew each time."""


class RosterWatch:
    """See the module. `swapped`: who is told of a domain that has another roster now."""

    def __init__(
        self,
        shelf: RosterShelf,
        keys: Mapping[str, RosterKeys],
        *,
        table: dict[str, RecipientDirectory],
        slow: SlowLookUps,
        wait: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """keys: by domain. table: where look-ups find the directory of a domain."""
        self._shelf = shelf
        self._keys = dict(keys)
        self._table = table
        self._slow = slow
        self._wait = wait
        self._open: dict[str, RosterDirectory] = {}
        self._versions: dict[str, Fingerprint | None] = {}
        self._directory_version: Fingerprint | None = None
        self._refreshing = asyncio.Lock()
        self.swapped: list[Callable[[str], None]] = []

    def get(self, domain: str) -> RosterDirectory | None:
        """The roster in force now. Ask again for each use."""
        return self._open.get(domain)

    async def set_keys(self, keys: Mapping[str, RosterKeys]) -> None:
        """Serve these domains, with these keys, from now on."""
        async with self._refreshing:
            changed = {d for d, known in self._keys.items() if keys.get(d) != known}
            self._keys = dict(keys)
            for domain in changed:
                self._versions.pop(domain, None)
                if domain not in keys:
                    await self._swap(domain, None)
        await self.refresh()

    async def refresh(self) -> None:
        """Take up every roster that was replaced or taken out of force.

        One that is damaged leaves the one that is open in force.
        """
        async with self._refreshing:
            for domain, keys in self._keys.items():
                version = self._shelf.get_version(domain)
                if domain in self._versions and version == self._versions[domain]:
                    continue
                self._versions[domain] = version
                await self._take_up(domain, keys)

    async def _take_up(self, domain: str, keys: RosterKeys) -> None:
        fresh = await run_aside(lambda: self._shelf.open(keys, self._slow))
        old = self._open.get(domain)
        if fresh is None:
            if old is None or await self._is_out_of_force(domain, keys):
                await self._swap(domain, None)
            else:
                observe.alert("rosters", f"{domain}: its roster is damaged", domain=domain)
        elif old is not None and fresh.head_sha256 == old.head_sha256:
            await run_aside(fresh.close)  # something else changed, such as what waits
        else:
            await self._swap(domain, fresh)

    async def _is_out_of_force(self, domain: str, keys: RosterKeys) -> bool:
        """Tell a roster that was taken out of force, or whose key is void, from a damaged one."""
        try:
            facts = (await asyncio.to_thread(self._shelf.get_state, domain)).in_force
        except StorageError:
            return False
        return facts is None or facts.known.key_id not in keys.roster_key_ids

    async def _swap(self, domain: str, fresh: RosterDirectory | None) -> None:
        old = self._open.pop(domain, None)
        if fresh is not None:
            self._open[domain] = self._table[domain] = fresh
        elif old is not None and self._table.get(domain) is old:
            del self._table[domain]
        if fresh is not None:
            for told in self.swapped:
                told(domain)
        if old is not None:
            await run_aside(old.close)

    async def run(self) -> None:
        """Look again and again, for ever. An idle look costs one stat, whatever the domains."""
        again = False
        while True:
            await self._wait(LOOK_EVERY_SECONDS)
            version = self._shelf.get_directory_version()
            changed = version != self._directory_version
            if changed or again:  # twice: a second rename may fall into the same clock tick
                self._directory_version = version
                await self.refresh()
            again = changed

    def describe(self) -> Mapping[str, Mapping[str, Any]]:
        """For `status`, by domain: the roster in force here, and what the subscriber says."""
        return {domain: self._describe(domain) for domain in self._keys}

    def _describe(self, domain: str) -> dict[str, Any]:
        note = self._shelf.read_note(domain)
        roster = self._open.get(domain)
        facts: dict[str, Any] = {"entries": 0, "loaded_at": "", "problem": "no roster yet"}
        if roster is not None:
            facts = dict(roster.describe())
        facts["domain"], facts["source"] = domain, note.source
        facts["kind"] = "roster"
        facts["problem"] = "; ".join(filter(None, (facts["problem"], _tell_failure(note))))
        facts["stage"] = note.stage
        facts["asked_at"], facts["next_at"] = _tell(note.asked_us), _tell(note.next_us)
        try:
            aside = self._shelf.get_state(domain).set_aside
        except StorageError as error:
            facts["problem"] = error.detail
            return facts
        if aside is not None:
            facts["set_aside"] = aside.known.serial
            facts["set_aside_why"] = aside.why
        return facts


def _tell_failure(note: RosterNote) -> str:
    """What the last attempt failed at, and when the next is; "" when it did not fail."""
    if not note.problem:
        return ""
    where = f" ({note.stage})" if note.stage else ""
    again = ""
    if note.next_us - note.asked_us > QUIET_US:
        again = f"; next attempt {_tell(note.next_us)}"
    return f"the last attempt failed{where}: {note.problem}{again}"


def _tell(instant_us: int) -> str:
    """An instant as documents have it; "" for never."""
    return format_time(instant_us // 1_000_000) if instant_us else ""
