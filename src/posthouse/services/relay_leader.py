"""Whom the sessions of a next hop report to."""

from __future__ import annotations

from typing import Protocol

from posthouse.services.relay_targets import Failures, Way


class Leader(Protocol):
    """Who decides what the pool's experience means for the next hop."""

    async def find_way(self) -> Way:
        """Where to connect now."""

    def obstructed(self, way: Way) -> None:
        """DNS leaves no target."""

    def failed(self, failures: Failures) -> None:
        """No target took us, and no session is open."""

    def refused_at_mail(self, why: str, refusals: int, *, permanent: bool) -> None:
        """MAILs were refused that a probe must explain; `refusals` >= 1 sets its delay."""

    def lost(self, why: str) -> None:
        """Nothing gets through, or we failed ourselves."""

    def surged(self, why: str) -> None:
        """Too many refusals for good."""

    def refused_for_good(self, why: str) -> None:
        """One more refusal for good while it drains."""

    def proven(self) -> None:
        """The canary came home."""

    def dry(self) -> None:
        """Nothing is due and nothing under way."""

    def ticked(self) -> None:
        """Another `idle_seconds` went by with sessions open."""
