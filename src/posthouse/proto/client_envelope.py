"""Write MAIL and RCPT for a next hop, or say why it cannot have the message.

Parameters go only where the next hop offered them. BODY=8BITMIME needs both
the declaration and the offer; without the offer the message goes unchanged and
undeclared (it is never converted: that would break DKIM; Postfix does the same
with disable_mime_output_conversion). DSN parameters end where DSN ends.
Spec: RFC 5321 §4.1.1, RFC 1870, RFC 6152, RFC 6531, RFC 3461,
RFC 4954 §5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from posthouse.proto.client_extensions import Extensions


class Addressee(Protocol):
    """One recipient as the commands need it (ports_spool.QueuedRecipient is one)."""

    @property
    def address(self) -> str: ...
    @property
    def notify(self) -> str: ...
    @property
    def orcpt(self) -> str: ...


class Deliverable(Protocol):
    """One message's envelope (ports_spool.QueuedMessage is one). size_bytes: octets, for SIZE=."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def envelope_sender(self) -> str: ...
    @property
    def body_type(self) -> str: ...
    @property
    def smtputf8(self) -> bool: ...
    @property
    def ret(self) -> str: ...
    @property
    def envid(self) -> str: ...
    @property
    def recipients(self) -> Sequence[Addressee]: ...


class LocalRefusal(msgspec.Struct, frozen=True):
    """Why a message cannot go to this next hop at all; nothing of it was sent."""

    code: int
    text: str


class EnvelopeCommands(msgspec.Struct, frozen=True):
    """MAIL and one RCPT for each recipient, each with its CRLF."""

    mail: bytes
    rcpts: list[bytes]


_NO_SMTPUTF8 = LocalRefusal(550, "5.6.7 next hop does not offer SMTPUTF8")
_TOO_LARGE = LocalRefusal(552, "5.3.4 message is larger than the next hop takes")
_BAD_PATH = LocalRefusal(553, "5.1.3 the envelope holds a character no command can carry")


def format_envelope(
    mail: Deliverable, offered: Extensions, head: bytes, auth: str = ""
) -> EnvelopeCommands | LocalRefusal:
    """Write the commands of one transaction.

    head: the message from its first octet; enough to hold its header section.
    auth: the value of AUTH= (RFC 4954 §5), "" for none.
    """
    limit = offered.size_limit
    if limit and mail.size_bytes > limit:
        return _TOO_LARGE
    if mail.smtputf8 and not offered.smtputf8 and _needs_smtputf8(mail, head):
        return _NO_SMTPUTF8
    line = f"MAIL FROM:<{mail.envelope_sender}>"
    if limit is not None:
        line += f" SIZE={mail.size_bytes}"
    if mail.body_type == "8BITMIME" and offered.eightbitmime:
        line += " BODY=8BITMIME"
    if mail.smtputf8 and offered.smtputf8:
        line += " SMTPUTF8"
    if offered.dsn:
        if mail.ret:
            line += f" RET={mail.ret}"
        if mail.envid:
            line += f" ENVID={mail.envid}"
    if auth:
        line += f" AUTH={auth}"
    lines = [line]
    for recipient in mail.recipients:
        line = f"RCPT TO:<{recipient.address}>"
        if offered.dsn:
            if recipient.notify:
                line += f" NOTIFY={recipient.notify}"
            if recipient.orcpt:
                line += f" ORCPT={recipient.orcpt}"
        lines.append(line)
    # The door lets none in; this is the last place that could stop a command from being two.
    for line in lines:
        if not line.isprintable() and _has_control(line):
            return _BAD_PATH
    first, *rest = [f"{line}\r\n".encode() for line in lines]
    return EnvelopeCommands(first, rest)


def _needs_smtputf8(mail: Deliverable, head: bytes) -> bool:
    """True when an address or the header section is not ASCII (RFC 6531 §3.1).

    Senders that always ask for SMTPUTF8 exist; an all-ASCII message of theirs
    goes to any server (Postfix decides alike).
    """
    if not mail.envelope_sender.isascii():
        return True
    if any(not r.address.isascii() for r in mail.recipients):
        return True
    end = head.find(b"\r\n\r\n")
    return not (head if end < 0 else head[:end]).isascii()


def _has_control(line: str) -> bool:
    return any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in line)
