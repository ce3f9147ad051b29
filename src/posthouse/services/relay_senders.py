"""MAIL is refused: are we meant, or a sender? Counts until a probe must tell.

The first refusal stops the drain for a quick probe with the null sender. Where that
passes, senders are meant: one refused twice is passed over for a minute, and twice as
many as before may be refused until the next probe.
"""

from __future__ import annotations

from typing import Final

MAX_DEFERRED: Final = 5
"""MAILs deferred before anything was delivered; one that is refused for good is enough."""

MAX_SENDERS: Final = 1000
SENDER_US: Final = 60_000_000
FULL_ROUNDS: Final = 5  # 1, 2, 4, 8, 16, then 32 senders a probe; only then do delays double
CALM_US: Final = 600_000_000  # without a probe about senders: the next refusal asks at once


class SenderRefusals:
    """Of one next hop. passed_over: senders not to try, until when (µs), and the reply.

    counting: a refusal was counted since the last delivery.
    """

    __slots__ = ("_doubted", "_refusals", "_round_us", "_rounds", "counting", "passed_over")

    def __init__(self) -> None:
        self.passed_over: dict[str, tuple[int, str]] = {}
        self.counting = False
        self._doubted: dict[str, int] = {}  # senders refused at least once, until when it counts
        self._refusals = 0  # of distinct senders, since a delivery or the last round
        self._rounds = 0  # how often a probe was asked to explain them
        self._round_us = 0

    def delivered(self) -> None:
        """Some sender's mail was taken. Need only be told while `counting`."""
        self.counting = False
        self._refusals = 0
        if self._rounds > FULL_ROUNDS:
            self._rounds = FULL_ROUNDS

    def forget(self) -> None:
        """Try every sender again."""
        self.passed_over.clear()
        self._doubted.clear()

    def doubt(self, sender: str, reply: str, now_us: int) -> bool:
        """Hear that MAIL of `sender` was refused; False when it was known to be."""
        known = self._doubted.get(sender, 0) > now_us
        senders = self.passed_over
        if known:
            if len(senders) >= MAX_SENDERS:
                del senders[next(iter(senders))]
            senders[sender] = (now_us + SENDER_US, reply)
        if len(self._doubted) >= MAX_SENDERS:
            del self._doubted[next(iter(self._doubted))]
        self._doubted[sender] = now_us + 2 * SENDER_US
        return not known

    def count(self, now_us: int, *, permanent: bool) -> int:
        """Count a sender in doubt; returns 0, or how long the delays of a probe due now are.

        1: the shortest; permanent: it was refused for good.
        """
        if now_us - self._round_us > CALM_US:
            self._rounds = 0
        self.counting = True
        self._refusals += 1
        full_rounds = min(self._rounds, FULL_ROUNDS)
        if self._refusals < max(1 << full_rounds, 1 if permanent else MAX_DEFERRED):
            return 0
        self._refusals = 0
        self._rounds += 1
        self._round_us = now_us
        return max(1, self._rounds - FULL_ROUNDS)
