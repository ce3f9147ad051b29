"""Published rosters: what the HTTPS door asks for, and what the service that makes them needs."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from posthouse.domain.recipients import Fold
from posthouse.mail.roster import RosterLimits, RosterPolicy, RosterRule
from posthouse.ports_sources import AddressSource

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


class RosterInForce(msgspec.Struct, frozen=True, kw_only=True):
    """One published roster. count: of entries. issued_s, expires_s: seconds since 1970."""

    key_id: str
    serial: int
    count: int
    issued_s: int
    expires_s: int


class PublishedDomain(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one domain's rosters, one for each key.

    tried: a build has ended, well or not, since the start or the last reload. problem:
    why the last one failed, "" when it did not. due_s: when the next is begun at the latest.
    """

    name: str
    rosters: tuple[RosterInForce, ...]
    tried: bool = True
    problem: str = ""
    due_s: int = 0


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


# --------------------------------------------------------------------------- making them


class DigestOrder(msgspec.Struct, frozen=True, kw_only=True):
    """How digests are to be made. scheme: "hmac-sha256" or "scrypt"; n, p: of scrypt."""

    scheme: str = "hmac-sha256"
    length: int = 16
    n: int = 16384
    p: int = 1


class RosterOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What the rosters of one domain are made of and say, one for each key.

    domain: lower-case A-labels. rules: those of the configuration, traps first; patterns of
    sources follow them. keys: raw roster keys, 32 octets each. Decoys: `percent` on top,
    then up to a `multiple`. max_loss: per cent, 100 allows everything.
    """

    domain: str
    sources: tuple[AddressSource, ...]
    keys: tuple[bytes, ...]
    how: Fold = Fold()
    catch_all: bool = False
    rules: tuple[RosterRule, ...] = ()
    digest: DigestOrder = DigestOrder()
    decoy_percent: int = 0
    decoy_multiple: int = 1
    refresh_seconds: int = 3600
    valid_seconds: int = 14 * 86_400
    limits: RosterLimits
    policy: RosterPolicy
    mx: tuple[tuple[int, str], ...] = ()
    max_loss: int = 20


class BuildReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one roster.

    published: a new file is in force; else the one of before says the same and is young
    enough. count: of entries, `decoys` and postmaster included. given: entries of all
    sources; repeats among them are one. removed, added: digests, against the one before;
    -1 when there was none to compare with. warnings: for the operator, one line each.
    """

    domain: str
    key_id: str
    serial: int
    published: bool
    path: str
    count: int
    decoys: int
    given: int
    skipped: int
    unreadable: int
    catch_all: bool
    rules: int
    removed: int = -1
    added: int = -1
    warnings: tuple[str, ...] = ()


def never() -> bool:
    """Not stopped."""
    return False


class RosterWorks(Protocol):
    """Makes rosters and puts them in force. Blocks, for minutes perhaps: call it in a thread."""

    def make(
        self,
        order: RosterOrder,
        *,
        accept_loss: bool = False,
        new_salt: bool = False,
        stopped: Callable[[], bool] = never,
    ) -> Sequence[BuildReport]:
        """Read all sources and publish what has changed or needs new dates, for every key.

        Either all that is said holds or nothing changes: a roster is put in force whole,
        after a reader's own code has read it back. new_salt: rosters are made anew with
        fresh salt and decoys. accept_loss: `max_loss` does not count this time. stopped:
        asked now and then; once True, the build ends with StorageBusy.
        Raises SourceFailed, PublishRefused, RosterRefused, StorageError; what was in
        force for this key stays in force.
        """


class RosterStock(Protocol):
    """The rosters in force, as they lie on disk. All methods block."""

    def find(
        self, domain: str, key_id: str, *, since: int | None, if_none_match: str
    ) -> RosterReply | None:
        """As `PublishedRosters.find`. Raises StorageError."""

    def get_serial(self, domain: str, key_id: str) -> int:
        """Of the roster in force, 0 without one. Costs a few system calls."""

    def look(self, domain: str, key_id: str) -> RosterInForce | None:
        """What the roster in force says of itself. Raises StorageError."""
