"""The exception tree.

::

    PosthouseError                 public: for the peer; detail: for the log; temporary
    ├── ConfigError                one or more mistakes in a configuration file (exit 78)
    ├── SourceFailed               a source of addresses could not be read whole
    ├── PublishRefused             a roster may not be published without the operator
    ├── StorageError               our own fault, always temporary for the peer
    │   ├── StorageFull            no room left: disk, quota, inodes
    │   ├── StorageBroken          a write, fsync or read failed
    │   └── StorageBusy            another process holds the shard
    ├── BodyDamaged                a stored body does not match its checksum or length
    ├── DocumentError              a document of another party that is not well-formed
    ├── RosterRefused              a roster that fails a check; changes nothing
    ├── AddressError               a path or mailbox that RFC 5321 does not allow
    ├── DnsTemporary               DNS gave no answer; says nothing about the domain
    ├── TlsFailed                  a handshake or a record failed
    ├── TellingFailed              an alert could not be told on one of its ways
    ├── NextHopFailure             no session with a next hop could be had, or it ended
    └── PeerFailure                the other side of a pairing did not answer as agreed (HTTPS)

Refusals of mail are values (`posthouse.mail.reply.Reply`), not exceptions.
"""

from __future__ import annotations

from collections.abc import Sequence


class PosthouseError(Exception):
    """A failure with a bland text for the peer and a full one for the log.

    `temporary` is True unless a subclass says otherwise: our own fault is
    always temporary for the peer.
    """

    temporary: bool = True
    public: str = "local error in processing"

    def __init__(self, detail: str, *, public: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        if public is not None:
            self.public = public


class ConfigError(PosthouseError):
    """One or more mistakes in a configuration; `mistakes` has a line for each.

    lists: (domain, path) of recipient files that it names all the same, and can be read.
    """

    temporary = False
    public = "configuration error"

    def __init__(self, mistakes: list[str], *, lists: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes
        self.lists = lists


class SourceFailed(PosthouseError):
    """A source of addresses could not be read whole, or what it gave is in doubt.

    `detail` names the source and, of a file, the line.
    """


class PublishRefused(PosthouseError):
    """A roster was made and held back: the operator must say that this is meant."""

    temporary = False


class StorageError(PosthouseError):
    """The spool could not do what was asked."""

    public = "insufficient system storage"


class StorageFull(StorageError):
    """No room left for another message."""


class StorageBroken(StorageError):
    """A write, a flush or a read failed."""

    public = "local error in processing"


class StorageBusy(StorageError):
    """Another process holds this shard."""

    public = "local error in processing"


class BodyDamaged(PosthouseError):
    """A stored body does not match its recorded length or checksum."""

    temporary = False


class DocumentError(PosthouseError):
    """A document that the protocol does not allow: no I-JSON, a member missing or ill-typed."""

    temporary = False
    public = "malformed document"


class RosterRefused(PosthouseError):
    """A roster, or a delta of one, that fails a check. It changes nothing.

    check: which one, a word for tests and status: "form", "length", "signature",
    "header", "domain", "publisher", "key", "times", "rules", "serial", "order",
    "hash", "postmaster", "delta".
    """

    temporary = False
    public = "roster refused"

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(detail)
        self.check = check


class AddressError(PosthouseError):
    """A path that RFC 5321 §4.1.2 (or RFC 6531 §3.3) does not allow."""

    temporary = False
    public = "bad address syntax"


class DnsTemporary(PosthouseError):
    """The resolver gave no usable answer; nothing is known about the name."""

    public = "name service error"


class TlsFailed(PosthouseError):
    """TLS failed; `alert` holds octets that should still go to the peer."""

    public = "TLS not available due to temporary reason"

    def __init__(self, detail: str, *, alert: bytes = b"") -> None:
        super().__init__(detail)
        self.alert = alert


class TellingFailed(PosthouseError):
    """An alert was not taken in charge by whom it was told to.

    for_good: trying again is of no use (the configuration must change first).
    """

    def __init__(self, detail: str, *, for_good: bool = False) -> None:
        super().__init__(detail)
        self.for_good = for_good


class NextHopFailure(PosthouseError):
    """No session with a next hop, or the session ended early.

    stage: "connect", "greeting", "ehlo", "starttls", "session"; "mail" when a probe was refused.
    reply_code/reply_text: what the peer said, 0/"" when it said nothing.
    """

    def __init__(
        self, detail: str, *, stage: str, reply_code: int = 0, reply_text: str = ""
    ) -> None:
        super().__init__(detail)
        self.stage = stage
        self.reply_code = reply_code
        self.reply_text = reply_text

    @property
    def permanent(self) -> bool:
        """True when the peer itself answered 5xx: it refuses us, not a user."""
        return 500 <= self.reply_code <= 599


class PeerFailure(PosthouseError):
    """The other side of a pairing gave no usable answer over HTTPS (PROTOCOL.md §0).

    stage: "url" (not under the paired base_url: nothing was sent), "dns", "connect", "tls"
    (handshake, certificate or pin), "timeout", "protocol" (no HTTP, cut short, a
    Content-Encoding, a wrong type), "redirect", "too_large", "status" (any other
    answer but 2xx and 304). status: of the answer, 0 when there was none. title,
    problem: from its problem+json, "" without. retry_after_seconds: what it asked
    for, at most 3,600; None when it did not.
    """

    public = "the other side cannot be reached"

    def __init__(
        self,
        detail: str,
        *,
        stage: str,
        status: int = 0,
        title: str = "",
        problem: str = "",
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.stage = stage
        self.status = status
        self.title = title
        self.problem = problem
        self.retry_after_seconds = retry_after_seconds
