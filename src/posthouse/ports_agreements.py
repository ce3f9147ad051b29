"""What services need of the books of agreements, each with its promise (PROTOCOL.md §3).

A node's control process keeps the *forwarder book*: what this backup holds for
whom. Workers read a snapshot of it, swapped whole, and hand what they learn
(`Sightings`) over through storage. The *granter book* is the other side's: who
was granted what; `primary serve` keeps one, and so does a backup that grants to
a further backup. Instants are integer microseconds since 1970, UTC.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from posthouse.domain.agreement import AgreementView, End, RosterFacts, Standing, State
from posthouse.domain.recipients import Fold
from posthouse.mail.credentials import Credentials
from posthouse.mail.recipes import (
    Actor,
    AgreementRequest,
    Completion,
    Holder,
    PolicyRequest,
    PolicySettings,
    RecipeResult,
    Refusal,
)

# --------------------------------------------------------------------------- what workers read


class FoundAgreement(msgspec.Struct, frozen=True, gc=False):
    """An agreement on record and the canonical text it is kept under."""

    canonical: str
    view: AgreementView


class AgreementBook(Protocol):
    """All agreements, as one worker sees them. Sync, microseconds, never raises."""

    def covers(self, domain: str) -> bool:
        """Tell whether the domain has any agreement: most have none, and this is almost free."""

    def find(self, canonical: str) -> AgreementView | None:
        """The agreement kept under a canonical text (local part and domain)."""

    def look_up(self, domain: str, local: str) -> FoundAgreement | None:
        """The agreement that covers the content of a local part: whole, then without subaddress."""


class AgreementSecrets(Protocol):
    """The passwords of our agreements, for SMTP AUTH at next hops. Called in the event loop."""

    def find(self, address: str) -> Credentials | None:
        """Credentials of the agreement that covers a recipient, None when there is none.

        address: as the client gave it; the book folds it. Only agreements that are `agreed`
        and whose password is not known to be refused. Takes microseconds, never raises.
        """

    def needs_completion(self, agreement_id: str, why: str) -> None:
        """Take word that the granter refused the password (535 or 432): it must be set anew.

        Until then `find` should not give these credentials. Never blocks, never raises.
        why: the reply, one line.
        """


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker learned about one address.

    canonical: the text whose digest hit (or the folded address, where there is no roster).
    address: as a client spelled it. serial: of the roster that vouched, 0 without one.
    messages, bytes: accepted since the last report; 0 when somebody only asked (RCPT).
    """

    canonical: str
    domain: str
    address: str
    serial: int
    at_us: int
    messages: int = 0
    bytes: int = 0


class Sightings(Protocol):
    """Takes what a worker learns, gathered and handed over about once a second.

    Called in the event loop; never blocks, never raises. A report may be lost in a power
    cut within that second: the next message for the address makes up for it.
    """

    def note_message(self, sighting: Sighting) -> None:
        """A message was accepted for an address that a digest or an agreement vouches for."""

    def note_wanted(self, sighting: Sighting) -> None:
        """Somebody wants to write to an address of a domain without a roster."""

    def note_refused_login(self, agreement_id: str, why: str) -> None:
        """A next hop refused the agreement's password."""


class RefusedLogin(msgspec.Struct, frozen=True, kw_only=True):
    """A next hop refused the password of an agreement; why: its reply, one line."""

    agreement_id: str
    why: str
    at_us: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One hand-over. name: tells it from every other one, of this worker and of earlier runs."""

    name: str
    sightings: tuple[Sighting, ...] = ()
    refused_logins: tuple[RefusedLogin, ...] = ()


class Reports(Protocol):
    """The control process's end of `Sightings`. Blocks for as long as the disk takes."""

    def read(self, limit: int) -> Sequence[Report]:
        """The oldest reports, at most `limit`. What cannot be read is set aside."""

    def forget(self, reports: Iterable[Report]) -> None:
        """Remove them; call it once what they say is on record."""


# --------------------------------------------------------------------------- the forwarder book


class ForwarderEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One agreement, as the forwarder keeps it.

    canonical: its key; address: the spelling to name it by; granter: party that was asked,
    forwarder_id: our name there.
    password: in force at the granter as far as we know; former_password: the one before;
    one_time_password: came with a grant or a reset and is good for completion only;
    new_password: about to be set, written down before it is sent.
    serial: of the last roster that vouched, 0 for none. due_us: when something is to be done
    about it, None for nothing. tries: answers that led to the present due_us.
    login_refused: a next hop refused the password since it was set.
    note: one line for people: what the granter said, what is wrong.
    """

    canonical: str
    domain: str
    address: str
    standing: Standing
    serial: int = 0
    end: End | None = None
    granter: str = ""
    forwarder_id: str = ""
    recipe_id: str = ""
    recipe_key: str = ""
    agreement_id: str = ""
    completion_url: str = ""
    user_id: str = ""
    password: str = ""
    former_password: str = ""
    one_time_password: str = ""
    new_password: str = ""
    login_refused: bool = False
    seen_us: int = 0
    asked_us: int = 0
    agreed_us: int = 0
    changed_us: int = 0
    due_us: int | None = None
    tries: int = 0
    note: str = ""
    messages: int = 0
    bytes: int = 0
    last_message_us: int = 0
    spellings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"ForwarderEntry({self.canonical}, {self.standing.state.name})"  # no secrets


ForwarderChange = Callable[[str, ForwarderEntry | None], ForwarderEntry | None]
"""Pure: (canonical, entry or None) → the entry to keep, None: leave things as they are."""


class AgreementQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which agreements an operator means; every given condition must hold. Empty: all."""

    domain: str = ""
    canonical: str = ""
    state: State | None = None


class ForwarderBook(Protocol):
    """Every agreement this backup holds. One process changes it.

    Promise: what `change` and `take` did is on disk when they return, whole or not at all.
    Methods raise StorageError.
    """

    async def change(
        self, canonicals: Sequence[str], decide: ForwarderChange
    ) -> Sequence[ForwarderEntry]:
        """Apply `decide` to each key, all in one step; returns the entries that it gave."""

    async def take(
        self,
        reports: Sequence[Report],
        decide: Callable[[Sighting, ForwarderEntry | None], ForwarderEntry | None],
    ) -> Sequence[ForwarderEntry]:
        """As `change`, for sightings; a report that was taken before changes nothing again."""

    async def find(self, canonical: str) -> ForwarderEntry | None: ...

    async def find_recipe(self, recipe_id: str) -> ForwarderEntry | None: ...

    async def find_agreement(self, agreement_id: str) -> ForwarderEntry | None: ...

    async def due(self, domain: str, now_us: int, limit: int) -> Sequence[ForwarderEntry]:
        """Entries of the domain whose due_us has come, oldest first; not those that ended."""

    async def next_due(self) -> Mapping[str, int]:
        """Every domain with something `due` → the earliest. Costs by domains, not by entries."""

    async def ended(self, limit: int) -> Sequence[ForwarderEntry]:
        """Entries that ended and have a due_us: their queued mail is still to be held."""

    async def forget_ended(self, now_us: int, before_us: int) -> int:
        """Remove what ended and has nothing due; returns how many.

        Ends with an until_us: those whose until_us has come by `now_us`, or that lie behind
        it themselves; others: those from before `before_us`.
        """

    async def bring_forward(self, now_us: int, behind_us: int) -> int:
        """What is due later than `behind_us` is due at `now_us`; returns how many."""

    async def list(
        self, query: AgreementQuery, *, after: str, limit: int
    ) -> Sequence[ForwarderEntry]:
        """Entries by ascending canonical text behind `after`."""

    async def behind(self, domain: str, serial: int, limit: int) -> Sequence[ForwarderEntry]:
        """Entries that no roster up to `serial` has been asked about yet (see `note_asked`)."""

    async def note_asked(self, canonicals: Iterable[str], serial: int) -> None:
        """The roster with this serial has been asked about them."""

    async def set_folds(self, folds: Mapping[str, Fold]) -> None:
        """How each domain's primary reads a local part, for `AgreementBook.look_up`."""

    async def counts(self) -> Mapping[str, Mapping[State, int]]:
        """By domain and state."""

    async def publish(self) -> None:
        """Put what is on record before the workers; they see it within a second."""


# --------------------------------------------------------------------------- the granter book


class GrantState(enum.IntEnum):
    """Where a grant stands. The numbers are stored and must not change."""

    PENDING = 1  # a person may have to say yes
    GRANTED = 2  # not completed: only the one-time password is good
    AGREED = 3
    REFUSED = 4
    ENDED = 5
    ENDING = 6  # ended, and the forwarder is still to be told


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """One agreement, as the granter keeps it; forwarder_id and recipe_id are its key.

    mailbox: canonical text. one_time, password, used: hashes; `used` is the password that
    the one in force replaced, so that a repeat of the completion is recognised.
    wrong, wrong_since_us: wrong passwords since. evidence_us: when the forwarder had its
    first message. asked: pending answers given so far.
    """

    forwarder_id: str
    recipe_id: str
    recipe_key: str
    domain: str
    mailbox: str
    address: str
    name: str
    policy_url: str
    agreement_id: str
    state: GrantState
    user_id: str = ""
    blocked: bool = False
    one_time: bytes = b""
    password: bytes = b""
    used: bytes = b""
    feedback_address: str = ""
    created_us: int = 0
    agreed_us: int = 0
    changed_us: int = 0
    evidence_us: int = 0
    wrong: int = 0
    wrong_since_us: int = 0
    asked: int = 0

    def __repr__(self) -> str:
        return f"Grant({self.agreement_id} for {self.mailbox}, {self.state.name})"  # no secrets


class GranterBook(Protocol):
    """Every agreement granted here. Durable and whole as `ForwarderBook`; raises StorageError."""

    async def settle(
        self,
        forwarder_id: str,
        recipe_ids: Sequence[str],
        decide: Callable[[str, Grant | None], Grant | None],
    ) -> Sequence[Grant]:
        """Apply `decide` to each recipe, all in one step; returns the grants that it gave."""

    async def change(
        self, agreement_id: str, decide: Callable[[Grant], Grant | None]
    ) -> Grant | None:
        """Apply `decide` to one agreement; None when there is none, or it gave None."""

    async def find(self, agreement_id: str) -> Grant | None: ...

    async def list(
        self,
        *,
        mailbox: str = "",
        domain: str = "",
        forwarder_id: str = "",
        state: GrantState | None = None,
        after: str = "",
        limit: int = 1000,
    ) -> Sequence[Grant]:
        """Grants by ascending agreement-ID behind `after`; every given condition must hold."""

    async def forget_ended(self, before_us: int) -> int:
        """Remove what is ENDED since before `before_us`; returns how many."""

    async def counts(self) -> Mapping[str, Mapping[GrantState, int]]:
        """By domain and state."""


class Existence(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner of a domain knows of an address.

    exists: None when nobody can tell now. mailbox: canonical text. user_id: for people, may be "".
    """

    exists: bool | None
    mailbox: str
    user_id: str = ""


class AddressBook(Protocol):
    """Who exists: the sources beside a primary, or the roster of a backup that grants."""

    async def find(self, domain: str, local: str) -> Existence:
        """Look up the content of a local part. Never raises."""


# --------------------------------------------------------------------------- calls


class GranterCalls(Protocol):
    """Requests to one granter. Raises PeerFailure when there is no usable answer."""

    async def request(self, document: AgreementRequest) -> Sequence[RecipeResult] | Refusal:
        """Ask for agreements; results in the order of the recipes."""

    async def complete(self, url: str, document: Completion) -> Refusal | None:
        """Set a password, a feedback address, or terminate; None: done (204)."""


class PolicyCalls(Protocol):
    """Requests to forwarders. Raises PeerFailure when there is no usable answer."""

    async def negotiate(
        self, party: str, url: str, document: PolicyRequest
    ) -> PolicySettings | Refusal:
        """Get or set at the forwarder `party`. A URL outside its base is FORBIDDEN, uncalled."""


# --------------------------------------------------------------------------- the forwarder's world


class RosterWitness(Protocol):
    """What the roster in force says, for the forwarder. Of domains that are paired."""

    def facts(self, domain: str) -> RosterFacts | None:
        """The roster in force; None when the domain has none."""

    def fold(self, domain: str) -> Fold | None:
        """How its primary reads a local part; None without a roster."""

    async def testify(self, domain: str, local: str) -> bool | None:
        """Whether the roster vouches for the content of a local part, or refuses it.

        Digest, catch_all and accepting rules: True; absent and rejecting rules: False. None
        when it has no say: a trap, a deferring rule, no roster, no answer to be had now.
        """


class QueueHolder(Protocol):
    """Puts mail on hold in every shard of the node, running workers included."""

    async def hold(self, domain: str, addresses: Sequence[str]) -> int:
        """Hold (move h) what is queued for these addresses; returns the number of recipients.

        Nothing is bounced. Raises StorageError when a worker cannot be reached: try again.
        """


class HoldersBelow(Protocol):
    """Who stores an address below us: those we have granted an agreement to."""

    async def find_holders(
        self, mailbox: str, actor: Actor, visited: Sequence[str] = ()
    ) -> tuple[Holder, ...]:
        """visited: parties asked before, ourselves at their end. Raises StorageError."""
