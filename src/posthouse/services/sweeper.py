"""Expiry: mail that was kept for `keep_for` is put on hold and a person is told.

Nobody is bounced: the sender of mail to a dead domain is as a rule forged, and
an operator can still release or export what is held. A domain that is no
longer configured is left alone.

Nothing expires in the first hour after a start, or after the clock went ahead by itself
(compared with `elapsed_us`): a clock that is wrong has that long to be set right, and mail
that waited on a machine that was off has that long to go home.

Spec: RFC 5321 §4.5.4.1 (a limit on the time in the queue), RFC 3463 X.4.7.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

from posthouse import observe
from posthouse.errors import StorageError
from posthouse.mail.queueid import format_queue_id
from posthouse.ports_spool import QueuedMessage, Spool

BATCH: Final = 500  # recipients moved in one call: tens of milliseconds of the writer's time
INTERVAL_SECONDS: Final = 600.0
GRACE_US: Final = 3_600_000_000
LATE_SECONDS: Final = 0.1
LEAP_US: Final = 60_000_000
"""The clock went ahead by itself: more than a time server's slewing does between two looks."""


class Sweeper:
    """Expires one shard.

    keep_for: domain → microseconds since a message was
    queued, or released by an operator. elapsed_us: microseconds since any instant, by a
    clock that nobody sets.
    """

    def __init__(
        self,
        *,
        spool: Spool,
        keep_for: Mapping[str, int],
        clock_us: Callable[[], int],
        elapsed_us: Callable[[], int],
        interval_seconds: float = INTERVAL_SECONDS,
    ) -> None:
        self._spool = spool
        self._keep_for = dict(keep_for)
        self._clock_us = clock_us
        self._elapsed_us = elapsed_us
        self._interval_seconds = interval_seconds
        self._steady_since_us = elapsed_us()
        self._ahead_us = clock_us() - self._steady_since_us
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Sweep now and then every `interval_seconds`."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def reload(self, keep_for: Mapping[str, int]) -> None:
        """Take new times; they count from the next round on."""
        self._keep_for = dict(keep_for)

    async def stop(self) -> None:
        """Stop; a call to the spool that is under way is let go."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None

    async def sweep(self) -> int:
        """One round over all domains; returns the number of recipients put on hold."""
        total = 0
        expired: list[str] = []
        try:
            queued = await self._spool.queued_domains()
            steady_us = self._look_at_clock()
            for domain in sorted(queued.keys() & self._keep_for.keys()):
                if steady_us < min(GRACE_US, self._keep_for[domain]):
                    continue
                held = await self._sweep_domain(domain, self._keep_for[domain])
                if held:
                    expired.append(f"{domain}: {held}")
                total += held
        except StorageError as error:
            observe.trouble("qmgr", "expired mail could not be put on hold", error)
        if total:
            observe.alert(
                "expired",
                f"{total} recipients were kept for their whole time and are now on hold "
                f"({', '.join(expired[:5])}{', …' if len(expired) > 5 else ''})",
                recipients=total,
            )
        return total

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except Exception as error:  # a supervised task: the next round may do better
                observe.trouble("qmgr", "expiry", error)
            await asyncio.sleep(self._next_seconds())

    def _next_seconds(self) -> float:
        """Until the next round: the regular one, or the end of some domain's grace."""
        steady_us = self._look_at_clock()
        waits = [min(GRACE_US, keep_us) - steady_us for keep_us in self._keep_for.values()]
        coming = [wait / 1e6 + LATE_SECONDS for wait in waits if wait > 0]
        return min([self._interval_seconds, *coming])

    def _look_at_clock(self) -> int:
        """Microseconds since the start, or since the clock went ahead last."""
        elapsed_us = self._elapsed_us()
        ahead_us = self._clock_us() - elapsed_us
        if ahead_us - self._ahead_us > LEAP_US:
            self._steady_since_us = elapsed_us
        self._ahead_us = ahead_us
        return elapsed_us - self._steady_since_us

    async def _sweep_domain(self, domain: str, keep_us: int) -> int:
        held = 0
        while True:
            now_us = self._clock_us()
            messages = await self._spool.expire(
                domain, kept_before_us=now_us - keep_us, limit=BATCH
            )
            count = sum(len(message.recipients) for message in messages)
            for message in messages:
                _tell(message, now_us, keep_us)
            held += count
            if not count:
                return held


def _tell(message: QueuedMessage, now_us: int, keep_us: int) -> None:
    queue_id = format_queue_id(message.queue_id)
    kept = _words(keep_us)
    for recipient in message.recipients:
        observe.recipient_settled(
            queue_id,
            recipient.address,
            relay="none",
            delay_seconds=(now_us - message.received_us) / 1e6,
            dsn="4.4.7",
            status="held",
            text=f"expired after {kept}"
            + (f"; last reply: {recipient.reply}" if recipient.reply else ""),
        )


def _words(span_us: int) -> str:
    span = timedelta(microseconds=span_us)
    if span.seconds or not span.days:
        return f"{span.days * 24 + span.seconds / 3600:g} hours"
    return f"{span.days} day{'' if span.days == 1 else 's'}"
