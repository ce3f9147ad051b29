"""Answers fetches from the rosters that were made. `RosterOffers`: `ports_publish.RosterStock`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from posthouse.domain.roster_build import join_steps
from posthouse.errors import RosterRefused, StorageBroken
from posthouse.mail.wire_text import parse_time
from posthouse.ports_publish import RosterInForce, RosterReply, RosterReplyKind
from posthouse.proto.roster_delta import encode_delta
from posthouse.storage.roster_shelf import RosterShelf, open_shelf

# A backup each, and a second try of theirs; a delta has some kilobytes.
_KEPT_DELTAS: Final = 16
_MAX_KEPT_BYTES: Final = 1 << 20
_ENTITY_TAG: Final = re.compile(r'\s*(?:W/)?"([^"]*)"\s*(?:,|\Z)')


class RosterOffers:
    """The rosters in force below one directory, whole and as deltas."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._deltas: dict[tuple[str, str, int, int], bytes] = {}
        self._seen: dict[tuple[str, str], RosterInForce] = {}

    def find(
        self, domain: str, key_id: str, *, since: int | None, if_none_match: str
    ) -> RosterReply | None:
        """What to answer. See `RosterWorks.find`."""
        if not key_id.isalnum() or "/" in domain or domain.startswith("."):
            return None
        shelf = open_shelf(self._directory, domain, key_id)
        serial = shelf.find_serial()
        if not serial:
            return None
        if matches_serial(if_none_match, serial):
            return RosterReply(kind=RosterReplyKind.NOT_MODIFIED, serial=serial)
        try:
            size = shelf.path_of(serial).stat().st_size
            if since is not None and 0 < since < serial:
                delta = self._find_delta(shelf, domain, key_id, since, serial)
                if delta is not None and len(delta) < size:
                    return RosterReply(
                        kind=RosterReplyKind.DELTA, serial=serial, body=delta, size_bytes=len(delta)
                    )
        except FileNotFoundError:  # replaced twice since we looked
            return self.find(domain, key_id, since=None, if_none_match="")
        except OSError as error:
            raise StorageBroken(f"{shelf.directory}: {error.strerror}") from error
        return RosterReply(
            kind=RosterReplyKind.WHOLE,
            serial=serial,
            path=str(shelf.path_of(serial)),
            size_bytes=size,
        )

    def _find_delta(
        self, shelf: RosterShelf, domain: str, key_id: str, since: int, serial: int
    ) -> bytes | None:
        wanted = (domain, key_id, since, serial)
        if wanted not in self._deltas:
            while len(self._deltas) >= _KEPT_DELTAS:
                self._deltas.pop(next(iter(self._deltas)))
            chain = shelf.find_chain(since, serial)
            if chain is None:
                return None
            body = shelf.open_body(serial)
            try:
                head = body.head
            finally:
                body.close()
            removed, added = join_steps(chain, head.header.digest.length)
            self._deltas[wanted] = encode_delta(since, head.octets, removed, added)
        return self._deltas[wanted]

    def get_serial(self, domain: str, key_id: str) -> int:
        """Of the roster in force, 0 without one."""
        return open_shelf(self._directory, domain, key_id).find_serial()

    def look(self, domain: str, key_id: str) -> RosterInForce | None:
        """What the roster in force says of itself. Raises StorageError."""
        shelf = open_shelf(self._directory, domain, key_id)
        serial = shelf.find_serial()
        if not serial:
            return None
        known = self._seen.get((domain, key_id))
        if known is not None and known.serial == serial:
            return known
        try:
            body = shelf.open_body(serial)
        except FileNotFoundError:  # replaced twice since we looked
            return self.look(domain, key_id)
        except (OSError, RosterRefused) as error:
            raise StorageBroken(f"{shelf.path_of(serial)} cannot be read: {error}") from error
        header = body.head.header
        body.close()
        seen = self._seen[domain, key_id] = RosterInForce(
            key_id=key_id,
            serial=serial,
            count=header.body.count,
            issued_s=parse_time(header.issued_at),
            expires_s=parse_time(header.expires_at),
        )
        return seen


def matches_serial(if_none_match: str, serial: int) -> bool:
    """Whether the header names the serial (RFC 9110 §13.1.2); what it cannot read is no match."""
    if if_none_match.strip() == "*":
        return True
    at = 0
    while match := _ENTITY_TAG.match(if_none_match, at):
        if match[1] == str(serial):
            return True
        at = match.end()
    return False
