"""The table of replies, row by row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.domain.outcome import Fate, classify_reply, dsn_code, enhanced_code

D, F, H, B = Fate.DELIVERED, Fate.DEFERRED, Fate.HELD, Fate.BLOCKED


@pytest.mark.parametrize(
    ("row", "code", "text", "stage", "fate"),
    [
        (1, 250, "250 2.0.0 Ok: queued", "dot", D),
        (1, 251, "251 User not local; will forward", "rcpt", D),
        (2, 421, "421 4.3.2 shutting down", "rcpt", F),
        (2, 450, "450 4.2.0 greylisted", "rcpt", F),
        (2, 452, "452 4.3.1 no space", "mail", F),
        (2, 451, "451 4.7.1 later", "dot", F),
        (3, 0, "", "dot", F),
        (3, 354, "354 go on", "dot", F),
        (3, 999, "999 what", "rcpt", F),
        (4, 552, "552 too many recipients", "rcpt", F),
        (4, 552, "552 5.5.3 too many recipients", "rcpt", F),
        (7, 552, "552 5.2.2 mailbox full", "rcpt", H),
        (5, 552, "552 5.3.4 message too big", "mail", H),
        (5, 552, "552 message size exceeds limit", "mail", H),
        (5, 552, "552 5.2.3 message size exceeds limit", "mail", H),
        (5, 501, "501 5.1.7 bad sender address syntax", "mail", H),
        (5, 501, "501 syntax error", "mail", H),
        (5, 553, "553 5.1.8 domain of sender does not exist", "mail", H),
        (5, 553, "553 sorry, your envelope sender domain must exist", "mail", H),
        (5, 555, "555 5.5.4 unsupported option", "mail", H),
        (5, 550, "550 5.7.27 sender has null MX", "mail", H),
        (5, 550, "550-5.6.7 SMTPUTF8 needed", "mail", H),
        (6, 550, "550 5.7.1 your host is blacklisted", "mail", B),
        (6, 553, "553 5.7.1 blocked", "mail", B),
        (6, 554, "554 no service", "mail", B),
        (6, 530, "530 5.7.0 must issue STARTTLS first", "mail", B),
        (6, 550, "550 access denied", "mail", B),
        (7, 550, "550 5.1.1 no such user", "rcpt", H),
        (7, 550, "550 5.7.1 relaying denied", "rcpt", H),
        (7, 554, "554 5.5.1 no valid recipients", "data", H),
        (7, 554, "554 5.7.1 looks like spam", "dot", H),
        (7, 554, "554 5.6.7 SMTPUTF8 is not offered", "local", H),
    ],
)
def test_table(row: int, code: int, text: str, stage: str, fate: Fate) -> None:
    """Each row of the table in `posthouse.domain.outcome`."""
    assert classify_reply(code, text, stage) is fate


@given(
    st.integers(0, 999),
    st.text(max_size=30),
    st.sampled_from(["mail", "rcpt", "data", "dot", "local"]),
)
def test_only_2xx_delivers_and_only_mail_blocks(code: int, text: str, stage: str) -> None:
    """No text makes a failure a success; nothing but a 5xx at MAIL speaks of us."""
    fate = classify_reply(code, text, stage)
    assert (fate is D) == (200 <= code < 300)
    assert fate is not H or 500 <= code < 600
    assert fate is not B or (500 <= code < 600 and stage == "mail")


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
