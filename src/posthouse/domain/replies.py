"""What a peer's reply means for one recipient, and for the next hop.

The decision itself is the table (`reply_table`); here a reply is looked up in it.
Texts are found as plain substrings in lower case, in a bounded part of the reply,
so no reply can make the search expensive.

Spec: RFC 2034, RFC 3463 (enhanced codes); RFC 5321 §4.2.
"""

from __future__ import annotations

import re
from typing import Final

from posthouse.domain.reply_table import NO_CODE, ROWS, Meaning, Row

DELIVERED: Final = ROWS[0].meaning
_VAGUE: Final = frozenset({"", "0.0", "7.1", "5.0"})
_ENHANCED: Final = re.compile(r"(?:\d{3}[ -])?([245]\.\d{1,3}\.\d{1,3})(?![\d.])")
_QMAIL: Final = re.compile(r"\(#([245]\.\d{1,3}\.\d{1,3})\)")
_MAX_TEXT: Final = 2000  # octets of a reply that are looked at; RFC 5321 §4.5.3.1.5 has 512


def enhanced_code(text: str) -> str:
    """Find the enhanced status code a reply begins with (RFC 2034); "" when it has none.

    qmail puts it in parentheses, "(#5.1.1)", anywhere in the text.
    """
    match = _ENHANCED.match(text) or _QMAIL.search(text, 0, _MAX_TEXT)
    return match[1] if match else ""


def dsn_code(code: int, text: str) -> str:
    """The enhanced code to log: the peer's own, else the class alone ("4.0.0"), as Postfix does."""
    found = enhanced_code(text)
    return found or f"{code // 100 if code // 100 in (2, 5) else 4}.0.0"


def classify_reply(code: int, text: str, stage: str) -> Meaning:
    """Decide what becomes of a recipient; see `reply_table.ROWS`.

    code: 0..999, 0 when there was none. text: the reply, with or without its
    basic code. stage: "connect", "greeting", "ehlo", "starttls", "session", "mail", "rcpt",
    "data", "dot", "local" when our own client found the message unfit for this peer, or
    "damaged" when our own copy of it is. Total: the last rows take every code.
    """
    if 200 <= code < 300:
        return DELIVERED
    return find_row(code, text, stage).meaning


def find_row(code: int, text: str, stage: str) -> Row:
    """The row that decides; see `classify_reply`."""
    detail = enhanced_code(text)[2:]
    lower = text[:_MAX_TEXT].lower()
    for row in ROWS:
        if (
            (not row.stages or stage in row.stages)
            and _code_matches(row.codes, code)
            and _told(row, detail, lower)
        ):
            return row
    raise AssertionError(f"no row for {code}")  # the last rows leave none out


def _code_matches(codes: tuple[int, ...], code: int) -> bool:
    return not codes or any(
        code == wanted if wanted >= 100 else code // 100 == wanted for wanted in codes
    )


def _told(row: Row, detail: str, lower: str) -> bool:
    if not row.enhanced and not row.texts:
        return True
    for prefix in row.enhanced:
        if prefix == NO_CODE:
            if not detail:
                return True
        elif detail == prefix or (prefix.endswith(".") and detail.startswith(prefix)):
            return True
    if row.beside or detail in _VAGUE:
        return any(text in lower for text in row.texts)
    return False
