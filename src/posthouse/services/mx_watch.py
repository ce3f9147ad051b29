"""Compares the MX set that each roster says with DNS, and tells where they differ.

A new roster is compared within a minute, all of them every hour. DNS that gives no
answer is no difference: what was told stays as it is. A roster that says no MX set
is not compared with anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Final

from posthouse.domain.mx_set import find_mx_differences
from posthouse.errors import DnsTemporary, StorageError
from posthouse.log_sink import clean
from posthouse.ports_alerts import AlertSink
from posthouse.ports_dns import Resolver
from posthouse.ports_roster import RosterSays

MX_DIFFERS: Final = "mx-differs"
LOOK_SECONDS: Final = 60.0
AGAIN_US: Final = 3_600_000_000


class MxWatch:
    """See the module. read: what the roster in force of a domain says, None without one."""

    def __init__(
        self,
        read: Callable[[str], RosterSays | None],
        resolver: Resolver,
        *,
        alerts: AlertSink,
        now_us: Callable[[], int],
        wait: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """read may block, and raise StorageError."""
        self._read = read
        self._resolver = resolver
        self._alerts = alerts
        self._now_us = now_us
        self._wait = wait
        self._domains: tuple[str, ...] = ()
        self._own_names: frozenset[str] = frozenset()
        self._seen: dict[str, tuple[int, int]] = {}  # serial, when it was compared

    def set_domains(self, domains: Iterable[str], own_names: Collection[str]) -> None:
        """Watch these from now on; own_names: this host's, lower case."""
        before = self._domains
        self._domains = tuple(domains)
        self._own_names = frozenset(own_names)
        self._seen.clear()
        for gone in set(before) - set(self._domains):
            self._alerts.clear(MX_DIFFERS, gone)

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await self._wait(LOOK_SECONDS)

    async def look(self) -> None:
        """Compare what is new or due."""
        for domain in self._domains:
            try:
                await self._look_at(domain)
            except (DnsTemporary, StorageError):
                continue  # looked at again; whoever needs DNS or the disk tells of it

    async def _look_at(self, domain: str) -> None:
        says = await asyncio.to_thread(self._read, domain)
        if says is None or not says.mx:
            self._alerts.clear(MX_DIFFERS, domain)
            return
        serial, compared_us = self._seen.get(domain, (0, 0))
        if serial == says.serial and 0 <= self._now_us() - compared_us < AGAIN_US:
            return
        records = await self._resolver.find_mx(domain)
        published = None if records is None else [(one.preference, one.exchange) for one in records]
        wrong = find_mx_differences(says.mx, published, self._own_names)
        if domain not in self._domains:  # a reload came in between
            return
        self._seen[domain] = says.serial, self._now_us()
        if not wrong:
            self._alerts.clear(MX_DIFFERS, domain)
            return
        text = clean(f"MX of {domain}: {'; '.join(wrong)}")
        self._alerts.raise_(
            MX_DIFFERS,
            domain,
            text,
            "Have the primary correct its MX records, or `mx` in its primary.toml",
        )
