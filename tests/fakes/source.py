"""A source of addresses that is a list in memory; passes the contract of `AddressSource`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from posthouse.domain.source_entries import EntryReader
from posthouse.errors import SourceFailed
from posthouse.mail.roster import RosterRule
from posthouse.ports_sources import Harvest


class ListSource:
    """`addresses` may be replaced; `failing` makes the next reads fail half way.

    version: "" as of a source that only a reader knows, else it must be changed by hand.
    """

    def __init__(
        self,
        addresses: Iterable[str],
        *,
        name: str = "list",
        version: str = "",
        rules: Iterable[RosterRule] = (),
        may_be_empty: bool = False,
        while_reading: Callable[[], None] = lambda: None,
    ) -> None:
        self.addresses = list(addresses)
        self.name = name
        self.may_be_empty = may_be_empty
        self.version = version
        self.rules = tuple(rules)
        self.failing = False
        self.reads = 0
        self._while_reading = while_reading

    def get_version(self) -> str:
        """What the test says."""
        return self.version

    def read(self, domain: str, harvest: Harvest) -> Iterator[str]:
        """Give what is in the list."""
        self.reads += 1
        self._while_reading()
        entries = EntryReader(domain)
        for number, address in enumerate(self.addresses):
            if self.failing and number >= len(self.addresses) // 2:
                raise SourceFailed(f"{self.name}: lost the connection")
            content = entries.read(address)
            if content is not None:
                yield content
        harvest.rules += self.rules
        harvest.take(entries)
