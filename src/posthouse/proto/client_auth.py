"""SMTP AUTH from the client's side: who this session is, and for whom each message speaks.

A session authenticates at most once (RFC 4954 §4: a second AUTH is out of
order), before the first message that has credentials, and only under TLS.
Whatever the server answers, mail goes on: without AUTH where it was refused.
What follows in an authenticated session is told apart in MAIL FROM (§5)::

    the agreement that authenticated   no parameter: the session speaks for it
    another one of the same forwarder  AUTH=<xtext of agreement-id@forwarder-id>
    none, or of another forwarder      AUTH=<>: do not take it for the session's own

Without authentication no AUTH= is sent: servers answer 503 to it (Postfix does).
PLAIN goes with its initial response (RFC 4616); LOGIN only where PLAIN is not offered.
Spec: RFC 4954; RFC 4616; RFC 3461 §4 (xtext).
"""

from __future__ import annotations

from binascii import b2a_base64
from typing import Final

from posthouse.mail.credentials import Credentials
from posthouse.proto.replies_in import PeerReply

MAX_SECRET_BYTES: Final = 4096
"""Of name and password each: with base64 both fit the 12,288 octets of RFC 4954 §4."""

_GO_ON: Final = 334
_ACCEPTED: Final = 235


class Exchange:
    """One AUTH command and what follows it. `accepted` is meant once `answer` gave None."""

    __slots__ = ("_left", "accepted", "cancelled", "credentials", "first")

    def __init__(self, credentials: Credentials, mechanism: bytes) -> None:
        self.credentials = credentials
        self.accepted = False
        self.cancelled = False
        name, password = credentials.agreement_id.encode(), credentials.password.encode()
        if mechanism == b"PLAIN":
            self.first = b"AUTH PLAIN " + _encode(b"\0%b\0%b" % (name, password))
            self._left: list[bytes] = []
        else:
            self.first = b"AUTH LOGIN\r\n"
            self._left = [_encode(password), _encode(name)]

    def answer(self, reply: PeerReply) -> bytes | None:
        """Give the next line to send, None when the exchange is over.

        A question too many is answered with "*" (§4): it ends in a refusal. One
        more behind that has no answer: the caller must give the session up.
        """
        if reply.code == _GO_ON and not self.cancelled:
            if self._left:
                return self._left.pop()
            self.cancelled = True
            return b"*\r\n"
        self.accepted = reply.code == _ACCEPTED and not self.cancelled
        return None


class SessionAuth:
    """Decides when to authenticate and what MAIL FROM says."""

    __slots__ = ("_mechanism", "_proven", "_tried")

    def __init__(self) -> None:
        self._mechanism: bytes | None = None
        self._tried = False
        self._proven: Credentials | None = None

    def offered(self, mechanisms: frozenset[bytes], *, secure: bool) -> None:
        """Take what the server offers. secure: it was said, and is used, under TLS."""
        if secure:
            self._mechanism = next((m for m in (b"PLAIN", b"LOGIN") if m in mechanisms), None)

    def wants(self, credentials: Credentials | None) -> bool:
        """True when the session should authenticate before a message with these credentials."""
        return (
            credentials is not None
            and self._mechanism is not None
            and not self._tried
            and _usable(credentials)
        )

    def begin(self, credentials: Credentials) -> Exchange:
        """Start the one exchange of this session; only when `wants`."""
        assert self._mechanism is not None
        self._tried = True
        return Exchange(credentials, self._mechanism)

    def end(self, exchange: Exchange) -> None:
        """Take the outcome of the exchange."""
        if exchange.accepted:
            self._proven = exchange.credentials

    def parameter(self, credentials: Credentials | None) -> str:
        """What MAIL FROM says of the agreement: "", "<>" or the value of AUTH= in xtext."""
        proven = self._proven
        if proven is None or proven is credentials:
            return ""
        if credentials is None or credentials.forwarder_id != proven.forwarder_id:
            return "<>"
        if credentials.agreement_id == proven.agreement_id:
            return ""
        return encode_xtext(f"{credentials.agreement_id}@{credentials.forwarder_id}")


def encode_xtext(text: str) -> str:
    """Write a text as xtext: "+", "=" and all outside "!" to "~" as +HH (RFC 3461 §4)."""
    return "".join(
        chr(octet) if 0x21 <= octet <= 0x7E and octet not in b"+=" else f"+{octet:02X}"
        for octet in text.encode("utf-8", "replace")
    )


def _usable(credentials: Credentials) -> bool:
    """NUL separates the parts of PLAIN (RFC 4616 §2); what UTF-8 cannot write is no password."""
    for text in (credentials.agreement_id, credentials.password):
        if not text or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            return False
        if len(text.encode()) > MAX_SECRET_BYTES:
            return False
    return True


def _encode(octets: bytes) -> bytes:
    return b2a_base64(octets, newline=False) + b"\r\n"
