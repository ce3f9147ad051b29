"""The opening of a client session, as a decision: what follows each reply until mail may go.

::

    greeting 220 → EHLO 250 ─┬─ no TLS wanted or possible ────────────→ ready
                  │ 5xx      └→ STARTTLS 220 → handshake → EHLO 250 ──→ ready
                  └→ HELO 250 ────────────────────────────────────────→ ready
    any other reply → refused (4xx, 5xx) or broken (2xx, 3xx)

Spec: RFC 5321 §3.1, §3.2; RFC 3207.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from posthouse.proto.client_events import Awaited
from posthouse.proto.client_extensions import NONE, Extensions, parse_extensions
from posthouse.proto.replies_in import PeerReply

TlsWish = Literal["never", "if_offered", "must"]


class Say(msgspec.Struct, frozen=True):
    """Send a command and wait for its reply."""

    command: bytes
    awaited: Awaited


class ShakeHands(msgspec.Struct, frozen=True):
    """The peer waits for a TLS handshake."""


class Ready(msgspec.Struct, frozen=True):
    """Mail may go. tls_refused: the peer's reply to STARTTLS when it was none."""

    tls_refused: str = ""


class Refused(msgspec.Struct, frozen=True):
    """The peer does not want us, or not now."""

    stage: str
    reply: PeerReply


class NoTls(msgspec.Struct, frozen=True):
    """TLS is a must and not to be had."""


class Impossible(msgspec.Struct, frozen=True):
    """A reply that cannot be there, or a peer that is ourselves."""

    why: str
    stage: str


Step = Say | ShakeHands | Ready | Refused | NoTls | Impossible


class Opening:
    """Decides the next step after each reply. `extensions`: what the peer offers as of now."""

    def __init__(self, helo_name: str, tls: TlsWish) -> None:
        self.extensions: Extensions = NONE
        self._helo_name = helo_name.encode()
        self._tls = tls
        self._secure = False

    @property
    def secure(self) -> bool:
        """True once the handshake is done."""
        return self._secure

    def begin_secure(self) -> Step:
        """Greet again after the handshake: what was said in clear is forgotten (RFC 3207 §4.2)."""
        self._secure = True
        self.extensions = NONE
        return self._ehlo()

    def decide(self, awaited: Awaited, reply: PeerReply) -> Step:
        """What follows `reply` to GREETING, EHLO, HELO or STARTTLS."""
        match awaited:
            case Awaited.GREETING:
                return self._ehlo() if reply.code == 220 else Refused("greeting", reply)
            case Awaited.STARTTLS:
                return self._decide_starttls(reply)
            case _:
                return self._decide_ehlo(awaited, reply)

    def _decide_ehlo(self, awaited: Awaited, reply: PeerReply) -> Step:
        if reply.code == 250:
            # As Postfix does: a next hop of our own name is ourselves, behind whatever NAT.
            if reply.first.split(b" ", 1)[0].lower() == self._helo_name.lower():
                return Impossible("the next hop has our own name: mail would loop", "ehlo")
            if awaited is Awaited.EHLO:
                self.extensions = parse_extensions(reply)
            if self.extensions.starttls and not self._secure and self._tls != "never":
                return Say(b"STARTTLS\r\n", Awaited.STARTTLS)
            return self._ready()
        if reply.code >= 500 and awaited is Awaited.EHLO:  # a server older than RFC 1869
            return Say(b"HELO %b\r\n" % self._helo_name, Awaited.HELO)
        if reply.code >= 400:
            return Refused("ehlo", reply)
        return Impossible(f"{awaited.value} was answered {reply}", "ehlo")

    def _decide_starttls(self, reply: PeerReply) -> Step:
        if reply.code == 220:
            return ShakeHands()
        if reply.code < 400:
            return Impossible(f"STARTTLS was answered {reply}", "starttls")
        if self._tls == "must" or reply.code == 421:
            return Refused("starttls", reply)
        return self._ready(tls_refused=str(reply))

    def _ehlo(self) -> Step:
        return Say(b"EHLO %b\r\n" % self._helo_name, Awaited.EHLO)

    def _ready(self, *, tls_refused: str = "") -> Step:
        """The one way to mail: where TLS is a must, none goes in clear."""
        if self._tls == "must" and not self._secure:
            return NoTls()
        return Ready(tls_refused)
