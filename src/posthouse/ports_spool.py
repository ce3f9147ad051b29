"""The spool: what lies in it, what moves it, and what it promises.

Every engine *and every fake* passes the contract suite of this port (`tests/contract`). Instants
are integer microseconds since 1970, UTC (`*_us`): they are sort keys, SQL values and halves of
queue ids; `datetime` lives at the edges only.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol

import msgspec

from posthouse.mail.envelope import Client, Envelope


class State(enum.IntEnum):
    """Where one recipient of one message stands.

    Moves (letters are cited by code, tests and docs)::

        (a) accept    door     —       → QUEUED, or HELD where nobody vouches (Recipient.hold)
        (d) deliver   relay    QUEUED  → gone (row deleted; message deleted with its last row)
        (r) retry     relay    QUEUED  → QUEUED, due later
        (h) hold      relay, sweeper, operator   QUEUED → HELD
        (f) free      operator HELD    → QUEUED, due now, keep_for starts again
        (x) delete    operator any     → gone
    """

    QUEUED = 0
    HELD = 1


class QueuedRecipient(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One recipient row. `seq` counts from 0 within its message.

    due_us: when it is tried next; of a HELD row, since when it has been on hold.
    """

    seq: int
    address: str
    domain: str
    notify: str = ""
    orcpt: str = ""
    state: State = State.QUEUED
    attempts: int = 0
    due_us: int = 0
    reason: str = ""  # why held or deferred, one line
    reply: str = ""  # the peer's last reply, one line


class QueuedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message as the relay and the operator see it.

    recipients: in a claim only those claimed; in `show` all that are left.
    size_bytes: octets of the stored message, our trace fields included.
    body: the whole message when it was read with the claim, else None (`open_body`).
    recipients_in_all: how many it had when it was accepted; 0: its envelope cannot be read.
    """

    queue_id: int
    received_us: int
    size_bytes: int
    envelope_sender: str
    body_type: str
    smtputf8: bool
    ret: str
    envid: str
    client: Client
    recipients: tuple[QueuedRecipient, ...]
    body: bytes | None = None
    recipients_in_all: int = 0


class Cursor(msgspec.Struct, frozen=True):
    """How far a domain's queue has been read: (due_us, queue_id, seq) of the last row."""

    due_us: int
    queue_id: int
    seq: int


class Claim(msgspec.Struct, frozen=True):
    """What `Spool.claim` found. cursor: give it to the next call; exhausted: nothing more was due.

    next_due_us: when the first row behind the cursor falls due, if any (exhausted only).
    """

    messages: tuple[QueuedMessage, ...]
    cursor: Cursor | None
    exhausted: bool
    next_due_us: int | None


class Outcome(enum.IntEnum):
    """What became of one recipient (moves d, r, h)."""

    DELIVERED = 0
    DEFERRED = 1
    HELD = 2


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """One move of one recipient. due_us counts for DEFERRED only."""

    queue_id: int
    seq: int
    outcome: Outcome
    due_us: int = 0
    reason: str = ""
    reply: str = ""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which recipients an operator means; every given condition must hold. Empty = all.

    older_than_us: received before this instant; since_us: received, or put on hold, at or
    after it. recipient, sender: whole address, case-insensitive. reply: three digits mean the
    code of the last reply; anything else a substring of the last reply or reason,
    case-insensitive.
    """

    queue_ids: tuple[int, ...] = ()
    domain: str = ""
    recipient: str = ""
    sender: str | None = None
    state: State | None = None
    reply: str = ""
    older_than_us: int | None = None
    since_us: int | None = None

    @property
    def reply_code(self) -> str:
        """`reply` when it is a reply code, else ""."""
        code = self.reply
        return code if len(code) == 3 and code.isascii() and code.isdigit() else ""


class OperatorAction(enum.StrEnum):
    """Moves an operator may make (h, f, due-now, x)."""

    HOLD = "hold"
    RELEASE = "release"
    RETRY = "retry"
    DELETE = "delete"


class DomainTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Counts for one domain in one shard. Sizes are in octets, counts are recipients.

    oldest_us: when the oldest message here was received, oldest_queued_us: the oldest of those
    with a queued recipient.
    """

    domain: str
    queued: int
    held: int
    oldest_us: int | None
    size_bytes: int
    oldest_queued_us: int | None = None


# --------------------------------------------------------------------------- the port


class Incoming(Protocol):
    """One message on its way in. Made by `Spool.begin`; ends in `commit` or `discard`."""

    queue_id: int
    size_bytes: int

    def write(self, data: bytes) -> bool:
        """Take more octets. Never blocks.

        Returns False when enough is waiting for the disk that the caller should
        stop reading from its peer until `drain` returns.
        A failing disk is not reported here but by `drain` and `commit`.
        """

    async def drain(self) -> None:
        """Wait until more may be written. Raises StorageError when the disk failed."""

    def discard(self) -> None:
        """Forget the message and give back what it held. Harmless when repeated, after commit."""


class Body(Protocol):
    """A stored message, read in order, in pieces."""

    size_bytes: int

    async def read(self, limit: int) -> bytes:
        """At most `limit` octets, b"" at the end. Raises BodyDamaged, StorageBroken.

        The checksum is verified with the last piece: a damaged body raises
        BodyDamaged before its last octets are returned, never after.
        """

    def close(self) -> None: ...


class Spool(Protocol):
    """The durable home of accepted mail: one shard, one writer.

    Promise: when `commit` returned, a crash or power cut does not lose the
    message; before, it leaves no trace that could be delivered. Moves given
    to `settle` are durable when its awaitable returns; until then a crash
    may undo them (a duplicate, never a loss).
    All methods are called from one event loop; disk work happens in threads.
    """

    shard: int

    def intake_problem(self) -> str | None:
        """Why no message can be taken now (disk full, broken …), or None. Asked at every MAIL."""

    def begin(self) -> Incoming:
        """Start a message with a fresh queue id. Raises StorageError."""

    def commit(self, incoming: Incoming, *, envelope: Envelope, client: Client) -> Awaitable[None]:
        """Make it durable. The awaitable raises StorageError when it is not."""

    async def claim(
        self,
        domain: str,
        *,
        after: Cursor | None,
        now_us: int,
        max_messages: int,
        max_bytes: int,
    ) -> Claim:
        """Read queued rows of `domain` that are due, oldest due first, behind `after`.

        Claims nothing in the table: the one relay of this shard remembers what it
        has in hand. Rows of one message that fall together stay together. Bodies
        are read along while they fit `max_bytes` in all. A damaged row or body is
        put on hold (move h), reported, and left out.
        """

    def settle(self, settlements: Sequence[Settlement]) -> Awaitable[None]:
        """Apply moves d, r, h. Rows that are gone meanwhile are left alone.

        DELIVERED removes a row that was HELD meanwhile too, since it is a fact; DEFERRED
        and HELD leave such a row as it is.
        """

    async def queued_domains(self) -> Mapping[str, int]:
        """Every domain with a QUEUED row → its earliest due_us. Costs by domains, not by rows.

        What a claim would give is due now at the latest, also when the clock was set back.
        """

    async def expire(
        self, domain: str, *, kept_before_us: int, limit: int
    ) -> Sequence[QueuedMessage]:
        """Hold (move h, reason "expired") rows of `domain` queued since before that instant."""

    async def open_body(self, queue_id: int) -> Body:
        """The stored octets. Raises KeyError (message gone), BodyDamaged, StorageBroken."""

    async def list_messages(
        self, selection: Selection, *, after: int | None, limit: int
    ) -> Sequence[QueuedMessage]:
        """Messages (ascending queue_id > after) with the recipients that `selection` means."""

    async def act(self, selection: Selection, action: OperatorAction, *, now_us: int) -> int:
        """Move what `selection` means; returns the number of recipients moved."""

    async def totals(self) -> Sequence[DomainTotals]:
        """Counts by domain."""

    def set_accept_listener(self, listener: AcceptListener | None) -> None:
        """Who hears of freshly committed messages (the bell; lossy by design)."""

    async def close(self) -> None:
        """Finish what was handed over, flush, close."""


class AcceptListener(Protocol):
    """Rung in the event loop after each durable commit, oldest first."""

    def __call__(self, message: QueuedMessage) -> None:
        """`message.body` is set when the engine still has it in memory; due_us are those stored.

        Recipients that were stored on hold are left out.
        """
