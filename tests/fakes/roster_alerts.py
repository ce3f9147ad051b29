"""Alerts as a plain mapping of what stands."""

from __future__ import annotations


class StandingAlerts:
    """See `ports_alerts.AlertSink`. standing: (kind, subject) → text; raised: every new text."""

    def __init__(self) -> None:
        self.standing: dict[tuple[str, str], str] = {}
        self.raised: list[str] = []

    def raise_(
        self, kind: str, subject: str, text: str, what_to_do: str, *, since_us: int = 0
    ) -> None:
        assert what_to_do
        if self.standing.get((kind, subject)) != text:
            self.raised.append(text)
        self.standing[(kind, subject)] = text

    def clear(self, kind: str, subject: str) -> None:
        self.standing.pop((kind, subject), None)

    def kinds(self) -> list[str]:
        """What stands, without subjects."""
        return sorted(kind for kind, _ in self.standing)
