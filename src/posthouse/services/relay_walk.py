"""The way to one more session: along the targets to the first that greets us.

Equal targets share the load because each walk finds them in a new order; a
target that failed a moment ago is tried last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from posthouse.domain.nexthop import patience_seconds
from posthouse.domain.replies import classify_reply
from posthouse.domain.reply_table import Effect
from posthouse.errors import NextHopFailure
from posthouse.ports_relay import Session, Target
from posthouse.services.relay_lane import Lane
from posthouse.services.relay_means import Means
from posthouse.services.relay_targets import Failures


class Walk:
    """Connects to one next hop, and remembers which of its targets failed."""

    __slots__ = ("_means", "_unreachable")

    def __init__(self, means: Means) -> None:
        self._means = means
        self._unreachable: dict[Target, int] = {}  # until when

    def forget(self) -> None:
        """Try every target again, in the order that was found."""
        self._unreachable.clear()

    async def connect(
        self,
        targets: Sequence[Target],
        make_lane: Callable[[Target], Lane | None],
        failures: list[tuple[Target, NextHopFailure]],
    ) -> tuple[Lane, Session] | None:
        """Connect to the first target that greets us; failures are added to the list.

        make_lane: who will hand out the work, None = no session is wanted any more.
        """
        means = self._means
        seconds = patience_seconds(means.settings.probe_interval_us)
        for target in self._lucky_first(targets):
            lane = make_lane(target)
            if lane is None:
                return None
            try:
                try:
                    async with asyncio.timeout(seconds):
                        return lane, await means.connector.connect(target, lane)
                except TimeoutError:
                    raise NextHopFailure("slow to greet", stage="greeting") from None
            except NextHopFailure as failure:
                failures.append((target, failure))
                self._unreachable[target] = means.clock_us() + means.settings.probe_interval_us
        return None

    def _lucky_first(self, targets: Sequence[Target]) -> list[Target]:
        now_us = self._means.clock_us()
        self._unreachable = {t: until for t, until in self._unreachable.items() if until > now_us}
        return sorted(targets, key=lambda target: target in self._unreachable)


def all_want_less(failures: Failures) -> bool:
    """True when every target said that we come too fast, not that it cannot be had."""
    return all(
        wants_less(failure.reply_code, failure.reply_text, failure.stage) for _, failure in failures
    )


def wants_less(code: int, text: str, stage: str) -> bool:
    """True when a reply asks for less at a time."""
    return classify_reply(code, text, stage).effect is Effect.SLOWER
