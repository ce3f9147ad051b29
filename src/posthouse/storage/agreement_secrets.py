"""The passwords of our agreements, read by a worker from the forwarder book.

One indexed read, some ten microseconds, for each transaction that could be
authenticated. `ports_agreements.AgreementSecrets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import apsw

from posthouse import observe
from posthouse.domain.agreement import State
from posthouse.errors import AddressError, StorageError
from posthouse.mail.address import normalize_domain, unquote_local_part
from posthouse.mail.credentials import Credentials
from posthouse.ports_agreements import AgreementBook, ForwarderEntry, Sightings
from posthouse.storage.book_file import open_book_to_read
from posthouse.storage.forwarder_book import find_by_canonical

MAX_REFUSED: Final = 10_000


class BookSecrets:
    """See the port. `agreements` (the snapshot) tells whether there is anything to read at all."""

    def __init__(
        self,
        path: Path,
        agreements: AgreementBook,
        sightings: Sightings,
        owners: Mapping[str, str],
    ) -> None:
        """owners: domain → the party of its primary. What another granter (a more preferred
        backup) gave out is no password at the primary, and would only be refused there.
        """
        self.owners = owners
        self._path = path
        self._agreements = agreements
        self._sightings = sightings
        self._connection: apsw.Connection | None = None
        self._given: dict[str, str] = {}  # agreement-ID → the password that was given last
        self._refused: dict[str, str] = {}  # agreement-ID → the one that was refused

    def find(self, address: str) -> Credentials | None:
        """Credentials of the agreement that covers a recipient, None when there is none."""
        local, at, domain = address.rpartition("@")
        try:
            if not at or not self._agreements.covers(name := normalize_domain(domain)):
                return None
            found = self._agreements.look_up(name, unquote_local_part(local))
        except AddressError:
            return None
        if found is None or found.view.standing.behind is not State.AGREED:
            return None
        entry = self._read(found.canonical)
        if entry is None or not entry.password or entry.login_refused:
            return None
        if entry.granter != self.owners.get(entry.domain):
            return None
        if self._refused.get(entry.agreement_id) == entry.password:
            return None
        if len(self._given) >= MAX_REFUSED:
            self._given.clear()
        self._given[entry.agreement_id] = entry.password
        return Credentials(
            agreement_id=entry.agreement_id,
            password=entry.password,
            forwarder_id=entry.forwarder_id,
        )

    def needs_completion(self, agreement_id: str, why: str) -> None:
        """Take word that the password was refused; it is not given again."""
        if len(self._refused) >= MAX_REFUSED:
            self._refused.clear()
        self._refused[agreement_id] = self._given.pop(agreement_id, "")
        self._sightings.note_refused_login(agreement_id, why)

    def close(self) -> None:
        """Give back the connection. Harmless when repeated."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _read(self, canonical: str) -> ForwarderEntry | None:
        try:
            if self._connection is None:
                self._connection = open_book_to_read(self._path)
            return find_by_canonical(self._connection, canonical)
        except (apsw.Error, StorageError) as error:  # mail flows without AUTH
            observe.trouble("agreements", "passwords cannot be read", error)
            self.close()
            return None
