"""What outcomes tell of a next hop: counted here, judged by its `Leader`.

`watched`, that is while the next hop is tried or drained, every reply counts:
a delivery speeds up, a canary that came home proves it, a `SurgeGuard` looks
for too many refusals for good. Otherwise only what speaks against it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from posthouse.domain.drain import SurgeGuard
from posthouse.domain.pace import Pace
from posthouse.services.relay_leader import Leader
from posthouse.services.relay_means import Means
from posthouse.services.relay_queue import ReadyQueue
from posthouse.services.relay_senders import SenderRefusals

MAX_STUMBLES: Final = 5
"""Sessions or MAILs that failed in a row before anything was delivered."""

MAX_SLOWED: Final = 6
"""Pauses asked for in a row before anything was delivered: two minutes of patience."""

MAX_PUT_OFF: Final = 3
"""Canaries that were put off as greylisting does: such a next hop works."""

MAX_STRIKES: Final = 1000
"""Messages remembered for having come back without an outcome."""


class Evidence:
    """Of one next hop. faster: called when one more session may be opened.

    watched: the next hop is being drained, every reply counts. senders: whose MAIL was refused.
    """

    __slots__ = (
        "_faster",
        "_guard",
        "_leader",
        "_means",
        "_put_off",
        "_queue",
        "_slowed",
        "_strikes",
        "_stumbles",
        "senders",
        "watched",
    )

    def __init__(
        self, means: Means, queue: ReadyQueue, leader: Leader, faster: Callable[[], None]
    ) -> None:
        self.senders = SenderRefusals()
        self.watched = False
        self._means = means
        self._queue = queue
        self._leader = leader
        self._faster = faster
        self._guard: SurgeGuard | None = None
        self._put_off = 0
        self._slowed = 0
        self._stumbles = 0
        self._strikes: dict[int, int] = {}

    def watch(self, guard: SurgeGuard | None) -> None:
        """From now on every reply counts."""
        self.watched = True
        self._guard = guard
        self._put_off = 0

    def relax(self) -> None:
        """Nothing is being proven any more."""
        self.watched = False
        self._guard = None

    def forgive(self) -> None:
        """Sending begins anew: nothing counts that went wrong before."""
        self._stumbles = self._slowed = 0

    # ------------------------------------------------------------------ for it

    def delivered(self) -> None:
        """At least one recipient was accepted."""
        self._stumbles = self._slowed = 0
        if self.senders.counting:
            self.senders.delivered()
        pace = self._queue.pace
        if pace is not None:
            self._delivered_at(pace)

    def _delivered_at(self, pace: Pace) -> None:
        if self._guard is not None:
            self._guard.note(refused=False)
        if pace.allowance is not None:
            self._leader.proven()
        elif pace.delivered():
            self._faster()
        if pace.full and not self.watched:
            self._queue.pace = None

    def put_off(self, *, proves: bool) -> None:
        """A recipient was deferred; proves: by a next hop that works. For `watched`."""
        if self._guard is not None:
            self._guard.note(refused=False)
        self._put_off += proves
        pace = self._queue.pace
        if self._put_off >= MAX_PUT_OFF and pace is not None and pace.allowance == 0:
            self._leader.proven()
        else:
            self.unproven()

    def unproven(self) -> None:
        """What was handed out told nothing: the next message may be the canary. For `watched`."""
        pace = self._queue.pace
        if pace is not None and pace.allowance == 0:
            pace.allowance = 1

    # ------------------------------------------------------------------ against it

    def held_for_good(self, relay: str, reply: str) -> None:
        """A recipient was refused for good. For `watched`."""
        why = f"{relay}: {reply}"
        self.unproven()
        self._leader.refused_for_good(why)
        guard = self._guard
        if guard is not None and guard.note(refused=True):
            self._leader.surged(
                f"{guard.refused} of the last {len(guard)} replies refused mail for good: {why}"
            )

    def slow_down(self, relay: str, reply: str, *, sessions: int) -> float:
        """It wants less at a time than `sessions`: set the pace.

        Returns how long to pause, in seconds; 0 when it does already or there is no hope.
        """
        queue, now_us = self._queue, self._means.clock_us()
        pace = queue.pace
        if pace is None:
            limit = self._means.settings.concurrency
            pace = queue.pace = Pace(limit=limit, sessions=max(1, sessions))
        if pace.paused_us(now_us):
            return 0
        self._slowed += 1
        if self._slowed > MAX_SLOWED:
            self._leader.lost(f"nothing gets through: {relay}: {reply}")
            return 0
        return pace.slower(now_us) / 1e6

    def refused(self, relay: str, reply: str, sender: str, *, permanent: bool) -> None:
        """MAIL of `sender` was refused; it is not clear whether we or the sender were meant."""
        now_us = self._means.clock_us()
        if not self.senders.doubt(sender, reply, now_us) or not self._queue.is_open:
            return
        delays = self.senders.count(now_us, permanent=permanent)
        if delays:
            why = f"{relay} refuses MAIL: {reply}"
            self._leader.refused_at_mail(why, delays, permanent=permanent)

    def stumbled(self, why: str) -> None:
        """A MAIL or a session failed before anything was delivered."""
        if self._queue.is_open:
            self._stumbles += 1
            if self._stumbles >= MAX_STUMBLES:
                self._leader.lost(f"nothing gets through: {why}")

    def strike(self, queue_id: int) -> int:
        """Count how often a message came back without an outcome; returns the count."""
        strikes = self._strikes
        count = strikes.pop(queue_id, 0) + 1
        if count < 2:
            if len(strikes) >= MAX_STRIKES:
                del strikes[next(iter(strikes))]
            strikes[queue_id] = count
        return count
