"""Where the primary's addresses come from: what every engine of a source promises.

A source is asked for one domain at a time and believed whole or not at all: half
a list, published, would have the backup refuse mail to people who exist. So an
engine that is cut short in any way raises, and what was in force stays in force.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from posthouse.domain.source_entries import EntryReader
from posthouse.mail.roster import RosterRule


class Harvest(msgspec.Struct, kw_only=True):
    """What a source said besides addresses; complete when `read` has ended.

    skipped: entries for other domains. unreadable: entries that are no addresses,
    of which `examples` holds the first few. catch_all: the source takes every
    local part. rules: patterns of the source, in its order.
    """

    skipped: int = 0
    unreadable: int = 0
    examples: list[str] = msgspec.field(default_factory=list)
    catch_all: bool = False
    rules: list[RosterRule] = msgspec.field(default_factory=list)

    def take(self, entries: EntryReader) -> None:
        """Add up what a reader of entries has counted."""
        self.skipped += entries.skipped
        self.unreadable += entries.unreadable
        self.examples += entries.examples
        self.catch_all |= entries.catch_all


class AddressSource(Protocol):
    """One place that knows who exists. All methods block: call them in a thread."""

    name: str
    """As the operator wrote it, without secrets."""

    may_be_empty: bool
    """The operator said that it may name nobody; else that is a failure."""

    def get_version(self) -> str:
        """Changes when the contents may have changed; costs next to nothing.

        "" means that only reading tells: then a timer decides. What cannot be looked
        at now has a version too, so that its return is a change.
        """

    def read(self, domain: str, harvest: Harvest) -> Iterator[str]:
        """Give the content of the local part of every mailbox and alias in `domain`.

        domain: lower-case A-labels. Contents are unquoted and not folded; repeats are
        allowed; memory stays bounded. `harvest` is filled on the way.
        Raises SourceFailed as soon as anything is missing or in doubt.
        """
