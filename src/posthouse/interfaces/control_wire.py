"""What is said over a worker's control socket: one JSON document a line, both ways.

A request gets one line in reply, `BodyRequest` as many as the body takes; a
`Failure` ends either. Unknown members are refused on the way in and ignored on
the way out, so a newer node can serve an older command.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from posthouse.ports_spool import DomainTotals, OperatorAction, QueuedMessage, Selection

# A request line: a selection may name 10,000 queue ids.
MAX_REQUEST_BYTES: Final = 1 << 20
# A reply line: a full page of messages with 100 recipients each.
MAX_REPLY_BYTES: Final = 64 << 20
MAX_PAGE: Final = 500
PIECE_BYTES: Final = 256 * 1024


class ListRequest(msgspec.Struct, frozen=True, tag="list", forbid_unknown_fields=True):
    """Messages that `selection` means, by ascending queue id behind `after`."""

    selection: Selection = Selection()
    after: int | None = None
    limit: int = 100


class BodyRequest(msgspec.Struct, frozen=True, tag="body", forbid_unknown_fields=True):
    """The stored octets of one message."""

    queue_id: int


class ActRequest(msgspec.Struct, frozen=True, tag="act", forbid_unknown_fields=True):
    """Move what `selection` means."""

    selection: Selection
    action: OperatorAction


class RedirectRequest(msgspec.Struct, frozen=True, tag="redirect", forbid_unknown_fields=True):
    """Send what `selection` means to `address`, at a domain this node backs up."""

    selection: Selection
    address: str


class TotalsRequest(msgspec.Struct, frozen=True, tag="totals", forbid_unknown_fields=True):
    """Counts by domain."""


class StatusRequest(msgspec.Struct, frozen=True, tag="status", forbid_unknown_fields=True):
    """How the worker is. brief: without next hops and recipient lists, which cost by domains."""

    brief: bool = False


Request = ListRequest | BodyRequest | ActRequest | RedirectRequest | TotalsRequest | StatusRequest


class Page(msgspec.Struct, frozen=True, tag="page"):
    """more: another page may follow behind the last message."""

    messages: tuple[QueuedMessage, ...]
    more: bool


class Piece(msgspec.Struct, frozen=True, tag="piece"):
    """Part of a body (base64 on the wire). The last one has `last` set."""

    data: bytes
    last: bool


class Moved(msgspec.Struct, frozen=True, tag="moved"):
    """How many recipients were moved. failed: how many could not be, for damage (redirect)."""

    recipients: int
    failed: int = 0


class Totals(msgspec.Struct, frozen=True, tag="totals"):
    """Counts by domain, of all shards of the worker."""

    domains: tuple[DomainTotals, ...]


class NextHopStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One next hop as a worker sees it. state: a word of `domain.nexthop`; in_hand: messages."""

    next_hop: str
    state: str
    since_us: int | None = None
    why: str = ""
    sessions: int = 0
    in_hand: int = 0
    domains: tuple[str, ...] = ()


class AlertStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Something that lasts and a person should see. subject: what it is about, with kind its name.

    subject "" stands for this worker where the kind concerns it alone.
    """

    kind: str
    text: str
    since_us: int | None = None
    subject: str = ""
    what_to_do: str = ""


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True, tag="status"):
    """One worker. recipients: what `RecipientDirectory.describe` says, by domain."""

    pid: int
    shards: tuple[int, ...]
    version: str = ""
    started_us: int = 0
    sessions: int = 0
    counters: dict[str, int] = {}
    next_hops: tuple[NextHopStatus, ...] = ()
    alerts: tuple[AlertStatus, ...] = ()
    intake_problem: str | None = None
    recipients: dict[str, dict[str, Any]] = {}


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """kind: "bad_request", "refused", "gone", "damaged", "storage" or "internal"."""

    kind: str
    text: str


Reply = Page | Piece | Moved | Totals | WorkerStatus | Failure

_encoder = msgspec.json.Encoder()
_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_replies: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


def encode_line(document: Request | Reply) -> bytes:
    """One line with its LF."""
    return _encoder.encode(document) + b"\n"


def decode_request(line: bytes) -> Request:
    """Raises msgspec.DecodeError (ValidationError) for anything else, ValueError for bad UTF-8."""
    return _requests.decode(line)


def decode_reply(line: bytes) -> Reply:
    """Raises msgspec.DecodeError for anything else, ValueError for bad UTF-8."""
    return _replies.decode(line)
