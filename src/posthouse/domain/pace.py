"""How fast one worker may send to a next hop that is not simply up: pure arithmetic.

Slow start: one session first; with every `sessions` deliveries one more, so the
number doubles about each time the sessions had a message each. A peer that
says it wants less (421, 4.7.0, 4.3.2 …) halves it and pauses sending: a second,
twice as long each time until something was delivered again, a minute at most.
A rate, where the operator gives one, is a bucket that holds a second's worth.

Precedent: TCP slow start (RFC 5681 §3.1); Postfix's
`default_destination_concurrency_positive_feedback` = 1/concurrency.
"""

from __future__ import annotations

from typing import Final

from posthouse.domain.instants import left_us

_SECOND: Final = 1_000_000
MAX_PAUSE_US: Final = 60 * _SECOND
NEVER_US: Final = 1 << 62


class Pace:
    """See the module. limit: sessions at full speed, >= 1; per_second: messages, 0 = any.

    allowance: messages that may still be handed out (a canary has one), None = any.
    """

    __slots__ = (
        "_credit",
        "_full_us",
        "_pause_us",
        "_paused_until_us",
        "_step_us",
        "allowance",
        "limit",
        "sessions",
    )

    def __init__(
        self,
        *,
        limit: int,
        per_second: float = 0,
        sessions: int = 1,
        allowance: int | None = None,
    ) -> None:
        self.limit = limit
        self.sessions = min(sessions, limit)
        self.allowance = allowance
        self._credit = 0
        self._pause_us = _SECOND
        self._paused_until_us = 0
        self._step_us = int(_SECOND / per_second) if per_second else 0
        self._full_us = 0  # when the bucket would be full again

    @property
    def full(self) -> bool:
        """Nothing is held back any more."""
        return (
            self.sessions >= self.limit
            and not self._step_us
            and self.allowance is None
            and self._pause_us == _SECOND
        )

    def take(self, now_us: int) -> int:
        """Take the right to send one message. 0: send; else microseconds to wait, or NEVER_US.

        NEVER_US: not before the outcome of what was handed out is known.
        """
        if self.allowance is not None and self.allowance <= 0:
            return NEVER_US
        paused_us = self.paused_us(now_us)
        if paused_us:
            return paused_us
        if self._step_us:
            burst_us = max(_SECOND, self._step_us)
            # It lies no more than one burst ahead, but for a clock that was set back.
            full_us = now_us + left_us(self._full_us, now_us, longest_us=burst_us) + self._step_us
            wait_us = full_us - now_us - burst_us
            if wait_us > 0:
                return wait_us
            self._full_us = full_us
        if self.allowance is not None:
            self.allowance -= 1
        return 0

    def paused_us(self, now_us: int) -> int:
        """Microseconds until sending may go on after `slower`; 0: it may."""
        return left_us(self._paused_until_us, now_us, longest_us=MAX_PAUSE_US)

    def give_back(self) -> None:
        """What was taken is not sent: there was no message."""
        if self.allowance is not None:
            self.allowance += 1
        if self._step_us:
            self._full_us -= self._step_us

    def delivered(self) -> bool:
        """Note a delivery; True when there may be one more session now."""
        self._credit += 1
        if self._credit < self.sessions:
            return False
        self._credit = 0
        self._pause_us = _SECOND
        if self.sessions >= self.limit:
            return False
        self.sessions += 1
        return True

    def slower(self, now_us: int) -> int:
        """The peer wants less: halve, pause; returns the pause in microseconds.

        Heard again within a pause it changes nothing: sessions hear it together.
        """
        paused_us = self.paused_us(now_us)
        if paused_us:
            return paused_us
        self.sessions = max(1, self.sessions // 2)
        self._credit = 0
        pause_us, self._pause_us = self._pause_us, min(2 * self._pause_us, MAX_PAUSE_US)
        self._paused_until_us = now_us + pause_us
        return pause_us
