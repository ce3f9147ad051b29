"""What proves one agreement to a next hop (PROTOCOL.md §3 "On the mail itself")."""

from __future__ import annotations

import msgspec


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """An agreement as SMTP AUTH presents it.

    agreement_id: the user name. forwarder_id: who the agreement was granted to; within one
    session it may switch between agreements of one forwarder-ID (RFC 4954 §5).
    """

    agreement_id: str
    password: str
    forwarder_id: str

    def __repr__(self) -> str:
        return f"Credentials({self.agreement_id}@{self.forwarder_id})"  # never the password
