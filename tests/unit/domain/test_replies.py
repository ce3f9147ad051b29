"""The table of replies, row by row, with what real servers say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.domain.replies import classify_reply, dsn_code, enhanced_code, find_row
from posthouse.domain.replies_text import format_replies
from posthouse.domain.reply_table import ROWS, Effect, Fate

D, F, H, B = Fate.DELIVERED, Fate.DEFERRED, Fate.HELD, Fate.BLOCKED
NONE, SLOWER, TROUBLE, UNCLEAR = Effect.NONE, Effect.SLOWER, Effect.TROUBLE, Effect.UNCLEAR

CASES = [
    ("dot", "250 2.0.0 Ok: queued", D, "", NONE),
    ("rcpt", "251 User not local; will forward", D, "", NONE),
    # temporary
    ("rcpt", "452 4.5.3 Error: too many recipients", F, "too-many", NONE),
    ("rcpt", "552 too many recipients", F, "too-many", NONE),
    ("rcpt", "552 5.5.3 too many recipients", F, "too-many", NONE),
    (
        "rcpt",
        "450 4.2.0 <u@example.com>: Recipient address rejected: Greylisted, see http://postgrey.example/",
        F,
        "greylisted",
        NONE,
    ),
    ("rcpt", "451 Greylisted, please try again in 180 seconds", F, "greylisted", NONE),
    ("dot", "451 4.7.1 Greylisting in action, please come back in 00:05:00", F, "greylisted", NONE),
    ("dot", "451 4.7.1 Try again later", F, "greylisted", NONE),
    (
        "rcpt",
        "450 4.7.1 <u@example.com>: Recipient address rejected: Policy",
        F,
        "greylisted",
        NONE,
    ),
    ("mail", "450 4.7.1 Error: too much mail from 192.0.2.1", F, "rate-limited", SLOWER),
    ("rcpt", "450 4.7.1 Error: too many recipients from 192.0.2.1", F, "rate-limited", SLOWER),
    ("dot", "502 5.5.1 Error: command not implemented", F, "not-understood", SLOWER),
    ("data", "500 5.5.2 unrecognized command", F, "not-understood", SLOWER),
    (
        "mail",
        "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to user complaints",
        F,
        "rate-limited",
        SLOWER,
    ),
    (
        "dot",
        "421-4.7.28 Gmail has detected an unusual rate of unsolicited mail",
        F,
        "rate-limited",
        SLOWER,
    ),
    ("mail", "451 4.7.500 Server busy. Please try again later", F, "rate-limited", SLOWER),
    ("rcpt", "421 4.3.2 shutting down", F, "rate-limited", SLOWER),
    ("rcpt", "450 4.3.2 Service currently unavailable", F, "rate-limited", SLOWER),
    (
        "rcpt",
        "452-4.2.2 The email account that you tried to reach is over quota",
        F,
        "over-quota",
        NONE,
    ),
    (
        "dot",
        "452 4.2.2 <u@example.com> Quota exceeded (mailbox for user is full)",
        F,
        "over-quota",
        NONE,
    ),
    (
        "mail",
        "450 4.1.8 <a@b.example>: Sender address rejected: Domain not found",
        F,
        "sender",
        NONE,
    ),
    ("mail", "450 4.7.1 <a@b.example>: Sender address rejected", F, "refused-for-now", UNCLEAR),
    ("mail", "451 try again", F, "refused-for-now", UNCLEAR),
    ("mail", "452 4.3.1 Insufficient system storage", F, "system", TROUBLE),
    ("rcpt", "451 4.3.0 <u@example.com>: Temporary lookup failure", F, "system", TROUBLE),
    ("rcpt", "451 Temporary local problem - please try later", F, "system", TROUBLE),
    ("dot", "451 error in processing", F, "system", TROUBLE),
    ("dot", "452 4.3.1 queue full", F, "system", TROUBLE),
    ("rcpt", "450 4.2.1 mailbox busy", F, "temporary", NONE),
    ("dot", "", F, "confused", NONE),
    ("dot", "354 go on", F, "confused", NONE),
    ("rcpt", "999 what", F, "confused", NONE),
    ("rcpt", "005 what", F, "confused", NONE),
    # before the session stands
    ("greeting", "554 5.7.1 no SMTP service here", B, "blocked", UNCLEAR),
    ("ehlo", "550 access denied", B, "blocked", UNCLEAR),
    ("connect", "", F, "confused", NONE),
    # MAIL
    ("mail", "553 5.1.8 domain of sender does not exist", H, "sender", NONE),
    ("mail", "550 5.7.27 sender has null MX", H, "sender", NONE),
    ("mail", "501 5.1.7 bad sender address syntax", H, "sender", NONE),
    ("mail", "501 syntax error", H, "sender", NONE),
    ("mail", "553 sorry, your envelope sender domain must exist", H, "sender", NONE),
    ("mail", "552 5.3.4 message too big", H, "too-large", NONE),
    ("mail", "552 5.2.3 message size exceeds limit", H, "too-large", NONE),
    ("mail", "552 message size exceeds limit", H, "too-large", NONE),
    ("mail", "555 5.5.4 unsupported option", H, "syntax", NONE),
    ("mail", "550-5.6.7 SMTPUTF8 needed", H, "content", NONE),
    ("mail", "550 5.7.1 your host is blacklisted", B, "blocked", UNCLEAR),
    ("mail", "553 5.7.1 blocked", B, "blocked", UNCLEAR),
    ("mail", "554 no service", B, "blocked", UNCLEAR),
    ("mail", "530 5.7.0 must issue STARTTLS first", B, "blocked", UNCLEAR),
    # recipients
    (
        "rcpt",
        "550 5.1.1 <u@example.com>: Recipient address rejected: User unknown in relay recipient table",
        H,
        "unknown",
        NONE,
    ),
    ("rcpt", "550 Unrouteable address", H, "unknown", NONE),
    ("rcpt", "550 sorry, no mailbox here by that name (#5.1.1)", H, "unknown", NONE),
    ("rcpt", "550 5.4.1 Recipient address rejected: Access denied", H, "unknown", NONE),
    ("rcpt", "550 5.1.10 RESOLVER.ADR.RecipientNotFound; not found", H, "unknown", NONE),
    ("rcpt", "550 5.0.0 <u@example.com>... User unknown", H, "unknown", NONE),
    ("rcpt", "550 Requested action not taken: mailbox unavailable", H, "unknown", NONE),
    ("rcpt", "551 5.1.6 user has moved", H, "moved", NONE),
    ("rcpt", "550 5.2.1 The user is disabled", H, "disabled", NONE),
    ("rcpt", "552 5.2.2 mailbox full", H, "over-quota", NONE),
    ("dot", "552 5.3.4 Message size exceeds fixed limit", H, "too-large", NONE),
    ("dot", "554 5.4.0 Error: too many hops", H, "loop", NONE),
    ("dot", "554 5.4.14 Hop count exceeded - possible mail loop", H, "loop", NONE),
    ("rcpt", "554 5.7.1 <u@example.com>: Relay access denied", H, "no-relay", NONE),
    ("rcpt", "550 5.7.1 <u@example.com>... Relaying denied", H, "no-relay", NONE),
    (
        "rcpt",
        "553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)",
        H,
        "no-relay",
        NONE,
    ),
    ("rcpt", "550 5.7.1 go away", H, "policy", NONE),
    ("rcpt", "550 no", H, "refused", NONE),
    # content
    (
        "dot",
        "550 5.7.26 Unauthenticated email is not accepted due to domain's DMARC policy",
        H,
        "authentication",
        NONE,
    ),
    ("rcpt", "550 5.7.23 SPF validation failed", H, "authentication", NONE),
    ("dot", "554 5.7.1 looks like spam", H, "content", NONE),
    ("dot", "554 rejected", H, "content", NONE),
    ("dot", "550 5.6.0 bad MIME", H, "content", NONE),
    ("data", "554 5.5.1 Error: no valid recipients", H, "refused", NONE),
    ("local", "554 5.6.7 SMTPUTF8 is not offered", H, "unfit", NONE),
    ("damaged", "554 checksum", H, "damaged", NONE),
]


@pytest.mark.parametrize(("stage", "reply", "fate", "reason", "effect"), CASES)
def test_table(stage: str, reply: str, fate: Fate, reason: str, effect: Effect) -> None:
    """Each row of the table, by replies of servers that are named in it."""
    code = int(reply[:3] or 0)
    assert classify_reply(code, reply, stage) == (fate, reason, effect)
    assert classify_reply(code, reply[4:], stage) == (fate, reason, effect)


def test_every_row_is_reached() -> None:
    """No row stands behind one that takes all it could match."""
    found = {id(find_row(int(reply[:3] or 0), reply, stage)) for stage, reply, *_ in CASES}
    assert found == {id(row) for row in ROWS}


@given(
    st.integers(0, 999),
    st.text(max_size=30),
    st.sampled_from(["greeting", "mail", "rcpt", "data", "dot", "local", "damaged"]),
)
def test_only_2xx_delivers_and_only_5xx_is_final(code: int, text: str, stage: str) -> None:
    """No text makes a failure a success or a temporary reply final; only the front and MAIL block."""
    fate, reason, _ = classify_reply(code, text, stage)
    assert (fate is D) == (200 <= code < 300)
    assert bool(reason) == (fate is not D)
    assert fate not in (H, B) or 500 <= code < 600
    assert fate is not B or stage in ("greeting", "mail")


def test_manual() -> None:
    """docs/replies.md is what the table prints; every row has a source."""
    manual = Path(__file__).parents[3] / "docs" / "replies.md"
    assert manual.read_text() == format_replies()
    assert all(row.source for row in ROWS)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("250 2.1.5 Ok", "2.1.5"),
        ("2.1.5 Ok", "2.1.5"),
        ("550-5.1.1 The account", "5.1.1"),
        ("550 5.1.1", "5.1.1"),
        ("250 Ok 2.0.0", ""),
        ("5.1.1.2 x", ""),
        ("192.0.2.1 x", ""),
        ("250 192.0.2.1 said", ""),
        ("", ""),
    ],
)
def test_enhanced_code(text: str, code: str) -> None:
    """An enhanced code counts only at the front of the text."""
    assert enhanced_code(text) == code


def test_dsn_code() -> None:
    """Without an enhanced code the class alone is logged; what is no class is temporary."""
    assert dsn_code(250, "250 Ok") == "2.0.0"
    assert dsn_code(550, "550 no") == "5.0.0"
    assert dsn_code(450, "450 4.2.0 x") == "4.2.0"
    assert dsn_code(0, "") == "4.0.0"
