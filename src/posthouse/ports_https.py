"""What a primary and its backup say to each other over HTTPS, as services see it.

Going out: a `Peer` is the other side of one pairing. Coming in: the door knows
who asks (bearer token → `Party`) and hands a `PeerRequest` to a handler, which
answers with a `PeerAnswer` or a `ProblemAnswer`; refusals are values.
Rules for both: PROTOCOL.md §0.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping
from typing import Protocol

import msgspec

# PROTOCOL.md §0: a request body over 1 MiB is a 413; answers of that kind are held to it too.
MAX_JSON_BYTES = 1024 * 1024
# PROTOCOL.md §0: Retry-After is honoured up to an hour.
MAX_RETRY_AFTER_SECONDS = 3600

# --------------------------------------------------------------------------- going out


class PeerResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A good answer: 2xx, or 304. headers: names in lower case. body: b"" after `download`.

    size_bytes: of the body, downloaded ones included.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    size_bytes: int = 0

    @property
    def media_type(self) -> str:
        """Of Content-Type, lower case, without parameters; "" when none was given."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def etag(self) -> str:
        """As given, quotes included; "" when none was given."""
        return self.headers.get("etag", "")


class Sink(Protocol):
    """Where a download goes: a file opened for writing will do. May block for a disk write."""

    def write(self, data: bytes, /) -> object: ...


class Peer(Protocol):
    """The other side of one pairing, at its base_url.

    Every URL is checked to lie under base_url before anything is sent; redirects
    are never followed; the token goes only to the verified (or pinned) server.
    Anything but 2xx and 304 raises PeerFailure: 404, 409 … with stage "status".
    """

    party: str
    base_url: str

    async def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> PeerResponse:
        """GET a small document. path: relative to base_url, or a whole URL under it.

        Raises PeerFailure; "too_large" past MAX_JSON_BYTES.
        """

    async def post(self, path: str, document: bytes) -> PeerResponse:
        """POST one JSON document. path: relative to base_url, or a whole URL under it.

        Never repeated by itself. Raises PeerFailure; "too_large" also when `document`
        has more than MAX_JSON_BYTES (nothing is sent then).
        """

    async def download(
        self,
        path: str,
        sink: Sink,
        *,
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
    ) -> PeerResponse:
        """GET a large body into `sink`, at most max_bytes. Raises PeerFailure.

        `sink` has been written to in part when it fails on the way; not at all for 304.
        """

    async def close(self) -> None:
        """Give back connections."""


# --------------------------------------------------------------------------- coming in


class Party(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. name: the forwarder-ID of a backup, or a primary's party.

    domains: those listed in its pairing (A-labels): it may ask for no others.
    roster_key_ids: of the roster keys it holds: the one handed out with the token it
    showed, then former ones; () for a primary.
    """

    name: str
    domains: frozenset[str]
    roster_key_ids: tuple[str, ...] = ()


class Parties(Protocol):
    """Everybody who may knock. Holds only hashes of their tokens."""

    def find(self, token: str) -> Party | None:
        """Whose token it is, or None. Takes the same time for every wrong token."""


class PeerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One authenticated request. body: of a POST, at most MAX_JSON_BYTES, declared as JSON.

    path_params: of the route, e.g. {"domain": "example.com"}; query: the first value of
    each name; headers: names in lower case.
    """

    party: Party
    path_params: Mapping[str, str] = {}
    query: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    body: bytes = b""


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """A body that is not held in memory. `pieces` is read in a thread and may block.

    It has exactly size_bytes octets in all; its `close`, if it has one, is called at the end.
    """

    size_bytes: int
    pieces: Iterator[bytes]


class PeerAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer. document None: no body (204, 304). headers: besides the usual ones."""

    status: int = 200
    document: bytes | Flow | None = None
    media_type: str = "application/json"
    headers: Mapping[str, str] = {}


class ProblemAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal, sent as application/problem+json (RFC 9457). status: 400..599.

    title: the same for every case of its kind; detail: this case, in a sentence.
    retry_after_seconds: for 429 and 503.
    """

    status: int
    title: str
    detail: str = ""
    retry_after_seconds: int | None = None


class PeerHandler(Protocol):
    """What answers one route, for parties the door has authenticated."""

    def __call__(self, request: PeerRequest, /) -> Awaitable[PeerAnswer | ProblemAnswer]:
        """Answer. An exception becomes a 503 and a line in the log."""
