"""What stands, in one process: an `AlertSink` that remembers and tells nobody by itself.

Whoever raises here has logged what there is to log; `standing` is for `status`.
"""

from __future__ import annotations

from collections.abc import Callable

from posthouse.ports_alerts import Alert


class StandingAlerts:
    """See the module."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self._standing: dict[tuple[str, str], Alert] = {}

    def raise_(
        self, kind: str, subject: str, text: str, what_to_do: str, *, since_us: int = 0
    ) -> None:
        """See the port."""
        known = self._standing.get((kind, subject))
        since = since_us or (known.since_us if known is not None else self._now_us())
        self._standing[(kind, subject)] = Alert(
            kind=kind, subject=subject, text=text, what_to_do=what_to_do, since_us=since
        )

    def clear(self, kind: str, subject: str) -> None:
        """See the port."""
        self._standing.pop((kind, subject), None)

    def standing(self) -> tuple[Alert, ...]:
        """What stands now, the oldest first."""
        return tuple(sorted(self._standing.values(), key=lambda alert: alert.since_us))
