"""What services need of the world, each with its promise.

Every engine *and every fake* passes the contract suite of its port
(`tests/contract`). Instants are integer microseconds since 1970, UTC
(`*_us`): they are sort keys, SQL values and halves of queue ids; `datetime`
lives at the edges only.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from posthouse.domain.finding import Answer as Answer
from posthouse.domain.finding import Finding as Finding
from posthouse.mail.credentials import Credentials
from posthouse.mail.envelope import Client, Envelope

# --------------------------------------------------------------------------- spool: values


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


# --------------------------------------------------------------------------- spool: the port


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


# --------------------------------------------------------------------------- recipients


class RecipientDirectory(Protocol):
    """Who exists in one backed-up domain. Look-ups take microseconds and never block."""

    def find(self, local_part: str, network: str = "") -> Answer | Awaitable[Answer]:
        """Look up the *content* of a local part (unquoted). Total: never raises.

        At once; awaitable only where a digest is slow, and then bounded in number. network: of
        the client, whose wrong guesses at slow digests are counted; "" counts none.
        """

    def describe(self) -> Mapping[str, str | int | bool]:
        """For `status`: source, entries, loaded_at, problem."""


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """Tells one state of a file from another. Instants are nanoseconds since 1970."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class RecipientListFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one published list.

    entries: distinct recipients; skipped: lines for other domains; source, source_version:
    the text file and its state as it was read.
    """

    domain: str
    entries: int
    skipped: int
    catch_all: bool
    source: str
    source_version: Fingerprint
    built_us: int


class RecipientLists(Protocol):
    """The lists of all domains: `publish` is for one process, the rest for any.

    Versions are None for what does not exist; they cost one stat each.
    """

    def open(self, domain: str) -> RecipientDirectory | None:
        """The list in force; None when there is none or it is damaged. Does not block for long."""

    def get_version(self, domain: str) -> Fingerprint | None:
        """Changes with every `publish` of the domain."""

    def get_directory_version(self) -> Fingerprint | None:
        """Changes with every `publish`, unless two fall into one tick of the file clock."""

    def get_source_version(self, source: str) -> Fingerprint | None:
        """Changes with the text file."""

    def ends_with_line(self, source: str) -> bool:
        """Tell whether the text file ends with LF; True for what is empty or cannot be read."""

    def verified_facts(self, domain: str) -> RecipientListFacts | None:
        """Facts of the list in force, checked to the last octet. Blocks: call it in a thread."""

    def publish(
        self, domain: str, source: str, *, now_us: int, refuse_empty: bool
    ) -> RecipientListFacts | None:
        """Read a text file and put its list in force, whole. Blocks: call it in a thread.

        Returns None when the file was written to meanwhile: ask again later.
        refuse_empty: a file of 0 octets is a mistake.
        Raises ConfigError with all mistakes of the file, StorageError. Unless it
        returns facts, what was in force stays in force.
        """

    def keep_only(self, domains: Collection[str]) -> None:
        """Take every other domain's list out of force. Raises StorageError."""

    def set_problem(self, domain: str, problem: str) -> None:
        """Leave word of what is wrong with the domain's text file; "" = nothing. Never raises."""

    def get_problem(self, domain: str) -> str:
        """What `set_problem` said last, "" when nothing is wrong. Never raises."""


# --------------------------------------------------------------------------- DNS


class MxRecord(msgspec.Struct, frozen=True):
    """One MX record. preference: 0..65535.

    exchange: A-labels, lower case, no trailing dot; "" is the null MX (RFC 7505).
    """

    preference: int
    exchange: str


class Resolver(Protocol):
    """DNS questions. Temporary trouble is always DnsTemporary, never an empty answer."""

    async def find_mx(self, domain: str) -> Sequence[MxRecord] | None:
        """MX set as published, unsorted; () when the name exists without MX; None: NXDOMAIN."""

    async def find_addresses(self, host: str) -> Sequence[str]:
        """A and AAAA of a host, text form; () when it has none or does not exist.

        One family failing temporarily while the other answers is no failure.
        """

    async def find_name(self, address: str) -> str | None:
        """Forward-confirmed reverse name (RFC 8601 §2.7.3 iprev), or None. Never raises."""


# --------------------------------------------------------------------------- next hops


class Target(msgspec.Struct, frozen=True):
    """One place to connect to.

    host: name for logs, EHLO checks and TLS; address: IP text; port 1..65535.
    """

    host: str
    address: str
    port: int = 25


class Transaction(msgspec.Struct, kw_only=True):
    """One message for one next hop. `body` is None when it must be read with `open_body`.

    credentials: the agreement it goes under; used where the next hop lets us, under TLS.
    """

    message: QueuedMessage
    body: bytes | None
    credentials: Credentials | None = None


class RecipientResult(msgspec.Struct, frozen=True, gc=False):
    """The peer's answer for one recipient.

    stage: where it fell: "mail", "rcpt", "data", "dot", or "local" (never offered: the
    next hop lacks SMTPUTF8 or takes no message that large), or "damaged" (our stored copy
    is). code 250 = delivered; text: one line, enhanced code included, as the peer said it.
    """

    seq: int
    code: int
    text: str
    stage: str


class SessionEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a session ended. `failure` None: in good order.

    stage: as in NextHopFailure, "mail" or "auth" (while SMTP AUTH had no answer).
    """

    failure: str | None = None
    stage: str = ""
    reply_code: int = 0
    reply_text: str = ""


class WorkSource(Protocol):
    """Where an open session gets work and tells results. Called in the event loop; never blocks.

    The session calls `next_transaction` when it can take one (possibly while
    the final reply of the one before is awaited: pipelining), and gives each
    transaction exactly one `finished` or `returned`.
    """

    def next_transaction(self) -> Transaction | None: ...

    def finished(self, transaction: Transaction, results: Sequence[RecipientResult]) -> None:
        """Every recipient got a reply (positive or not)."""

    def returned(self, transaction: Transaction, *, why: str, after_dot: bool) -> None:
        """No outcome: session lost, or refused at MAIL for no fault of the message.

        after_dot: the whole message had been sent; sending it again may duplicate it.
        """

    def auth_answered(self, credentials: Credentials, *, code: int, text: str) -> None:
        """The next hop's last word to SMTP AUTH (235: accepted). Mail goes on either way."""


class Session(Protocol):
    """An open, greeted session with a next hop."""

    target: Target

    def poke(self) -> None:
        """Work may have come: ask the source again if idle. Harmless at any time."""

    def quit(self) -> None:
        """End in good order once what is under way has its answers."""

    def idle_since(self) -> float | None:
        """Loop time since when nothing is under way, else None."""

    async def wait_end(self) -> SessionEnd:
        """Wait until the connection is gone."""


class Connector(Protocol):
    """Opens sessions."""

    async def connect(self, target: Target, source: WorkSource) -> Session:
        """Connect, greet, EHLO/HELO, STARTTLS as configured. Raises NextHopFailure.

        The session starts asking `source` for work by itself.
        """

    async def probe(
        self, target: Target, recipients: Sequence[str] = ()
    ) -> Sequence[tuple[int, str]]:
        """Connect, greet, EHLO, STARTTLS as configured, MAIL FROM:<>, RCPT, RSET, QUIT.

        Returns code and text of the reply to each RCPT (those with non-ASCII are not asked).
        Raises NextHopFailure where the peer does not take mail from us.
        """


# --------------------------------------------------------------------------- TLS


class TlsChannel(Protocol):
    """One TLS connection as a sans-IO filter (ssl.MemoryBIO inside): the owner moves the octets.

    Chosen over loop.start_tls, which keeps 256 KiB a connection in Python 3.11
    and loses octets that were read before the handshake.
    """

    established: bool

    def start(self) -> bytes:
        """Begin the handshake; returns octets for the peer (b"" on the server side)."""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take octets from the peer; returns (plain text, octets for the peer).

        b"" for both while the handshake is under way and nothing is due.
        Raises TlsFailed when the handshake or a record fails; its `alert` holds
        octets that should still be sent. After the peer's close_notify: `eof` is True.
        """

    def wrap(self, plain: bytes) -> bytes:
        """Encrypt; only once `established`."""

    def close(self) -> bytes:
        """Our close_notify, b"" if none can be made. Never raises."""

    eof: bool

    def describe(self) -> str:
        """E.g. "TLSv1.3 TLS_AES_256_GCM_SHA384"; "" before the handshake is done."""


class TlsServer(Protocol):
    """Makes channels from the certificate in force; reload happens inside (SIGHUP)."""

    def open_channel(self) -> TlsChannel:
        """A server-side channel, handshake not begun."""
