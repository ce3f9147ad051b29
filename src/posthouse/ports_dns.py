"""DNS as services ask it; the engine and the fake pass one contract suite (`tests/contract`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class MxRecord(msgspec.Struct, frozen=True):
    """One MX record. preference: 0..65535.

    exchange: A-labels, lower case, no trailing dot; "" is the null MX (RFC 7505).
    """

    preference: int
    exchange: str


class Resolver(Protocol):
    """DNS questions. Temporary trouble is always DnsTemporary, never an empty answer."""

    async def find_mx(self, domain: str) -> Sequence[MxRecord] | None:
        """MX set as published, unsorted; () when the name exists without MX; None: NXDOMAIN."""

    async def find_addresses(self, host: str) -> Sequence[str]:
        """A and AAAA of a host, text form; () when it has none or does not exist.

        One family failing temporarily while the other answers is no failure.
        """

    async def find_name(self, address: str) -> str | None:
        """Forward-confirmed reverse name (RFC 8601 §2.7.3 iprev), or None. Never raises."""
