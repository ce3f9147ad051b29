"""What the HTTPS door needs of the published rosters."""

from __future__ import annotations

import enum
from typing import Final, Protocol

import msgspec

ROSTER_MEDIA_TYPE: Final = "application/vnd.posthouse.roster"
DELTA_MEDIA_TYPE: Final = "application/vnd.posthouse.roster-delta"


class RosterReplyKind(enum.Enum):
    """What the door answers: 304, or 200 with a whole roster or a delta."""

    NOT_MODIFIED = "not modified"
    WHOLE = "whole"
    DELTA = "delta"


class RosterReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one fetch (PROTOCOL.md §2, "Fetch").

    serial: of the roster in force; the ETag is `"<serial>"` for every kind.
    path: of WHOLE, the file to send. Its content never changes; it stays for at least one
    generation after it was replaced. body: of DELTA, all octets.
    """

    kind: RosterReplyKind
    serial: int
    path: str = ""
    size_bytes: int = 0
    body: bytes = b""

    @property
    def etag(self) -> str:
        """As the header has it, quotes included."""
        return f'"{self.serial}"'


class PublishedRosters(Protocol):
    """The rosters in force, by domain and by the id of the key that they were made with."""

    async def find(
        self, domain: str, key_id: str, *, since: int | None = None, if_none_match: str = ""
    ) -> RosterReply | None:
        """What to answer to GET v1/rosters/{domain}; None: there is none (404).

        domain: lower-case A-labels. key_id: of the roster key of the party that asks.
        since: serial that it has in force, if it said so. if_none_match: the header as it
        came, "" without one; what cannot be read in it matches nothing.
        Raises StorageError.
        """
