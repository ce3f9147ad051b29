"""What services need of rosters, each with its promise.

The control process fetches rosters, checks them and puts them in force
(`RosterStore`); workers read them (`RosterShelf`). They meet on disk alone.
Instants are integer microseconds (`*_us`) or seconds (`*_s`) since 1970, UTC.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Protocol

import msgspec

from posthouse.domain.digests import roster_key_id
from posthouse.domain.recipients import Fold
from posthouse.domain.roster import Arrival, KnownRoster
from posthouse.mail.roster import RosterLimits, RosterPolicy
from posthouse.ports_recipients import Fingerprint, RecipientDirectory


class RosterKeys(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to believe and to read the rosters of one domain; from its pairing.

    public_keys: Ed25519, who may sign; roster_keys: whose `key_id` the file names, more
    than one while keys are being changed.
    """

    domain: str
    party: str
    public_keys: tuple[bytes, ...]
    roster_keys: tuple[bytes, ...]

    @property
    def roster_key_ids(self) -> frozenset[str]:
        """What files made with our keys name."""
        return frozenset(map(roster_key_id, self.roster_keys))

    def __repr__(self) -> str:
        return f"RosterKeys({self.party} for {self.domain})"  # no secrets


class RosterFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one roster on disk. known: as `domain/roster` judges it.

    refresh_seconds: as published. taken_us: when it was put in force or set aside; why: why
    it was set aside.
    """

    known: KnownRoster
    issued_s: int
    expires_s: int
    refresh_seconds: int
    file_bytes: int
    taken_us: int
    why: str = ""


class RosterSays(msgspec.Struct, frozen=True, kw_only=True):
    """What the roster in force says of its domain's MX records. mx (): nothing."""

    serial: int
    mx: tuple[tuple[int, str], ...]


class RosterState(msgspec.Struct, frozen=True, kw_only=True):
    """What lies on disk for one domain. highest: by key_id, see domain.roster.History."""

    in_force: RosterFacts | None = None
    set_aside: RosterFacts | None = None
    highest: Mapping[str, KnownRoster] = {}


class RosterNote(msgspec.Struct, frozen=True, kw_only=True):
    """What the subscriber leaves word of for `status`.

    source: where the roster comes from; asked_us: last attempt; answered_us: last answer
    that was good (304 included); next_us: next attempt; problem: one line, "" = none;
    stage: where the attempt failed, a word of `errors.PeerFailure`, "check" or "storage".
    """

    source: str = ""
    asked_us: int = 0
    answered_us: int = 0
    next_us: int = 0
    problem: str = ""
    stage: str = ""


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a file that passed every check. why: for SET_ASIDE."""

    arrival: Arrival
    facts: RosterFacts
    why: str = ""


class RosterIntake(Protocol):
    """A file on its way in. Ends in `RosterStore.take_in` or `discard`."""

    def write(self, data: bytes, /) -> object:
        """Take octets in order. Blocks for a disk write. Raises StorageError."""

    def discard(self) -> None:
        """Remove it. Harmless when repeated, also after `take_in`."""


class Fetched(enum.Enum):
    """What a source gave: something new, nothing, or nothing but what was refused before."""

    NEW = "new"
    NOT_MODIFIED = "not modified"
    STILL_BAD = "still bad"


class RosterSource(Protocol):
    """Where the roster of one domain comes from.

    name: for people. interval_seconds: how often to look where that costs next to nothing;
    None: as the roster says.
    """

    name: str
    interval_seconds: float | None

    async def fetch(self, sink: RosterIntake, *, serial: int, whole: bool) -> Fetched:
        """Write the present roster, or a delta from `serial`, to `sink` (NEW only).

        serial: of the roster in force, 0 for none; whole: no delta. Raises PeerFailure,
        StorageError.
        """

    def settle(self, *, good: bool) -> None:
        """What `fetch` wrote last has passed every check, or has not."""


class RosterStore(Protocol):
    """The rosters of all domains, for the one process that changes them. All of it blocks.

    Promise: what is in force changes only when every check has passed, and then whole: a
    reader has the old or the new. A crash leaves the one or the other.
    """

    def get_state(self, domain: str) -> RosterState:
        """What lies on disk. Raises StorageError."""

    def begin(self, domain: str) -> RosterIntake:
        """A file for a download or copy."""

    def take_in(
        self, intake: RosterIntake, keys: RosterKeys, *, now_us: int, max_loss_percent: int
    ) -> Taken:
        """Check a whole file or a delta, judge it, put it in force or set it aside.

        Constant memory, about 0.2 µs a digest. Raises RosterRefused (check "delta": the
        whole file may be good), StorageError; nothing has changed then.
        """

    def accept(self, keys: RosterKeys, serial: int, *, now_us: int) -> RosterFacts:
        """Put what was set aside in force: an operator said so.

        Raises KeyError when no such serial is set aside, RosterRefused when it would not
        pass today (expired, other keys), StorageError.
        """

    def forget_serials(self, domain: str) -> None:
        """Let a lower serial pass: forget the highest ones, and what is set aside."""

    def verify(self, keys: RosterKeys) -> RosterState:
        """Read what is in force to the last octet; what is damaged is taken out of force.

        Call it once at the start. Raises StorageError.
        """

    def keep_only(self, domains: Collection[str]) -> None:
        """Remove the rosters of every other domain. Raises StorageError."""

    def leave_note(self, domain: str, note: RosterNote) -> None:
        """Leave word for `status`. Never raises."""

    def read_note(self, domain: str) -> RosterNote:
        """What `leave_note` left last. Never raises."""


class RosterDirectory(RecipientDirectory, Protocol):
    """A roster in force, for the verdicts of one worker."""

    serial: int
    head_sha256: str
    issued_s: int
    expires_s: int
    limits: RosterLimits
    policy: RosterPolicy
    fold: Fold

    def close(self) -> None:
        """Give back the mapping, in any thread; look-ups under way finish first."""


class SlowLookUps(Protocol):
    """Runs look-ups that take milliseconds, outside the event loop, and not too many.

    One for all rosters of a worker. Called in the event loop.
    """

    def run(self, test: Callable[[], bool]) -> Awaitable[bool] | None:
        """Start `test` in a thread as soon as one is free; None: too many wait already."""

    def allows(self, network: str) -> bool:
        """Tell whether this client network may guess once more, and count it; "" always may."""

    def refund(self, network: str) -> None:
        """The guess was right: it does not count."""


class RosterShelf(Protocol):
    """The rosters in force, for workers. Versions are None for what does not exist."""

    def open(self, keys: RosterKeys, slow: SlowLookUps) -> RosterDirectory | None:
        """The roster in force; None when there is none, it is damaged or keys are missing.

        Blocks for milliseconds: call it in a thread.
        """

    def get_version(self, domain: str) -> Fingerprint | None:
        """Changes with every swap. One stat."""

    def get_directory_version(self) -> Fingerprint | None:
        """Changes with every swap of any domain, unless two fall into one clock tick."""

    def get_state(self, domain: str) -> RosterState:
        """What lies on disk. Raises StorageError."""

    def read_note(self, domain: str) -> RosterNote:
        """What the subscriber left word of. Never raises."""
