"""How much one domain may have in the node: what reception asks, what workers tell each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from posthouse.domain.verdict import Verdict


class Usage(msgspec.Struct, array_like=True):
    """What a domain has: recipients, octets (a message once for each domain)."""

    count: int = 0
    size_bytes: int = 0

    def add(self, other: Usage) -> None:
        """Put another one on top."""
        self.count += other.count
        self.size_bytes += other.size_bytes


class QuotaGate(Protocol):
    """What reception asks. Looks into memory; never blocks, never raises."""

    def refuses(self, domain: str, size_bytes: int) -> bool:
        """True when a message of that size (0: not known) is too much for the domain now."""

    def refuses_all(self, verdicts: Sequence[Verdict], size_bytes: int) -> bool:
        """True when it is too large for every domain it is for."""

    def accepted(self, verdicts: Sequence[Verdict], size_bytes: int) -> None:
        """A message for these recipients is here now."""


class UsageBoard(Protocol):
    """Where workers leave word of what they have. Blocks: call it in a thread. Never raises."""

    def publish(self, usage: Mapping[str, Usage]) -> None:
        """Say what this worker has now."""

    def read_others(self) -> Mapping[str, Usage]:
        """What the others said last, summed."""
