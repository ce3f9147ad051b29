"""Who shows which token: the parties that may knock at the HTTPS door.

Only hashes of tokens are held (PROTOCOL.md §1). A token is rotated without a
gap: both are good until the newer one has been shown; from then on the older
is void, across restarts too (`TokenUses` remembers).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Container, Sequence
from typing import Protocol

import msgspec

from posthouse import observe
from posthouse.errors import StorageError
from posthouse.ports_https import Party


class TokenUses(Protocol):
    """Remembers, durably, the hashes of tokens that have been shown."""

    def __contains__(self, digest: object, /) -> bool: ...

    def add(self, digest: bytes) -> None:
        """Raises StorageError; the use counts for this process all the same."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One party with the hashes of the tokens it was given, oldest first.

    roster_key_ids: of the roster keys handed out with them; () for a primary.
    """

    name: str
    domains: frozenset[str]
    token_hashes: tuple[bytes, ...]
    roster_key_ids: tuple[str, ...] = ()


def find_first_valid(token_hashes: Sequence[bytes], uses: Container[bytes]) -> int:
    """Index of the oldest token that is still good: the newest that has been used, or 0."""
    return max((i for i, digest in enumerate(token_hashes) if digest in uses), default=0)


class PairedParties:
    """The accounts in force. See `posthouse.ports_https.Parties`."""

    def __init__(self, accounts: Sequence[Account], uses: TokenUses) -> None:
        self._uses = uses
        self._accounts: tuple[Account, ...] = ()
        self.set_accounts(accounts)

    def set_accounts(self, accounts: Sequence[Account]) -> None:
        """Put others in force (reload)."""
        self._accounts = tuple(accounts)

    def find(self, token: str) -> Party | None:
        """Whose token it is, or None. Looks at every hash, whichever fits."""
        shown = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found: tuple[Account, int] | None = None
        for account in self._accounts:
            for index, digest in enumerate(account.token_hashes):
                if hmac.compare_digest(digest, shown):
                    found = account, index
        if found is None:
            return None
        account, index = found
        if index < find_first_valid(account.token_hashes, self._uses):
            return None
        self._note_use(account, index)
        return Party(
            name=account.name,
            domains=account.domains,
            roster_key_ids=account.roster_key_ids[: index + 1][::-1],
        )

    def _note_use(self, account: Account, index: int) -> None:
        digest = account.token_hashes[index]
        if digest in self._uses:
            return
        try:
            self._uses.add(digest)
        except StorageError as error:
            observe.trouble("https", "cannot note the first use of a token", error)
        if index:
            observe.note("https", f"{account.name} shows its new token: the former one is void")
