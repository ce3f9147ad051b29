"""Releases what was held because nobody vouched, once somebody does.

A domain may take mail for unknown recipients on hold (`when_unknown = "hold"`)
while its list is stale or missing. As soon as a fresh list, or whoever else can
tell (`find`), vouches for such a recipient, it goes into the queue (move f). Who
is proven absent stays on hold for a person to decide: accepted mail is not
destroyed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from posthouse import observe
from posthouse.domain.finding import Answer, Finding
from posthouse.domain.verdict import UNVOUCHED
from posthouse.errors import AddressError, StorageError
from posthouse.mail.address import parse_path
from posthouse.ports_spool import OperatorAction, QueuedRecipient, Selection, Spool, State

LOOK_EVERY_SECONDS: Final = 60.0
_PAGE: Final = 200
_VOUCHING: Final = (Finding.VOUCHED, Finding.CATCH_ALL, Finding.RULE, Finding.TRAP)

Find = Callable[[str, str], Answer | Awaitable[Answer]]


class Voucher:
    """See the module. One for each shard."""

    def __init__(
        self,
        spool: Spool,
        domains: Iterable[str],
        *,
        find: Find,
        clock_us: Callable[[], int],
        released: Callable[[], None],
        wait: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """domains: those that hold. find: by domain and content of a local part. released: is
        called when something was.
        """
        self._spool = spool
        self._domains = tuple(domains)
        self._find = find
        self._clock_us = clock_us
        self._released = released
        self._wait = wait
        self._due = set(self._domains)

    def set_domains(self, domains: Iterable[str]) -> None:
        """Look after these from now on."""
        self._domains = tuple(domains)

    def ring(self, domain: str) -> None:
        """The domain has another list."""
        self._due.add(domain)

    async def run(self) -> None:
        """Look at what is held, for ever: when a list has changed, and every minute."""
        waited = 0.0
        while True:
            await self._wait(1.0)
            waited += 1.0
            if waited >= LOOK_EVERY_SECONDS:
                waited = 0.0
                self._due.update(self._domains)
            while self._due:
                domain = self._due.pop()
                try:
                    await self.release(domain)
                except StorageError as error:
                    observe.trouble("voucher", f"{domain}: what is held was not looked at", error)

    async def release(self, domain: str) -> int:
        """Release what is vouched for now; returns how many recipients. Raises StorageError."""
        selection = Selection(domain=domain, state=State.HELD, reply=UNVOUCHED)
        after: int | None = None
        count = 0
        while True:
            messages = await self._spool.list_messages(selection, after=after, limit=_PAGE)
            for message in messages:
                for row in message.recipients:
                    if row.reason == UNVOUCHED and await self._is_vouched(domain, row):
                        count += await self._release(message.queue_id, row)
            if len(messages) < _PAGE:
                break
            after = messages[-1].queue_id
        if count:
            observe.note("voucher", f"{domain}: {count} held recipients are vouched for now")
            self._released()
        return count

    async def _is_vouched(self, domain: str, row: QueuedRecipient) -> bool:
        try:
            mailbox = parse_path(row.address.encode("utf-8", "replace"), utf8=True)
        except AddressError:
            return False
        if mailbox is None:
            return False
        found = self._find(domain, mailbox.local)
        answer = found if isinstance(found, Answer) else await found
        return answer.finding in _VOUCHING and not answer.stale

    async def _release(self, queue_id: int, row: QueuedRecipient) -> int:
        selection = Selection(
            queue_ids=(queue_id,), recipient=row.address, state=State.HELD, reply=UNVOUCHED
        )
        return await self._spool.act(selection, OperatorAction.RELEASE, now_us=self._clock_us())
