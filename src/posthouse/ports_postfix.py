"""What the servers for Postfix need of the granter's book (PROTOCOL.md §3 "On the mail itself")."""

from __future__ import annotations

import enum
from typing import Protocol

import msgspec


class AuthFinding(enum.Enum):
    """What an agreement-ID and a password are worth."""

    GOOD = "good"
    BAD = "bad"  # no such agreement, or another password; nobody is told which
    EXPIRED = "expired"  # a one-time password: good for completion and for nothing else
    TEMPORARY = "temporary"  # the book cannot be read now: nothing is said of the password


class AgreementVerifier(Protocol):
    """Judges what a forwarder presents with SMTP AUTH."""

    async def check(self, agreement_id: str, password: str) -> AuthFinding:
        """Compare in constant time. Never raises."""


class Backing(msgspec.Struct, frozen=True, kw_only=True):
    """Who stands behind an agreement in force.

    mailbox: its canonical text, "" when it is not of one mailbox. domains: A-labels, lower
    case: all that this forwarder backs up.
    """

    agreement_id: str
    forwarder_id: str
    mailbox: str
    domains: frozenset[str]


class AgreementBacking(Protocol):
    """Tells what an authenticated agreement is good for."""

    async def find_backing(self, agreement_id: str) -> Backing | None:
        """None unless it is agreed, not ended, and its forwarder still paired.

        Raises StorageError.
        """
