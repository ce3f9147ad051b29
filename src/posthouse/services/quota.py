"""Quotas: how much of the disk one domain may have, and how many recipients, in the whole node.

At RCPT a look into a set; what is counted is counted elsewhere. A worker knows
what lies in its own shards from the spool's totals, and adds what it has
accepted since: never too little. What the other workers have it reads from
files they leave in `run/`, at most a second or two old. So a domain may go over
by what all workers accept for it in that time, and not be let in again for as
long as the next count takes (at most a fiftieth of the time is spent counting).

Over quota the domain alone gets 452 4.3.1 at RCPT, also when SIZE= declares too
much. At the end of the data a message is refused only when it is too large for
every domain it is for: one domain's quota must not keep mail from another, and
a client that is told 452 for all would come again with the same mail for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from posthouse import observe
from posthouse.domain.verdict import Verdict
from posthouse.errors import StorageError
from posthouse.ports_quota import Usage, UsageBoard
from posthouse.ports_spool import Spool

LOOK_SECONDS: Final = 1.0
COUNT_SECONDS: Final = 30.0
NEAR_COUNT_SECONDS: Final = 2.0
NEAR_PERCENT: Final = 80
COUNT_SHARE: Final = 50


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """What a domain may have. None: as much as there is."""

    size_bytes: int | None = None
    count: int | None = None


class Quotas:
    """One worker's. limits: of the domains that have one; empty costs nothing."""

    def __init__(
        self,
        limits: Mapping[str, Limit],
        *,
        spools: Callable[[], Sequence[Spool]],
        board: UsageBoard,
        clock_us: Callable[[], int],
    ) -> None:
        self._limits = dict(limits)
        self._spools = spools
        self._board = board
        self._clock_us = clock_us
        self._counted: dict[str, Usage] = {}  # in our shards at the last count
        self._since: dict[str, Usage] = {}  # accepted since
        self._others: Mapping[str, Usage] = {}
        self._published: dict[str, Usage] = {}
        self._near: set[str] = set()
        self.forget_count()
        self.full: dict[str, int] = {}
        """Domains over their quota, and since when."""

    def reload(self, limits: Mapping[str, Limit]) -> None:
        """Take new limits; they count at once."""
        self._limits = dict(limits)
        self.forget_count()
        self._judge({*limits, *self._near})

    def forget_count(self) -> None:
        """Count at the next look."""
        self._counted_at, self._took = float("-inf"), 0.0

    # ------------------------------------------------------------------ what reception asks

    def refuses(self, domain: str, size_bytes: int) -> bool:
        """True when a message of that size (0: not known) is too much for the domain now."""
        if domain in self.full:
            return True
        if not size_bytes:
            return False
        limit = self._limits.get(domain)
        if limit is None or limit.size_bytes is None:
            return False
        return self._usage(domain).size_bytes + size_bytes > limit.size_bytes

    def refuses_all(self, verdicts: Sequence[Verdict], size_bytes: int) -> bool:
        """True when it is too large for every domain it is for."""
        domains = {verdict.domain for verdict in verdicts}
        return bool(domains) and all(self.refuses(domain, size_bytes) for domain in domains)

    def accepted(self, verdicts: Sequence[Verdict], size_bytes: int) -> None:
        """A message for these recipients is here now."""
        added: dict[str, Usage] = {}
        for verdict in verdicts:
            if verdict.domain in self._limits:
                added.setdefault(verdict.domain, Usage(0, size_bytes)).count += 1
        for domain, usage in added.items():
            self._since.setdefault(domain, Usage()).add(usage)
        if added:
            self._judge(added)

    # ------------------------------------------------------------------ counting

    async def run(self) -> None:
        """Count for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Count what is here when it is time, tell the others, hear of them."""
        if not self._limits:
            return
        now = time.monotonic()
        pause = NEAR_COUNT_SECONDS if self._near else COUNT_SECONDS
        counting = now >= self._counted_at + max(pause, COUNT_SHARE * self._took)
        if counting:
            try:
                await self._count()
            except StorageError as error:
                observe.trouble("quota", "what domains have cannot be counted", error)
            self._counted_at, self._took = now, time.monotonic() - now
        own = {domain: self._own(domain) for domain in self._limits}
        if own != self._published:
            await asyncio.to_thread(self._board.publish, own)
            self._published = own
        others = await asyncio.to_thread(self._board.read_others)
        if counting or others != self._others:
            self._others = others
            self._judge(self._limits)

    async def _count(self) -> None:
        before, self._since = self._since, {}
        counted: dict[str, Usage] = {}
        try:
            for spool in tuple(self._spools()):
                for row in await spool.totals():
                    if row.domain in self._limits:
                        usage = Usage(row.queued + row.held, row.size_bytes)
                        counted.setdefault(row.domain, Usage()).add(usage)
        except BaseException:
            for domain, usage in before.items():
                self._since.setdefault(domain, Usage()).add(usage)
            raise
        self._counted = counted

    def _own(self, domain: str) -> Usage:
        usage = Usage()
        for part in (self._counted.get(domain), self._since.get(domain)):
            if part is not None:
                usage.add(part)
        return usage

    def _usage(self, domain: str) -> Usage:
        usage = self._own(domain)
        others = self._others.get(domain)
        if others is not None:
            usage.add(others)
        return usage

    def _judge(self, domains: Iterable[str]) -> None:
        for domain in domains:
            limit = self._limits.get(domain)
            percent = 0 if limit is None else _percent(self._usage(domain), limit)
            over = percent >= 100
            if percent >= NEAR_PERCENT:
                self._near.add(domain)
            else:
                self._near.discard(domain)
            if over and domain not in self.full:
                self.full[domain] = self._clock_us()
                observe.alert("quota-full", f"{domain} is over its quota: 452 for its mail")
            elif not over and self.full.pop(domain, None) is not None:
                observe.note("quota", f"{domain} is within its quota again: its mail is taken")


def _percent(usage: Usage, limit: Limit) -> int:
    """How much of the scarcer one is used."""
    parts = [0]
    if limit.count is not None:
        parts.append(100 * usage.count // limit.count)
    if limit.size_bytes is not None:
        parts.append(100 * usage.size_bytes // limit.size_bytes)
    return max(parts)
