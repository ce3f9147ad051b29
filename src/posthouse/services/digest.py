"""The digest of held mail: told to the contact, seldom, and only when something new is held.

What was told is remembered durably: queue id, recipient, and since when it is
held, so that what was released and is held again counts as new. It is
remembered once the contact's MX has taken the mail, so none goes missing.

Listing all that is held costs time with a hundred thousand of them. It is done
when the counts have moved, and only when a digest may be sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

from posthouse import observe
from posthouse.errors import StorageError, TellingFailed
from posthouse.ports_alerts import AlertStore, HeldKey
from posthouse.ports_spool import QueuedMessage
from posthouse.services.alert_text import HeldRow, format_digest, held_rows

T = TypeVar("T")

MOST_GROUPED: Final = 20_000
"""New ones that are looked at for the digest's summary; more are only counted."""
AGAIN_US: Final = 600_000_000
"""After a failure."""


class Digest:
    """One per node.

    list_held: everything that is on hold. send: subject and text to the contact, raises
    TellingFailed. interval_us: between two. delay_us: from the first new one on.
    """

    def __init__(
        self,
        store: AlertStore,
        *,
        node: str,
        list_held: Callable[[], AsyncIterator[QueuedMessage]],
        send: Callable[[str, str], Awaitable[None]],
        clock_us: Callable[[], int],
        interval_us: int,
        delay_us: int,
    ) -> None:
        self._store = store
        self._node = node
        self._list_held = list_held
        self._send = send
        self._clock_us = clock_us
        self.interval_us = interval_us
        self.delay_us = delay_us
        self._seen: object = None  # the hint with which nothing new was found
        self._first_new_us: int | None = None
        self._not_before_us = 0

    async def tick(self, held: int, hint: object) -> None:
        """Look whether a digest is due. held: on hold now; hint: moves when anything may be new.

        Raises nothing but what `list_held` does.
        """
        now_us = self._clock_us()
        if not held:
            self._seen = self._first_new_us = None
        if not held or hint == self._seen or now_us < self._not_before_us <= now_us + AGAIN_US:
            return
        try:
            last_us = await asyncio.to_thread(self._store.last_digest_us)
            if 0 <= now_us - last_us < self.interval_us:
                return
            if self._first_new_us is None or now_us - self._first_new_us >= self.delay_us:
                await self._look(now_us, hint)
        except (StorageError, TellingFailed) as error:
            self._not_before_us = now_us + AGAIN_US
            observe.trouble("alerts", "the digest of held mail cannot be told", error)

    async def _look(self, now_us: int, hint: object) -> None:
        keys, rows, new = await self._find_new()
        if not new:
            self._seen, self._first_new_us = hint, None
            return
        if self._first_new_us is None:
            self._first_new_us = now_us
            if self.delay_us:
                return
        await self._send(*format_digest(node=self._node, rows=rows, new=new, held=len(keys)))
        await asyncio.to_thread(lambda: self._store.save_digest(keys, now_us=now_us))
        self._seen, self._first_new_us = hint, None
        observe.note("alerts", f"told {new} new of {len(keys)} recipients on hold by digest")

    async def _find_new(self) -> tuple[list[HeldKey], list[HeldRow], int]:
        """All keys, the first of the new rows, and how many are new."""
        keys: list[HeldKey] = []
        rows: list[HeldRow] = []
        new = 0
        batch: dict[HeldKey, HeldRow] = {}

        async def sift() -> int:
            chosen = list(batch)
            found = await asyncio.to_thread(lambda: self._store.find_new_held(chosen))
            room = MOST_GROUPED - len(rows)
            rows.extend(batch[key] for key in list(found)[: max(0, room)])
            batch.clear()
            return len(found)

        async for message in self._list_held():
            for seq, row in held_rows(message):
                key = (row.queue_id, seq, row.held_us)
                keys.append(key)
                batch[key] = row
            if len(batch) >= 500:
                new += await sift()
        if batch:
            new += await sift()
        return keys, rows, new
