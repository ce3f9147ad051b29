"""The server's side of Dovecot's client authentication protocol, as octets and attempts.

Postfix (`smtpd_sasl_type = dovecot`), Exim and others ask it whether a user
name and password are good. One connection ::

    S: VERSION 1 2 / MECH PLAIN / MECH LOGIN / SPID / CUID / COOKIE / DONE    at once
    C: VERSION 1 x / CPID n
    C: AUTH id mechanism service=smtp … secured resp=<base64>
    S: CONT id <base64>          the mechanism asks (LOGIN; PLAIN without resp=)
    C: CONT id <base64>
    S: OK id user=… | FAIL id user=… reason=…

(fields are separated by TAB). MECH goes before SPID: Postfix takes another
order for another kind of socket. Only attempts under TLS (`secured`) are judged.

A temporary failure has no answer at all: Postfix makes 535 of every FAIL,
whatever its parameters, and a forwarder that reads 535 believes its password
is void. The caller closes the connection instead; Postfix then says 454.

Failure: nothing a client sends raises; what cannot be read makes it `broken`.
Spec: Dovecot Authentication Protocol v1.2; RFC 4616; draft-murchison-sasl-login.
"""

from __future__ import annotations

import binascii
from typing import Final

import msgspec

MAX_LINE_BYTES: Final = 16_384  # Dovecot: AUTH_CLIENT_MAX_LINE_LENGTH
MAX_UNDER_WAY: Final = 100
"""Attempts of one connection without an answer; an smtpd has one."""
MAX_ID: Final = 2**32 - 1

_USER_PROMPT: Final = b"VXNlcm5hbWU6"  # "Username:", what clients of LOGIN expect
_PASSWORD_PROMPT: Final = b"UGFzc3dvcmQ6"  # "Password:"


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A user name and password to judge. remote: the SMTP client's address, "" if not told."""

    request_id: int
    user: str
    password: str
    service: str = ""
    remote: str = ""

    def __repr__(self) -> str:
        return f"Attempt({self.request_id}, {self.user!r} from {self.remote})"  # no password


class _Exchange(msgspec.Struct):
    """An AUTH that is not an attempt yet. user: of LOGIN, once it is known."""

    mechanism: bytes
    service: str
    remote: str
    user: str | None = None


class AuthServer:
    """One connection. The caller writes `take_output` after each call.

    broken: why nothing more is read, "" while all is well.
    """

    def __init__(self, *, process_id: int, connection_id: int, cookie: str) -> None:
        """cookie: 32 hex digits nobody can guess; it must differ for every connection."""
        self.broken = ""
        self._partial = b""
        self._greeted = False
        self._exchanges: dict[int, _Exchange] = {}
        self._judged: dict[int, str] = {}  # attempts without an answer → user
        self._output: list[bytes] = [
            b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nMECH\tLOGIN\tplaintext\n",
            f"SPID\t{process_id}\nCUID\t{connection_id}\nCOOKIE\t{cookie}\nDONE\n".encode(),
        ]

    def take_output(self) -> bytes:
        """Octets to write now."""
        output, self._output = b"".join(self._output), []
        return output

    def feed(self, data: bytes) -> list[Attempt]:
        """Take octets; returns the attempts that they complete, the same for every cut."""
        attempts: list[Attempt] = []
        if self.broken:
            return attempts
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            if len(line) > MAX_LINE_BYTES:
                self.broken = "a line is too long"
            elif (attempt := self._read_line(line)) is not None:
                attempts.append(attempt)
            if self.broken:
                break
        if len(self._partial) > MAX_LINE_BYTES and not self.broken:
            self.broken = "a line is too long"
        if self.broken:
            self._partial = b""
        return attempts

    def accept(self, request_id: int) -> None:
        """Answer an attempt: the password is good."""
        user = self._judged.pop(request_id, None)
        if user is not None:
            self._say(b"OK", request_id, f"user={user}")

    def refuse(self, request_id: int, reason: str = "", code: str = "") -> None:
        """Answer an attempt: it is not.

        reason: one line that Postfix shows to the client, "" for none. code: one of
        Dovecot's ("pass_expired", "user_disabled"), for logs.
        """
        user = self._judged.pop(request_id, None)
        if user is not None:
            self._fail(request_id, user, reason, code)

    # ------------------------------------------------------------------ lines

    def _read_line(self, line: bytes) -> Attempt | None:
        verb, _, rest = line.partition(b"\t")
        fields = rest.split(b"\t") if rest else []
        if verb == b"VERSION":
            self._greeted = fields[:1] == [b"1"]
            if not self._greeted:
                self.broken = "another major version"
        elif not self._greeted:
            self.broken = "no VERSION at the beginning"
        elif verb in (b"AUTH", b"CONT", b"CANCEL"):
            return self._read_request(verb, fields)
        return None  # CPID says nothing we need; what is unknown is passed over

    def _read_request(self, verb: bytes, fields: list[bytes]) -> Attempt | None:
        digits = fields[0] if fields else b""
        if not digits.isdigit() or len(digits) > 10 or int(digits) > MAX_ID:
            self.broken = "a request without id"
            return None
        request_id = int(digits)
        if verb == b"CANCEL":
            self._exchanges.pop(request_id, None)
            self._judged.pop(request_id, None)
        elif verb == b"AUTH":
            return self._begin(request_id, fields[1:])
        elif request_id in self._exchanges:
            return self._go_on(request_id, fields[1] if len(fields) > 1 else b"")
        else:
            self.broken = "CONT for nothing"
        return None

    def _begin(self, request_id: int, fields: list[bytes]) -> Attempt | None:
        if request_id in self._exchanges or request_id in self._judged:
            self.broken = "an id is used twice"
            return None
        if len(self._exchanges) + len(self._judged) >= MAX_UNDER_WAY:
            self.broken = "too many requests under way"
            return None
        mechanism = fields[0].upper() if fields else b""
        parameters = dict(field.partition(b"=")[::2] for field in fields[1:])
        if mechanism not in (b"PLAIN", b"LOGIN"):
            self._fail(request_id, "", "mechanism not offered")
            return None
        if b"secured" not in parameters:
            self._fail(request_id, "", "only under TLS")
            return None
        self._exchanges[request_id] = _Exchange(
            mechanism,
            parameters.get(b"service", b"").decode("ascii", "replace"),
            parameters.get(b"rip", b"").decode("ascii", "replace"),
        )
        if b"resp" in parameters:
            return self._go_on(request_id, parameters[b"resp"])
        self._ask(request_id, b"" if mechanism == b"PLAIN" else _USER_PROMPT)
        return None

    def _go_on(self, request_id: int, response: bytes) -> Attempt | None:
        exchange = self._exchanges.pop(request_id)
        text = _decode(response)
        if text is None:
            self._fail(request_id, exchange.user or "", "invalid response")
        elif exchange.mechanism == b"PLAIN":
            authorize, _, rest = text.partition("\0")
            user, nul, password = rest.partition("\0")
            if nul and "\0" not in password and authorize in ("", user):
                return self._attempt(request_id, exchange, user, password)
            self._fail(request_id, "", "invalid response")
        elif exchange.user is None:
            exchange.user = text
            self._exchanges[request_id] = exchange
            self._ask(request_id, _PASSWORD_PROMPT)
        else:
            return self._attempt(request_id, exchange, exchange.user, text)
        return None

    def _attempt(
        self, request_id: int, exchange: _Exchange, user: str, password: str
    ) -> Attempt | None:
        if not user or not user.isprintable():  # a TAB or LF in OK would be another field or line
            self._fail(request_id, "", "invalid response")
            return None
        self._judged[request_id] = user
        return Attempt(
            request_id=request_id,
            user=user,
            password=password,
            service=exchange.service,
            remote=exchange.remote,
        )

    # ------------------------------------------------------------------ answers

    def _ask(self, request_id: int, challenge: bytes) -> None:
        self._output.append(b"CONT\t%d\t%b\n" % (request_id, challenge))

    def _fail(self, request_id: int, user: str, reason: str, code: str = "") -> None:
        fields = [f"user={user}"] if user.isprintable() and user else []
        fields += [f"reason={reason}"] if reason else []
        fields += [f"code={code}"] if code else []
        self._say(b"FAIL", request_id, *fields)

    def _say(self, verb: bytes, request_id: int, *fields: str) -> None:
        line = b"\t".join([verb, b"%d" % request_id, *(field.encode() for field in fields)])
        self._output.append(line + b"\n")


def _decode(response: bytes) -> str | None:
    try:
        return binascii.a2b_base64(response, strict_mode=True).decode()
    except ValueError:  # binascii.Error and UnicodeDecodeError are
        return None
