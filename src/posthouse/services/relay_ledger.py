"""Which recipients the relay has in hand, and the settling of their outcomes.

Promise: a recipient is in hand from the moment it is taken until its outcome
is durable (or it is put back untried), and is never taken twice meanwhile.
Outcomes of one turn of the event loop go to the spool in one call; while one
call runs, the next batch gathers. When the spool cannot settle, the outcomes
stay here and are tried again, and what they belong to is not sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Final, Protocol

import msgspec

from posthouse import observe
from posthouse.errors import StorageError
from posthouse.mail.queueid import format_queue_id
from posthouse.ports_spool import Outcome, QueuedMessage, Settlement, Spool

MAX_UNSETTLED: Final = 5000
"""Outcomes that may wait for a slow or broken disk before sending pauses: what a crash
now would deliver twice. About a quarter of a second at the drain rate of fast hardware."""

RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 15.0)

Key = tuple[int, int]


class Timer(Protocol):
    """A pending call; `asyncio.TimerHandle` is one."""

    def cancel(self) -> None: ...


class Later(Protocol):
    """Calls back once after some seconds; `loop.call_later` is one."""

    def __call__(self, seconds: float, callback: Callable[[], None], /) -> Timer: ...


class Ledger:
    """See the module. `on_room` is called when sending may go on after `full`."""

    def __init__(
        self,
        spool: Spool,
        *,
        clock_us: Callable[[], int],
        later: Later,
        on_room: Callable[[], None],
    ) -> None:
        self._spool = spool
        self._clock_us = clock_us
        self._later = later
        self._on_room = on_room
        self._in_hand: set[Key] = set()
        self._whole: set[int] = set()
        self._pending: list[Settlement] = []
        self._task: asyncio.Task[None] | None = None
        self._watches: list[set[Key]] = []
        self.full = False
        self.trouble = ""
        self.trouble_since_us = 0

    def __len__(self) -> int:
        return len(self._in_hand)

    # ------------------------------------------------------------------ taking

    def take(self, message: QueuedMessage, beside: Collection[Key] = ()) -> QueuedMessage | None:
        """Take the recipients that are not in hand nor in `beside`; None when none is left."""
        in_hand = self._in_hand
        queue_id = message.queue_id
        recipients = message.recipients
        if len(recipients) == 1:
            key = (queue_id, recipients[0].seq)
            if key in in_hand or key in beside:
                return None
            in_hand.add(key)
            return message
        free = tuple(
            r for r in recipients if (k := (queue_id, r.seq)) not in in_hand and k not in beside
        )
        if not free:
            return None
        in_hand.update((queue_id, r.seq) for r in free)
        if len(free) == len(recipients):
            return message
        return msgspec.structs.replace(message, recipients=free)

    def put_back(self, message: QueuedMessage) -> None:
        """Give recipients back to the table untried."""
        queue_id = message.queue_id
        self._whole.discard(queue_id)
        for recipient in message.recipients:
            self._in_hand.discard((queue_id, recipient.seq))

    def expect_removal(self, queue_id: int) -> None:
        """Note that all recipients of a message are in hand: its removal can be logged."""
        self._whole.add(queue_id)

    def forget_removal(self, queue_id: int) -> None:
        """Note that some recipients go on after others were settled: no removal can be told."""
        self._whole.discard(queue_id)

    def watch(self) -> set[Key]:
        """Start noting what gets settled: a claim under way may still show it as waiting."""
        settled: set[Key] = set()
        self._watches.append(settled)
        return settled

    def unwatch(self, settled: set[Key]) -> None:
        """Stop noting."""
        self._watches = [watch for watch in self._watches if watch is not settled]

    # ------------------------------------------------------------------ settling

    def settle(self, settlement: Settlement) -> None:
        """Have an outcome made durable, with all others of this turn of the loop."""
        pending = self._pending
        pending.append(settlement)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        elif len(pending) >= MAX_UNSETTLED:
            self.full = True

    async def flush(self) -> None:
        """Wait until every outcome given so far is durable."""
        while self._task is not None:
            await asyncio.wait((self._task,))

    def abandon(self) -> None:
        """Stop trying to settle: what is not durable yet will be sent again (duplicates)."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            while self._pending:
                batch, self._pending = self._pending, []
                await self._settle(batch)
                self._settled(batch)
                if self.full:
                    self.full = False
                    self._on_room()
        finally:
            self._task = None

    async def _settle(self, batch: list[Settlement]) -> None:
        attempt = 0
        while True:
            try:
                await self._spool.settle(batch)
            except Exception as error:  # a supervised task; a bug, too, must not forget outcomes
                if not self.trouble:
                    self.trouble_since_us = self._clock_us()
                    observe.alert("settle", f"outcomes of deliveries cannot be stored: {error}")
                self.trouble = (
                    error.detail if isinstance(error, StorageError) else type(error).__name__
                )
                self.full = True  # each further delivery could be one more duplicate
                await self._pause(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])
                attempt += 1
            else:
                if self.trouble:
                    self.trouble = ""
                    observe.note("relay", "outcomes of deliveries are stored again")
                return

    async def _pause(self, seconds: float) -> None:
        over = asyncio.Event()
        timer = self._later(seconds, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()

    def _settled(self, batch: list[Settlement]) -> None:
        keys = [(s.queue_id, s.seq) for s in batch]
        for watch in self._watches:
            watch.update(keys)
        self._in_hand.difference_update(keys)
        if self._whole:
            self._log_removals(batch)

    def _log_removals(self, batch: list[Settlement]) -> None:
        staying = {s.queue_id for s in batch if s.outcome is not Outcome.DELIVERED}
        for queue_id in {s.queue_id for s in batch} & self._whole:
            self._whole.discard(queue_id)
            if queue_id not in staying:
                observe.message_removed(format_queue_id(queue_id))
