"""What a peer's reply means for one recipient.

Nobody is bounced: what is final is *held* with the reply, for a person to see.
Decided by the stage where the reply fell and its code, first match wins:

====  =======================  ========  ==============================================
row   reply                    fate      source
====  =======================  ========  ==============================================
(1)   2xx                      DELIVERED RFC 5321 §4.2.1
(2)   4xx, any stage           DEFERRED  RFC 5321 §4.2.1, §4.5.4.1
(3)   not 2xx, 4xx or 5xx      DEFERRED  RFC 5321 §4.3.2 knows no such answer here; the
                                         peer is confused, which says nothing of the mail
(4)   552 at RCPT, no enhanced DEFERRED  RFC 5321 §4.5.3.1.10: "too many recipients" was
      code or 5.5.3                      552 once, treat as 452
(5)   5xx at MAIL about this   HELD      501, 552, 553, 555: RFC 5321 §4.3.2 (syntax,
      message                            size, sender name, parameters); enhanced 5.1.7,
                                         5.1.8, 5.2.3, 5.3.4, 5.6.x (RFC 3463), 5.7.27
                                         (RFC 7505); with those four codes also 5.1.x, 5.5.x
(6)   5xx at MAIL, else        BLOCKED   the peer refuses *us*; Postfix's verify(8) and
                                         every other MTA take it for the recipient's fault
(7)   5xx later, or our own    HELD      RFC 5321 §4.2.1; RFC 6409 gives no better code
====  =======================  ========  ==============================================

An enhanced code outranks the basic code in row (5): "553 5.7.1" is row (6).
"""

from __future__ import annotations

import enum
import re
from typing import Final


class Fate(enum.Enum):
    """DELIVERED, DEFERRED (by schedule), HELD (with the reply), BLOCKED (next hop refuses us)."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    HELD = "held"
    BLOCKED = "blocked"


_OF_THIS_MESSAGE: Final = frozenset({501, 552, 553, 555})
_OF_THIS_MESSAGE_ENHANCED: Final = frozenset({"5.1.7", "5.1.8", "5.2.3", "5.3.4", "5.7.27"})
_ENHANCED: Final = re.compile(r"(?:\d{3}[ -])?([245]\.\d{1,3}\.\d{1,3})(?![\d.])")


def enhanced_code(text: str) -> str:
    """Find the enhanced status code a reply begins with (RFC 2034); "" when it has none."""
    match = _ENHANCED.match(text)
    return match[1] if match else ""


def dsn_code(code: int, text: str) -> str:
    """The enhanced code to log: the peer's own, else the class alone ("4.0.0"), as Postfix does."""
    found = enhanced_code(text)
    return found or f"{code // 100 if code // 100 in (2, 5) else 4}.0.0"


def classify_reply(code: int, text: str, stage: str) -> Fate:
    """Decide what becomes of a recipient; see the table above.

    code: 0..999, 0 when there was none. text: the reply, with or without its
    basic code. stage: "mail", "rcpt", "data", "dot", "local" when our own client
    found the message unfit for this peer, or "damaged" when our own copy of it is.
    """
    kind = code // 100
    if kind == 2:
        return Fate.DELIVERED
    if kind != 5:
        return Fate.DEFERRED
    if stage == "rcpt" and code == 552 and enhanced_code(text) in ("", "5.5.3"):
        return Fate.DEFERRED
    if stage == "mail" and not _about_this_message(code, enhanced_code(text)):
        return Fate.BLOCKED
    return Fate.HELD


def _about_this_message(code: int, enhanced: str) -> bool:
    if enhanced:
        return (
            enhanced in _OF_THIS_MESSAGE_ENHANCED
            or enhanced.startswith("5.6.")
            or (code in _OF_THIS_MESSAGE and enhanced.startswith(("5.1.", "5.5.")))
        )
    return code in _OF_THIS_MESSAGE
