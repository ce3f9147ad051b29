"""What a backup hands on to one behind it: the owner's rosters, unchanged (PROTOCOL.md §2).

`ports_publish.PublishedRosters` over the rosters in force here. Always whole: who
stands behind is rarely served from here, and its deltas are the owner's affair.
"""

from __future__ import annotations

import asyncio

from posthouse.ports_publish import RosterReply, RosterReplyKind
from posthouse.storage.roster_offers import matches_serial
from posthouse.storage.roster_store import RosterFiles


class OwnerRosters:
    """See the module."""

    def __init__(self, files: RosterFiles) -> None:
        self._files = files

    async def find(
        self,
        domain: str,
        key_id: str,  # noqa: ARG002 (the owner's key made the file, whoever asks)
        *,
        since: int | None = None,  # noqa: ARG002
        if_none_match: str = "",
    ) -> RosterReply | None:
        """See the port. Raises StorageError."""
        return await asyncio.to_thread(self._find, domain, if_none_match)

    def _find(self, domain: str, if_none_match: str) -> RosterReply | None:
        facts = self._files.get_state(domain).in_force
        if facts is None:
            return None
        serial = facts.known.serial
        if matches_serial(if_none_match, serial):
            return RosterReply(kind=RosterReplyKind.NOT_MODIFIED, serial=serial)
        return RosterReply(
            kind=RosterReplyKind.WHOLE,
            serial=serial,
            path=str(self._files.find_file(domain, facts)),
            size_bytes=facts.file_bytes,
        )
