"""A resolver as plain maps; passes `tests/contract/test_resolver_contract.py`."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from posthouse.errors import DnsTemporary
from posthouse.ports_dns import MxRecord


class FakeResolver:
    """Answers from maps that a test may change at any time.

    mx: domain → (preference, exchange) pairs; a domain that is in no map does not exist.
    addresses: host → IP texts. names: IP text → reverse name (not yet confirmed).
    aliases: name → the name it stands for. failing: names DNS gives no answer for.
    """

    def __init__(
        self,
        mx: Mapping[str, Sequence[tuple[int, str]]] | None = None,
        addresses: Mapping[str, Sequence[str]] | None = None,
        names: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.mx = dict(mx or {})
        self.addresses = dict(addresses or {})
        self.names = dict(names or {})
        self.aliases = dict(aliases or {})
        self.failing: set[str] = set()
        self.questions: list[str] = []

    async def find_mx(self, domain: str) -> Sequence[MxRecord] | None:
        name = self._ask(domain)
        if name in self.mx:
            return tuple(MxRecord(p, exchange) for p, exchange in self.mx[name])
        return () if name in self.addresses else None

    async def find_addresses(self, host: str) -> Sequence[str]:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return tuple(self.addresses.get(self._ask(host), ()))
        return (host,)

    async def find_name(self, address: str) -> str | None:
        name = self.names.get(address)
        if name is None or {address, name} & self.failing:
            return None
        return name if address in self.addresses.get(name, ()) else None

    def _ask(self, name: str) -> str:
        self.questions.append(name)
        for _ in range(8):
            if name in self.failing:
                raise DnsTemporary(f"{name}: no answer in time")
            if name not in self.aliases:
                return name
            name = self.aliases[name]
        raise DnsTemporary(f"{name}: too many aliases")
