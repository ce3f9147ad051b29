"""What to answer at RCPT (DESIGN.md "Rules that decide"), in this order:

not our domain → 550 5.7.1; routing smuggled into a local part → 550 5.7.1;
postmaster → accept; the recipient directory: vouched or catch-all → accept,
proven absent → 550 5.1.1; nothing known → the domain's `when_unknown`.

DNS takes no part: only a configured domain grants (Postfix is giving up
permit_mx_backup for good reason).
"""

from __future__ import annotations

import enum

import msgspec

from posthouse.mail.address import Mailbox
from posthouse.mail.reply import Reply


class WhenUnknown(enum.Enum):
    """A domain's answer where nothing is known of the recipient."""

    DEFER = "defer"


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The answer to one RCPT; domain: whose queue it goes to ("" when refused).

    canonical: what the recipient is called by who vouched for it, "" when nobody did by name;
    opaque here, it is handed to those who are told of accepted messages.
    """

    reply: Reply
    domain: str = ""
    canonical: str = ""


RECIPIENT_OK = Reply(250, "2.1.5", "Ok")


def relay_denied(spelled: str) -> Reply:
    """Not a domain we back up (RFC 5321 §3.6.2 asks for 550; text as Postfix has it)."""
    return Reply(550, "5.7.1", f"<{spelled}>: Relay access denied")


def user_unknown(spelled: str) -> Reply:
    """Proven not to exist; the text is what fail2ban's postfix filter reads."""
    return Reply(
        550,
        "5.1.1",
        f"<{spelled}>: Recipient address rejected: User unknown in relay recipient table",
    )


def not_verified(spelled: str) -> Reply:
    """Nothing is known now; the client is to come back (RFC 3463: X.4.3)."""
    return Reply(
        451, "4.4.3", f"<{spelled}>: Recipient address cannot be verified now, try again later"
    )


NOT_JUDGED = Reply(451, "4.3.0", "Recipient cannot be checked now, try again later")
"""Our own fault: the check failed or took too long (RFC 3463: X.3.0)."""


def is_postmaster(mailbox: Mailbox) -> bool:
    """RFC 5321 §4.5.1: reserved, case-insensitive, with or without a domain."""
    return mailbox.local.lower() == "postmaster"


def carries_route(mailbox: Mailbox) -> bool:
    """True when a next hop might read the local part as an address of its own: %, !, quoted @."""
    local = mailbox.local
    return "%" in local or "!" in local or "@" in local
