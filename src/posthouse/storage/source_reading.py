"""Reads all sources of one roster, once, and decides whether they are to be believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from posthouse.errors import SourceFailed, StorageBusy
from posthouse.mail.roster import RosterRule
from posthouse.ports_publish import RosterOrder, never
from posthouse.ports_sources import AddressSource, Harvest

# So many per cent of a source may be no addresses before it is not believed.
MAX_UNREADABLE_PERCENT: Final = 1
_MAX_EXAMPLES: Final = 5
_ASK_MASK: Final = 1023


class SourceReading:
    """What the sources of an order say; complete when `contents` has ended.

    given: entries of all sources, as counted by who takes them; empty: of which the fold
    left nothing. The rest as in Harvest, added up.
    """

    def __init__(self, order: RosterOrder, stopped: Callable[[], bool] = never) -> None:
        """stopped: asked every thousand entries; True ends the reading with StorageBusy."""
        self._order = order
        self._stopped = stopped
        self.given = 0
        self.empty = 0
        self.skipped = 0
        self.unreadable = 0
        self.examples: list[str] = []
        self.catch_all = False
        self.rules: tuple[RosterRule, ...] = ()

    def contents(self) -> Iterator[str]:
        """Local parts of all sources. Raises SourceFailed as soon as one is in doubt."""
        for source in self._order.sources:
            harvest = Harvest()
            before = source.get_version()
            count = 0
            for content in source.read(self._order.domain, harvest):
                count += 1
                if not count & _ASK_MASK and self._stopped():
                    raise StorageBusy(f"{self._order.domain}: the build was stopped")
                yield content
            self._judge(source, harvest, count)
            if source.get_version() != before:
                raise SourceFailed(f"{source.name}: changed while it was read")

    def _judge(self, source: AddressSource, harvest: Harvest, count: int) -> None:
        shown = ", ".join(harvest.examples)
        if harvest.unreadable * 100 > (count + harvest.unreadable) * MAX_UNREADABLE_PERCENT:
            raise SourceFailed(
                f"{source.name}: {harvest.unreadable} of {count + harvest.unreadable} entries "
                f"are no addresses, such as {shown}"
            )
        if not count and not harvest.catch_all and not harvest.rules and not source.may_be_empty:
            others = f" ({harvest.skipped} are for other domains)" if harvest.skipped else ""
            raise SourceFailed(
                f"{source.name}: names nobody in {self._order.domain}{others}; if that is right, "
                "say may_be_empty"
            )
        self.skipped += harvest.skipped
        self.unreadable += harvest.unreadable
        self.examples = (self.examples + harvest.examples)[:_MAX_EXAMPLES]
        self.catch_all |= harvest.catch_all
        self.rules += tuple(harvest.rules)
