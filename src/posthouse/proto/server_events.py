"""What a server session tells its owner, and the limits it holds a client to."""

from __future__ import annotations

import msgspec

from posthouse.mail.address import Mailbox
from posthouse.mail.reply import Reply
from posthouse.proto.server_params import MailParams, RcptParams


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one session may ask of us. Sizes in octets, the rest counts.

    max_line: of a command with its CR LF (RFC 5321 §4.5.3.1.4);
    max_errors: negative replies before 421; max_idle_commands: NOOP, RSET, VRFY …
    without a message in between; bare_newlines: "refuse" or "normalize".
    """

    hostname: str
    max_message_bytes: int = 50 * 1024 * 1024
    max_recipients: int = 100
    max_line: int = 2048
    max_errors: int = 10
    max_idle_commands: int = 100
    bare_newlines: str = "refuse"
    offer_starttls: bool = False
    offer_etrn: bool = False


class Mail(msgspec.Struct, frozen=True):
    """MAIL FROM, well formed. sender None: the null reverse-path. Wants `answer`."""

    sender: Mailbox | None
    params: MailParams


class Rcpt(msgspec.Struct, frozen=True):
    """RCPT TO, well formed, within the limit. Wants `answer`."""

    recipient: Mailbox
    params: RcptParams


class DataRequest(msgspec.Struct, frozen=True):
    """DATA, or the first BDAT: may the message come? Wants `open_data` or `answer` (a refusal)."""

    chunked: bool


class Content(msgspec.Struct, frozen=True):
    """The next octets of the message, unstuffed, line ends checked. Wants nothing."""

    data: bytes


class ContentEnd(msgspec.Struct, frozen=True):
    """The message is complete. defect: the refusal it must get, or None. Wants `answer`."""

    defect: Reply | None


class Abort(msgspec.Struct, frozen=True):
    """The transaction is over without a message (RSET, EHLO, broken BDAT). Wants nothing."""


class Etrn(msgspec.Struct, frozen=True):
    """ETRN (RFC 1985), outside a transaction. node: its argument as given. Wants `answer`."""

    node: str


class StartTls(msgspec.Struct, frozen=True):
    """STARTTLS; 220 is in the output. Send it, do the handshake, call `tls_started`."""


class Closing(msgspec.Struct, frozen=True):
    """The last reply is in the output; send it and close. why: "quit" or what limit was met."""

    why: str


class Pause(msgspec.Struct, frozen=True):
    """Many commands were answered without an event: let others have a turn. Wants nothing."""


Event = Mail | Rcpt | DataRequest | Content | ContentEnd | Abort | Etrn | StartTls | Closing | Pause
