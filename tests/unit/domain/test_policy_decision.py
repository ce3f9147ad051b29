"""What Postfix is told about recipients of a backup's session (rows of the table)."""

from __future__ import annotations

import pytest

from posthouse.domain.postfix_policy import (
    DUNNO,
    PERMIT,
    Claim,
    decide_action,
    find_claim,
)

QUESTION = {
    "request": "smtpd_access_policy",
    "protocol_state": "RCPT",
    "sasl_username": "a-1",
    "sasl_sender": "",
    "recipient": "Alice@Example.com",
}


@pytest.mark.parametrize(
    "change",
    [
        {"protocol_state": "DATA"},
        {"protocol_state": "CONNECT"},
        {"sasl_username": ""},
        {"recipient": ""},
    ],
)
def test_row_1(change: dict[str, str]) -> None:
    """Strangers and other stages cost no look-up."""
    assert find_claim({**QUESTION, **change}) is None
    assert find_claim({}) is None


def decide(recipient: str = "Alice@Example.com", submitter: str = "", mailbox: str = "") -> str:
    claim = Claim(agreement_id="a-1", submitter=submitter, recipient=recipient)
    domains = frozenset({"example.com", "xn--bcher-kva.example"})
    return decide_action(claim, forwarder_id="mx2.example.net", mailbox=mailbox, domains=domains)


def test_rows_3_to_5() -> None:
    """The forwarder's domains pass, and the mailbox of the agreement; others do not."""
    assert find_claim(QUESTION) == Claim(
        agreement_id="a-1", submitter="", recipient="Alice@Example.com"
    )
    assert decide() == PERMIT
    assert decide("nobody@xn--bcher-kva.example") == PERMIT
    assert decide("x@other.example") == DUNNO
    assert decide("x@sub.example.com") == DUNNO
    assert decide("X@other.example", mailbox="x@other.example") == PERMIT
    assert decide("no-domain") == DUNNO
    assert decide(submitter="a-2@MX2.example.net") == PERMIT
    assert decide(submitter="a-2@mx3.example.net") == DUNNO
    assert decide(submitter="alice") == DUNNO


def test_nobody_may_relay() -> None:
    """The permit is one that Postfix grants for its own destinations only."""
    assert PERMIT == "permit_auth_destination"
