"""On-demand mail relay, the provider's side, as an automaton without I/O (RFC 2645).

A primary behind NAT or on a dynamic address dials in, proves who it is, says
ATRN, and the roles on that connection change: from then on we are the client
and send it its mail. Until then it is a small SMTP
server that takes no mail: EHLO, STARTTLS, AUTH, ATRN, ETRN, NOOP, RSET, QUIT.

::

    greeted --EHLO, HELO--> ready --AUTH--> known --ATRN--> turned
    ready, known --STARTTLS--> greeted, all knowledge dropped (RFC 3207)

CRAM-MD5 is mandatory there (RFC 2645 §5.1) and never shows the secret; PLAIN
is offered under TLS only (RFC 4954 §4). What is a decision comes out as an
event and waits for `answer`. Raises nothing on any input.

Bounds: lines of 4096 octets (RFC 4954 §4.3 allows 12,288 for other
mechanisms; ours are short), 20 refused commands, three failed logins.
Octets that come behind ATRN before its answer are a client's that talks out of
turn: it must wait for our 250 (RFC 2645 §5.2.1), so they close the session.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Final

import msgspec

from posthouse.errors import AddressError
from posthouse.mail.address import normalize_domain
from posthouse.mail.reply import Reply
from posthouse.proto import server_replies as replies

MAX_LINE: Final = 4096
MAX_ERRORS: Final = 20
MAX_IDLE: Final = 100
MAX_LOGINS: Final = 3
MAX_DOMAINS: Final = 100


class CramLogin(msgspec.Struct, frozen=True):
    """RFC 2195: `digest` is the client's keyed MD5 of `challenge`, in hex. Wants `answer_login`."""

    user: str
    challenge: bytes
    digest: str


class PlainLogin(msgspec.Struct, frozen=True):
    """RFC 4616. Wants `answer_login`."""

    user: str
    secret: str


class Turn(msgspec.Struct, frozen=True):
    """ATRN. domains: lower-case A-labels, () for all of the user's. Wants `answer_turn`."""

    domains: tuple[str, ...]


class Etrn(msgspec.Struct, frozen=True):
    """ETRN from somebody known. node: as given. Wants `answer`."""

    node: str


class StartTls(msgspec.Struct, frozen=True):
    """220 is in the output; do the handshake, call `tls_started`."""


class Closing(msgspec.Struct, frozen=True):
    """Send what is due and close."""

    why: str


Event = CramLogin | PlainLogin | Turn | Etrn | StartTls | Closing

_MECHANISM = Reply(504, "5.5.4", "Mechanism not supported")
_TWICE = Reply(503, "5.5.1", "Already authenticated")
_CANCELLED = Reply(501, "5.7.0", "Authentication cancelled")
_BASE64 = Reply(501, "5.5.2", "Cannot decode BASE64")
_IN_CLEAR = Reply(538, "5.7.11", "Encryption required for this mechanism")
_WHO = Reply(530, "5.7.0", "Authentication required")
_GOOD = Reply(235, "2.7.0", "Authentication successful")
_BAD = Reply(535, "5.7.8", "Authentication credentials invalid")
_BUSY = Reply(454, "4.7.0", "Temporary authentication failure")
_DOMAINS = Reply(501, "5.5.4", "Syntax: ATRN [domain[,domain]]")
_HELP = Reply(214, "2.0.0", "EHLO STARTTLS AUTH ATRN ETRN NOOP RSET QUIT")
_NO_MAIL = Reply(502, "5.5.1", "Mail is taken on another port; here it is fetched with ATRN")
_HELO = re.compile(rb"[\x21-\x7e]{1,255}\Z")


class OdmrServer:
    """One session. user: whom AUTH proved, "" for nobody; tls: its description, "" in clear.

    turned: the connection is ours to speak on as a client; the rest of the input is the peer's
    greeting. challenge: makes a fresh CRAM-MD5 challenge, "<…@host>" (RFC 2195 §2).
    """

    def __init__(
        self, hostname: str, *, offer_starttls: bool, challenge: Callable[[], str]
    ) -> None:
        self.user = ""
        self.tls = ""
        self.turned = False
        self._hostname = hostname
        self._offer_starttls = offer_starttls
        self._make_challenge = challenge
        self._greeted = False
        self._buffer = b""
        self._out: list[bytes] = []
        self._waiting = False
        self._shaking_hands = False
        self._over = False
        self._mechanism = ""  # of an AUTH that waits for the client's line
        self._challenge = b""
        self._errors = 0
        self._idle = 0
        self._logins = 0

    def greet(self) -> None:
        """Put the greeting into the output."""
        self._out.append(f"220 {self._hostname} ESMTP Posthouse on-demand relay\r\n".encode())

    def take_output(self) -> bytes:
        """Octets to send."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def take_rest(self) -> bytes:
        """What was received behind the turn; nothing is read here afterwards."""
        rest, self._buffer = self._buffer, b""
        return rest

    @property
    def buffered_bytes(self) -> int:
        """What was received and not looked at yet; bounded only by who reads the socket."""
        return len(self._buffer)

    def receive(self, data: bytes) -> None:
        """Take octets from the client."""
        if not self._over:
            self._buffer += data

    def next_event(self) -> Event | None:
        """The next thing the owner must know; None: more octets, or an answer, are needed."""
        while not (self._waiting or self._over or self.turned or self._shaking_hands):
            if self._errors >= MAX_ERRORS:
                return self._close(f"421 4.7.0 {self._hostname} Error: too many errors")
            end = self._buffer.find(b"\n")
            if end < 0:
                if len(self._buffer) > MAX_LINE:
                    return self._close(f"421 4.7.0 {self._hostname} Error: line too long")
                return None
            line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
            if len(line) > MAX_LINE or line[-1:] != b"\r":
                self._say(replies.TOO_LONG if len(line) > MAX_LINE else replies.BARE_LINE)
                continue
            event = self._take_line(line[:-1])
            if event is not None:
                return event
        return None

    def answer(self, reply: Reply) -> None:
        """Answer Etrn."""
        self._waiting = False
        self._say(reply)

    def answer_turn(self, reply: Reply) -> Closing | None:
        """Answer Turn. Closing: the client has said more before it heard the answer."""
        self._waiting = False
        if reply.positive and self._buffer:
            return self._close(f"421 4.5.0 {self._hostname} Error: wait for the answer to ATRN")
        self._say(reply)
        self.turned = reply.positive
        return None

    def answer_login(self, *, good: bool | None, user: str) -> Closing | None:
        """Answer a login; None: it cannot be told now."""
        self._waiting = False
        if good:
            self.user = user
            self._out.append(_GOOD.encode())
            return None
        self._say(_BAD if good is False else _BUSY)
        self._logins += 1
        if self._logins >= MAX_LOGINS:
            return self._close(f"421 4.7.0 {self._hostname} Error: too many failed logins")
        return None

    def tls_started(self, description: str) -> None:
        """The handshake is done: what was said in clear is forgotten."""
        self.tls = description
        self.user, self._greeted = "", False
        self._buffer, self._mechanism = b"", ""
        self._shaking_hands = False

    # ------------------------------------------------------------------ commands

    def _take_line(self, line: bytes) -> Event | None:
        if self._mechanism:
            return self._read_response(line)
        verb, _, argument = line.partition(b" ")
        handler = _HANDLERS.get(verb.upper())
        if handler is None:
            mail = verb.upper() in (b"MAIL", b"RCPT", b"DATA", b"BDAT", b"VRFY", b"TURN")
            self._say(_NO_MAIL if mail else replies.UNKNOWN)
            return None
        return handler(self, argument.strip(b" \t"))

    def _on_ehlo(self, argument: bytes) -> Event | None:
        if _HELO.match(argument) is None:
            self._say(replies.HELO_SYNTAX)
            return None
        self._greeted = True
        words = [self._hostname]
        if not self.user:
            words.append("AUTH CRAM-MD5 PLAIN" if self.tls else "AUTH CRAM-MD5")
        words += ["ATRN", "ETRN", "ENHANCEDSTATUSCODES"]
        if self._offer_starttls and not self.tls:
            words.append("STARTTLS")
        lines = [f"250-{word}\r\n" for word in words[:-1]] + [f"250 {words[-1]}\r\n"]
        self._out.append("".join(lines).encode())
        return None

    def _on_helo(self, argument: bytes) -> Event | None:
        if _HELO.match(argument) is None:
            self._say(replies.HELO_SYNTAX)
        else:
            self._greeted = True
            self._out.append(f"250 {self._hostname}\r\n".encode())
        return None

    def _on_auth(self, argument: bytes) -> Event | None:
        mechanism, _, initial = argument.partition(b" ")
        name = mechanism.upper()
        if not self._greeted:
            self._say(replies.HELO_FIRST)
        elif self.user:
            self._say(_TWICE)
        elif name == b"CRAM-MD5" and not initial:
            self._mechanism = "CRAM-MD5"
            self._challenge = self._make_challenge().encode("ascii")
            self._out.append(b"334 %b\r\n" % base64.b64encode(self._challenge))
        elif name == b"PLAIN" and not self.tls:
            self._say(_IN_CLEAR)
        elif name == b"PLAIN":
            self._mechanism = "PLAIN"
            if initial:
                return self._read_response(initial)
            self._out.append(b"334 \r\n")
        else:
            self._say(replies.NO_ARGUMENT if name == b"CRAM-MD5" else _MECHANISM)
        return None

    def _read_response(self, line: bytes) -> Event | None:
        mechanism, self._mechanism = self._mechanism, ""
        if line == b"*":
            self._say(_CANCELLED)
            return None
        try:
            text = base64.b64decode(line, validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            self._say(_BASE64)
            return None
        if mechanism == "CRAM-MD5":
            user, _, digest = text.rpartition(" ")
            self._waiting = True
            return CramLogin(user, self._challenge, digest)
        parts = text.split("\0")
        if len(parts) != 3:
            self._say(_BASE64)
            return None
        if parts[0] not in ("", parts[1]):  # acting for another user is not ours to grant
            self._say(_BAD)
            return None
        self._waiting = True
        return PlainLogin(parts[1], parts[2])

    def _on_atrn(self, argument: bytes) -> Event | None:
        if not self.user:
            self._say(_WHO)
            return None
        try:
            names = [word.strip() for word in argument.decode("utf-8").split(",") if argument]
            domains = tuple(dict.fromkeys(normalize_domain(name) for name in names))
        except (AddressError, UnicodeDecodeError):
            self._say(_DOMAINS)
            return None
        if len(domains) > MAX_DOMAINS:
            self._say(_DOMAINS)
            return None
        self._waiting = True
        return Turn(domains)

    def _on_etrn(self, argument: bytes) -> Event | None:
        if not self.user:
            self._say(_WHO)
        elif not argument or not argument.isascii():
            self._say(Reply(501, "5.5.4", "Syntax: ETRN domain"))
        else:
            self._waiting = True
            return Etrn(argument.decode("ascii"))
        return None

    def _on_noop(self, _argument: bytes) -> Event | None:
        self._small_talk(replies.OK)
        return None

    def _on_help(self, _argument: bytes) -> Event | None:
        self._small_talk(_HELP)
        return None

    def _on_quit(self, _argument: bytes) -> Event | None:
        return self._close("221 2.0.0 Bye")

    def _on_starttls(self, argument: bytes) -> Event | None:
        if argument:
            self._say(replies.NO_ARGUMENT)
        elif self.tls:
            self._say(replies.TLS_TWICE)
        elif not self._offer_starttls:
            self._say(replies.NOT_IMPLEMENTED)
        else:
            self._out.append(b"220 2.0.0 Ready to start TLS\r\n")
            self._buffer = b""  # what came in clear behind it is dropped
            self._shaking_hands = True
            return StartTls()
        return None

    # ------------------------------------------------------------------ inside

    def _small_talk(self, reply: Reply) -> None:
        self._out.append(reply.encode())
        self._idle += 1
        if self._idle > MAX_IDLE:
            self._errors += 1

    def _say(self, reply: Reply) -> None:
        self._out.append(reply.encode())
        if reply.code >= 400:
            self._errors += 1

    def _close(self, line: str) -> Closing:
        self._out.append(f"{line}\r\n".encode())
        self._over = True
        self._buffer = b""
        return Closing(line)


_HANDLERS: Final[dict[bytes, Callable[[OdmrServer, bytes], Event | None]]] = {
    b"EHLO": OdmrServer._on_ehlo,
    b"HELO": OdmrServer._on_helo,
    b"AUTH": OdmrServer._on_auth,
    b"ATRN": OdmrServer._on_atrn,
    b"ETRN": OdmrServer._on_etrn,
    b"NOOP": OdmrServer._on_noop,
    b"RSET": OdmrServer._on_noop,
    b"HELP": OdmrServer._on_help,
    b"QUIT": OdmrServer._on_quit,
    b"STARTTLS": OdmrServer._on_starttls,
}
