"""What the client automaton tells its driver, and what it may be waiting for."""

from __future__ import annotations

import enum

import msgspec

from posthouse.mail.credentials import Credentials
from posthouse.proto.client_extensions import Extensions
from posthouse.proto.client_transaction import RecipientAnswer
from posthouse.proto.replies_in import PeerReply


class Awaited(enum.Enum):
    """The reply that is due next. The driver chooses its time-out by it (RFC 5321 §4.5.3.2)."""

    GREETING = "greeting"
    EHLO = "EHLO"
    HELO = "HELO"
    STARTTLS = "STARTTLS"
    HANDSHAKE = "TLS handshake"
    AUTH = "AUTH"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    DOT = "end of data"
    NO_MAIL_DOT = "end of no message"
    RESET = "RSET"
    PROBE = "MAIL or RCPT of a probe"
    QUIT = "QUIT"


class Greeted(msgspec.Struct, frozen=True):
    """The session takes mail now. tls_refused: the peer's reply to STARTTLS when it was none."""

    extensions: Extensions
    tls_refused: str = ""


class TlsWanted(msgspec.Struct, frozen=True):
    """Shake hands now, then call `tls_established`. Octets from here on are TLS."""


class AuthAnswered(msgspec.Struct, frozen=True):
    """The server's last word to our AUTH; not accepted: the session goes on without."""

    credentials: Credentials
    accepted: bool
    reply: PeerReply


class ContentWanted(msgspec.Struct, frozen=True):
    """Give the content of this transaction with `content` and `end_content`."""

    token: object


class Settled(msgspec.Struct, frozen=True):
    """Every recipient of the transaction has its answer, in their order."""

    token: object
    answers: list[RecipientAnswer]


class Returned(msgspec.Struct, frozen=True):
    """The session ended without an outcome; after_dot: the whole message had been sent."""

    token: object
    why: str
    after_dot: bool


class Probed(msgspec.Struct, frozen=True):
    """The peer's reply to MAIL FROM:<>, and those to RCPT when that was taken."""

    reply: PeerReply
    rcpts: tuple[PeerReply, ...] = ()


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """The last event of a session: close the connection, after what is left to write if `flush`.

    failure: None when it ended in good order. stage: "greeting", "ehlo",
    "starttls", "auth", "session" or "mail". reply_code, reply_text: what the peer said, if it did.
    """

    failure: str | None = None
    stage: str = ""
    reply_code: int = 0
    reply_text: str = ""
    flush: bool = False


Event = Greeted | TlsWanted | AuthAnswered | ContentWanted | Settled | Returned | Probed | Ended
