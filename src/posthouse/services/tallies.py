"""Brings what a worker counted of each domain's mail to the log of availability.

Every second and at the end; in a thread, so mail waits for nothing. What
cannot be written now is kept and goes with the next. kill -9 costs what was
counted since: figures for a report, not mail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Final

from posthouse import observe, tally
from posthouse.errors import AddressError, StorageError
from posthouse.mail.address import normalize_domain
from posthouse.ports_alerts import TallyBook
from posthouse.tally import Tally

EVERY_SECONDS: Final = 1.0


class Tallier:
    """One worker's. open_book: opened in the thread when first needed, again after trouble."""

    def __init__(
        self,
        worker: int,
        open_book: Callable[[], TallyBook],
        *,
        domains: Callable[[], Collection[str]],
        clock_us: Callable[[], int],
    ) -> None:
        self._worker = worker
        self._open_book = open_book
        self._domains = domains
        self._clock_us = clock_us
        self._book: TallyBook | None = None
        self._waiting: dict[str, Tally] = {}
        self._trouble = ""

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self.write()

    async def write(self) -> None:
        """Write what was counted since."""
        self._gather(tally.take())
        if not self._waiting:
            return
        counts, self._waiting = self._waiting, {}
        try:
            await asyncio.to_thread(self._add, counts, self._clock_us())
        except StorageError as error:
            for domain, count in counts.items():
                self._waiting.setdefault(domain, Tally()).add(count)
            if error.detail != self._trouble:
                self._trouble = error.detail
                observe.trouble("alerts", "counts for reports cannot be written", error)
        else:
            self._trouble = ""

    def _add(self, counts: dict[str, Tally], now_us: int) -> None:
        if self._book is None:
            self._book = self._open_book()
        self._book.add(self._worker, counts, now_us=now_us)

    def _gather(self, counts: dict[str, Tally]) -> None:
        """Bring names in order; what is no domain of ours was only spelled by strangers."""
        domains = self._domains()
        for spelled, count in counts.items():
            name = spelled
            if name not in domains:
                try:
                    name = normalize_domain(spelled)
                except AddressError:
                    continue
            if name in domains:
                self._waiting.setdefault(name, Tally()).add(count)
