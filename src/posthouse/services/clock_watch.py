"""Whether this host's clock can be believed: it went by leaps, or a paired primary's differs.

Nothing that mail needs is decided here. A wrong clock makes rosters look stale or not yet
issued, so people are told before they look for the fault elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Final

from posthouse.ports_alerts import AlertKind, AlertSink

LEAP_US: Final = 60_000_000
"""More than a time server's slewing does between two looks."""
TOLD_US: Final = 3_600_000_000
"""A leap is told for so long: nobody can say which of the two times was right."""
DIFFERS_US: Final = 300_000_000
"""As much as a roster may be issued ahead of us (docs/protocol.md)."""
_OURS: Final = "this host"
_WHAT_TO_DO: Final = (
    "see to the clock of this host (chronyc tracking, timedatectl); while it is ahead rosters "
    "count as expired and refuse nobody, while it is behind new ones are refused"
)


class ClockWatch:
    """See the module. elapsed_us: microseconds since any instant, by a clock that nobody sets."""

    def __init__(
        self, *, alerts: AlertSink, clock_us: Callable[[], int], elapsed_us: Callable[[], int]
    ) -> None:
        self._alerts = alerts
        self._clock_us = clock_us
        self._elapsed_us = elapsed_us
        self._last_us = clock_us() - elapsed_us()
        self._base_us = self._last_us
        self._leapt_us: int | None = None

    def look(self) -> None:
        """Compare the clock with the time that has passed. To be called every few seconds."""
        elapsed_us = self._elapsed_us()
        ahead_us = self._clock_us() - elapsed_us
        leap_us, self._last_us = ahead_us - self._last_us, ahead_us
        if abs(leap_us) > LEAP_US:
            if self._leapt_us is None:
                self._base_us = ahead_us - leap_us
            self._leapt_us = elapsed_us
        if self._leapt_us is None:
            return
        total_us = ahead_us - self._base_us
        if abs(total_us) <= LEAP_US or elapsed_us - self._leapt_us > TOLD_US:
            self._leapt_us = None
            self._alerts.clear(AlertKind.CLOCK, _OURS)
            return
        self._alerts.raise_(
            AlertKind.CLOCK,
            _OURS,
            f"the clock of this host was set {_tell(total_us, 'ahead', 'back')}, or it slept",
            _WHAT_TO_DO,
        )

    def hear(self, party: str, at_us: int) -> None:
        """What a paired party said the time is (the Date of an answer, whole seconds)."""
        ahead_us = self._clock_us() - at_us
        if abs(ahead_us) <= DIFFERS_US:
            self._alerts.clear(AlertKind.CLOCK, party)
            return
        self._alerts.raise_(
            AlertKind.CLOCK,
            party,
            f"the clock of this host is {_tell(ahead_us, 'ahead of', 'behind')} that of {party}",
            _WHAT_TO_DO,
        )


def _tell(span_us: int, ahead: str, behind: str) -> str:
    span = timedelta(seconds=round(abs(span_us) / 1e6))
    return f"{span} {ahead if span_us > 0 else behind}"
