"""What Postfix is told about one recipient of a session that may be a backup's.

A backup MX sends mail of the whole world from one address. Greylisting it
delays everything by one queue round, and SPF fails for every sender that
publishes it. Both were due at the first contact, at the backup. So mail that
is proven to come under an agreement passes them; everything else is not
touched. Decided in this order:

===  ====================================================  ==================
row  the question                                          answer
===  ====================================================  ==================
(1)  not at RCPT, or without an authenticated user         DUNNO
(2)  the user is no agreement in force                     DUNNO
(3)  AUTH= names another agreement, and that is not in     DUNNO
     force, or of another forwarder
(4)  the recipient's domain is one the forwarder backs     permit_auth_dest…
     up, or the recipient is the agreement's mailbox
(5)  else                                                  DUNNO
===  ====================================================  ==================

The answer is `permit_auth_destination` and never `OK`: in whatever list it
stands, it lets nobody relay. It does not vouch for the user either: Postfix
looks a recipient up in its own tables after any permit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

DUNNO: Final = "DUNNO"
PERMIT: Final = "permit_auth_destination"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a question says of an agreement: user name, AUTH= ("" for none), recipient, client."""

    agreement_id: str
    submitter: str
    recipient: str


def find_claim(question: Mapping[str, str]) -> Claim | None:
    """Read a question; None: nothing to look up, DUNNO (row 1)."""
    user = question.get("sasl_username", "")
    recipient = question.get("recipient", "")
    if question.get("protocol_state") != "RCPT" or not user or not recipient:
        return None
    return Claim(agreement_id=user, submitter=question.get("sasl_sender", ""), recipient=recipient)


def split_submitter(submitter: str) -> tuple[str, str]:
    """Agreement-ID and forwarder-ID of an AUTH= value (decoded from xtext by Postfix or not)."""
    agreement_id, _, forwarder_id = submitter.rpartition("@")
    return agreement_id, forwarder_id


def decide_action(claim: Claim, *, forwarder_id: str, mailbox: str, domains: frozenset[str]) -> str:
    """Rows (4) and (5), and the forwarder of row (3), for an agreement in force."""
    _, submitted_for = split_submitter(claim.submitter)
    if claim.submitter and submitted_for.lower() != forwarder_id.lower():
        return DUNNO
    recipient = claim.recipient.lower()
    if recipient.rpartition("@")[2] in domains or (mailbox and recipient == mailbox):
        return PERMIT
    return DUNNO
