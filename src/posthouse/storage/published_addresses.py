"""Who exists, by the rosters that this primary has published: for its granter and its pages.

The same file that a backup reads answers here, so both sides agree on what an
address is: its canonical text is the one whose digest is there. What only a
rule, a trap or a catch-all covers has no mailbox of its own, and no agreement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from posthouse import observe
from posthouse.domain.digests import make_digest, roster_key_id
from posthouse.domain.roster import RosterReader
from posthouse.errors import RosterRefused, StorageError
from posthouse.ports_agreements import Existence
from posthouse.storage.roster_body import RosterBody
from posthouse.storage.roster_shelf import open_shelf


class _Open(msgspec.Struct, frozen=True):
    serial: int
    key_id: str
    body: RosterBody
    reader: RosterReader


class PublishedAddresses:
    """See `posthouse.ports_agreements.AddressBook`. Used in one event loop."""

    def __init__(self, directory: Path, keys: Mapping[str, tuple[bytes, ...]]) -> None:
        """keys: by domain, the roster keys its rosters may have been made with."""
        self._directory = directory
        self._keys = dict(keys)
        self._open: dict[str, _Open] = {}
        self._lock = asyncio.Lock()

    def set_keys(self, keys: Mapping[str, tuple[bytes, ...]]) -> None:
        """Put others in force (reload)."""
        self._keys = dict(keys)

    async def find(self, domain: str, local: str) -> Existence:
        """Look up the content of a local part. Never raises."""
        try:
            async with self._lock:  # a slow digest takes a core; one at a time is enough here
                return await asyncio.to_thread(self._find, domain, local)
        except (StorageError, RosterRefused, OSError, ValueError) as error:
            observe.trouble("agreements", f"{domain}: its roster cannot be read", error)
            return Existence(exists=None, mailbox="")

    def _find(self, domain: str, local: str) -> Existence:
        roster = self._newest(domain)
        if roster is None:
            return Existence(exists=None, mailbox="")
        texts = roster.reader.find_texts(local)
        nobody = Existence(exists=False, mailbox=texts[1] or texts[0])
        if roster.reader.find_early(local) is not None:
            return nobody
        key = next(key for key in self._keys[domain] if roster_key_id(key) == roster.key_id)
        digest = make_digest(roster.reader.header.digest, key)
        for text in filter(None, texts):
            if roster.body.holds(digest(text)):
                return Existence(exists=True, mailbox=text)
        return nobody

    def _newest(self, domain: str) -> _Open | None:
        """The roster in force with the highest serial, whatever key it was made with."""
        found = [
            (open_shelf(self._directory, domain, roster_key_id(key)), roster_key_id(key))
            for key in self._keys.get(domain, ())
        ]
        serial, shelf, key_id = max(
            ((shelf.find_serial(), shelf, key_id) for shelf, key_id in found),
            key=lambda one: one[0],
            default=(0, None, ""),
        )
        known = self._open.get(domain)
        if known is not None and (known.serial, known.key_id) == (serial, key_id):
            return known
        if known is not None:
            known.body.close()
            del self._open[domain]
        if shelf is None or not serial:
            return None
        body = shelf.open_body(serial)
        self._open[domain] = _Open(serial, key_id, body, RosterReader(body.head.header))
        return self._open[domain]

    def close(self) -> None:
        """Give back what is open."""
        for roster in self._open.values():
            roster.body.close()
        self._open.clear()
