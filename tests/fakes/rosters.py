"""Rosters made to order: a valid one by default, any member replaced on request."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from fakes.vectors import DOMAIN, NOW_S, PRIVATE_KEY, PUBLIC_KEY, ROSTER_KEY
from posthouse.domain.digests import make_digest, roster_key_id
from posthouse.domain.roster import POSTMASTER, canonical_text, fold_of
from posthouse.mail.roster import (
    HeaderFold,
    HmacDigest,
    RosterBody,
    RosterHeader,
    RosterLimits,
    RosterPolicy,
    RosterPublisher,
    RosterRule,
)
from posthouse.mail.wire_text import format_time
from posthouse.proto import signing
from posthouse.proto.roster_file import encode_signed


def make_header(**members: Any) -> RosterHeader:
    """A header that nothing is wrong with, for an empty body."""
    defaults: dict[str, Any] = {
        "domain": DOMAIN,
        "serial": NOW_S,
        "issued_at": format_time(NOW_S),
        "expires_at": format_time(NOW_S + 7 * 86_400),
        "refresh_seconds": 3600,
        "digest": HmacDigest(length=16, key_id=roster_key_id(ROSTER_KEY)),
        "fold": HeaderFold(case="lower", delimiters="+", dots="keep"),
        "catch_all": False,
        "rules": (),
        "limits": RosterLimits(max_message_bytes=1 << 30, smtputf8=True, eight_bit_mime=True),
        "policy": RosterPolicy(blocking="allowed", when_stale="defer"),
        "mx": (),
        "body": RosterBody(count=0, sha256=hashlib.sha256(b"").hexdigest()),
        "publisher": RosterPublisher(party=DOMAIN, key_id=signing.key_id(PUBLIC_KEY)),
    }
    return RosterHeader(**(defaults | members))


def sign(octets: bytes) -> bytes:
    """Sign with the published private key of the vectors."""
    return signing.sign(PRIVATE_KEY, octets)


def make_body(
    header: RosterHeader, mailboxes: Iterable[str], *, roster_key: bytes = ROSTER_KEY
) -> bytes:
    """The digests of these mailboxes and of postmaster."""
    digest, how = make_digest(header.digest, roster_key), fold_of(header)
    texts = [
        canonical_text(mailbox, how, cut=False, domain=header.domain)
        for mailbox in (*mailboxes, POSTMASTER)
    ]
    return b"".join(sorted({digest(text) for text in texts}))


def seal(
    header: RosterHeader, body: bytes, *, private_key: bytes = PRIVATE_KEY, **body_members: Any
) -> bytes:
    """Header, signature and body, with count and hash that fit unless they are given."""
    members: dict[str, Any] = {
        "count": len(body) // header.digest.length,
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    members |= body_members
    fields = {name: getattr(header, name) for name in header.__struct_fields__}
    fields["body"] = RosterBody(**members)
    signed = encode_signed(RosterHeader(**fields), lambda text: signing.sign(private_key, text))
    return signed + body


def make_roster(
    mailboxes: Iterable[str] = ("alice", "bob"),
    *,
    private_key: bytes = PRIVATE_KEY,
    roster_key: bytes = ROSTER_KEY,
    **members: Any,
) -> bytes:
    """A whole file that nothing is wrong with."""
    header = make_header(**members)
    body = make_body(header, mailboxes, roster_key=roster_key)
    return seal(header, body, private_key=private_key)


def rule(match: str, action: Any) -> RosterRule:
    """One rule."""
    return RosterRule(match=match, action=action)
