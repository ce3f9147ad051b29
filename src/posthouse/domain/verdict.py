"""What to answer at RCPT (DESIGN.md "Rules that decide"), in this order:

not our domain → 550 5.7.1; routing smuggled into a local part → 550 5.7.1;
postmaster → accept; then what the recipient directory found:

| finding | fresh | stale |
|---|---|---|
| vouched, catch-all, rule | 250 | 250 |
| trap | 250 (it does not show; the verdict says so inside) | 250 |
| defer | 451 4.2.1 | 451 4.2.1 |
| absent | 550 5.1.1 | the stricter of the list's `when_stale` and the domain's `when_unknown` |
| unknown | the domain's `when_unknown` | |

"defer" is 451 4.4.3 and stricter than "hold", which is 250 and the message kept
back until somebody vouches. Where nobody looked, because look-ups are slow and
too many were asked for, it is 451 whatever the address: never 250, never 550.

DNS takes no part: only a configured domain grants (Postfix is giving up
permit_mx_backup for good reason).
"""

from __future__ import annotations

import enum
from typing import Protocol

import msgspec

from posthouse.domain.finding import Answer, Finding
from posthouse.mail.address import Mailbox
from posthouse.mail.reply import Reply
from posthouse.mail.roster import RosterLimits


class WhenUnknown(enum.Enum):
    """A domain's answer where nothing is known of the recipient."""

    DEFER = "defer"
    HOLD = "hold"


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The answer to one RCPT; domain: whose queue it goes to ("" when refused).

    canonical: what the recipient is called by who vouched for it, "" when nobody did by name;
    opaque here, it is handed to those who are told of accepted messages. serial: of the
    roster that vouched, 0 for none. hold: to be kept back, nobody has vouched; trap: a honeypot.
    max_bytes: of a message, as the primary takes it; 0: not known.
    """

    reply: Reply
    domain: str = ""
    canonical: str = ""
    serial: int = 0
    hold: bool = False
    trap: bool = False
    max_bytes: int = 0


UNVOUCHED = "nobody vouches for this recipient yet"
"""Why a message is kept back (`Verdict.hold`); who vouches later finds it by this text."""

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


def over_quota(spelled: str) -> Reply:
    """The domain has all that it may have here (RFC 3463 X.3.1; RFC 5321 §4.2.2: 452)."""
    return Reply(
        452, "4.3.1", f"<{spelled}>: Recipient address rejected: domain is over its quota here"
    )


def not_verified(spelled: str) -> Reply:
    """Nothing is known now; the client is to come back (RFC 3463: X.4.3)."""
    return Reply(
        451, "4.4.3", f"<{spelled}>: Recipient address cannot be verified now, try again later"
    )


def come_later(spelled: str) -> Reply:
    """A rule of the primary's says so (RFC 3463: X.2.1, mailbox not accepting messages)."""
    return Reply(451, "4.2.1", f"<{spelled}>: Recipient address is not accepting mail now")


def too_many_guesses(spelled: str) -> Reply:
    """The client's network has asked for too many unknown addresses; says nothing of this one."""
    return Reply(451, "4.7.1", f"<{spelled}>: Too many unknown recipients, try again later")


def not_agreed(spelled: str) -> Reply:
    """No roster, no live answer: the agreement about the address is being negotiated."""
    return Reply(451, "4.7.1", f"<{spelled}>: Recipient address is being verified, try again later")


def blocked(spelled: str, *, disclose: bool) -> Reply:
    """The owner of the address wants no mail by this backup (RFC 5321 §3.4).

    551 tells that the address exists; where that is not to be told (disclose False), 550
    does not say why.
    """
    if disclose:
        return Reply(551, "5.7.1", f"<{spelled}>: User not local; try the primary server")
    return Reply(550, "5.7.1", f"<{spelled}>: Recipient address rejected: Access denied")


GUESSER_SENT_AWAY = Reply(421, "4.7.0", "Error: too many unknown recipients, try again later")
"""The same, for a client that goes on asking."""


def decide_recipient(
    answer: Answer, spelled: str, domain: str, when_unknown: WhenUnknown
) -> Verdict:
    """Turn what is known of a recipient into the reply (see the module's table)."""
    finding = answer.finding
    if finding is Finding.VOUCHED:
        return Verdict(RECIPIENT_OK, domain, answer.canonical, answer.serial)
    if finding is Finding.ABSENT and not answer.stale:
        return Verdict(user_unknown(spelled))
    if finding is Finding.CATCH_ALL or finding is Finding.RULE:
        return Verdict(RECIPIENT_OK, domain)
    if finding is Finding.TRAP:
        return Verdict(RECIPIENT_OK, domain, trap=True)
    if finding is Finding.DEFER:
        return Verdict(come_later(spelled))
    if answer.withheld == "guessed":
        return Verdict(too_many_guesses(spelled))
    may_hold = when_unknown is WhenUnknown.HOLD and not answer.withheld
    if may_hold and (finding is Finding.UNKNOWN or answer.when_stale == "hold"):
        return Verdict(RECIPIENT_OK, domain, hold=True)
    return Verdict(not_verified(spelled))


class Wish(Protocol):
    """What MAIL asked for (see ports_session.MailWish)."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def body(self) -> str: ...
    @property
    def smtputf8(self) -> bool: ...


TOO_LARGE = Reply(552, "5.3.4", "Message too big for the server of its recipients")
"""More than the primary takes: known from SIZE or found when it is here (RFC 1870 §6.1)."""


def limit_recipient(verdict: Verdict, limits: RosterLimits, wish: Wish | None) -> Verdict:
    """Hold a positive verdict against what the primary takes, so that the sender hears it now.

    The message would be refused there, and be kept here with nobody to tell.
    Spec: RFC 1870 §6.1, RFC 6531 §3.6, RFC 6152 §3, RFC 3463 X.6.3, X.6.7.
    """
    if wish is not None:
        if wish.size_bytes > limits.max_message_bytes:
            return Verdict(TOO_LARGE)
        if wish.smtputf8 and not limits.smtputf8:
            return Verdict(Reply(550, "5.6.7", "The recipient's server does not take SMTPUTF8"))
        if wish.body == "8BITMIME" and not limits.eight_bit_mime:
            return Verdict(Reply(550, "5.6.3", "The recipient's server does not take 8BITMIME"))
    return msgspec.structs.replace(verdict, max_bytes=limits.max_message_bytes)


NOT_JUDGED = Reply(451, "4.3.0", "Recipient cannot be checked now, try again later")
"""Our own fault: the check failed or took too long (RFC 3463: X.3.0)."""


def is_postmaster(mailbox: Mailbox) -> bool:
    """RFC 5321 §4.5.1: reserved, case-insensitive, with or without a domain."""
    return mailbox.local.lower() == "postmaster"


def carries_route(mailbox: Mailbox) -> bool:
    """True when a next hop might read the local part as an address of its own: %, !, quoted @."""
    local = mailbox.local
    return "%" in local or "!" in local or "@" in local
