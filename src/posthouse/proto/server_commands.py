"""What each command line does to a session: the table of commands, and all the small ones.

`server_envelope` has MAIL and RCPT, `server_content` has DATA and BDAT. A command is
answered here, or comes out as an event. Raises nothing on any input.

Hot path: the two commands of nearly every message, in their usual spelling, are told
by one pattern each before anything else is looked at.

Spec: RFC 5321 §4.1, RFC 3207 §4, RFC 1985 §5, RFC 2034.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from posthouse.proto import server_replies as replies
from posthouse.proto.server_content import on_bdat, on_data
from posthouse.proto.server_envelope import mail_path, on_mail, on_rcpt, rcpt_path
from posthouse.proto.server_events import Abort, Etrn, Event, StartTls
from posthouse.proto.server_state import Mode, ServerState

_OK: Final = replies.OK.encode()
_TLS_READY: Final = b"220 2.0.0 Ready to start TLS\r\n"
_TEXT: Final = re.compile(rb"[\x20-\x7e\x80-\xff]*\Z")
_HELO: Final = re.compile(rb"[\x21-\x7e]{1,255}\Z")
_RCPT_FAST: Final = re.compile(rb"[Rr][Cc][Pp][Tt] [Tt][Oo]:<([^<>\s\"]+)>\Z")
_MAIL_FAST: Final = re.compile(
    rb"[Mm][Aa][Ii][Ll] [Ff][Rr][Oo][Mm]:<([!#-;=?-\[\]-~]*)>(?: ([!-~]+(?: [!-~]+)*))?\Z"
)
_LETTER_R: Final = ord("r")
_LETTER_M: Final = ord("m")
# Known to RFCs but not offered here: 502 says so (RFC 5321 §4.2.4).
_KNOWN: Final = frozenset({b"EXPN", b"AUTH", b"ATRN", b"TURN", b"SEND", b"SOML", b"SAML"})
# A browser or proxy made to speak to us (precedent: Postfix smtpd_forbidden_commands).
_FOREIGN: Final = frozenset({b"GET", b"POST", b"PUT", b"CONNECT", b"OPTIONS"})


def read_command(session: ServerState, line: bytes) -> Event | None:
    """Obey one line, given without its CR LF; the event that comes of it."""
    session.commands += 1
    letter = line[0] | 0x20 if line else 0
    if letter == _LETTER_R:  # the hot path: RCPT TO:<simple@address>
        fast = _RCPT_FAST.match(line)
        if fast is not None:
            session.last_command = "RCPT"
            return rcpt_path(session, fast.group(1), b"")
    elif letter == _LETTER_M:
        fast = _MAIL_FAST.match(line)
        if fast is not None:
            session.last_command = "MAIL"
            return mail_path(session, fast.group(1), fast.group(2) or b"")
    if _TEXT.match(line) is None:
        session.say(replies.UNKNOWN)
        return None
    verb, _, argument = line.partition(b" ")
    verb = verb.upper()
    handler = _HANDLERS.get(verb)
    if handler is None:
        return _unknown(session, verb)
    session.last_command = verb.decode("ascii")
    return handler(session, argument.strip(b" \t"))


def _unknown(session: ServerState, verb: bytes) -> Event | None:
    if verb in _FOREIGN:
        return session.close("not an SMTP client")
    session.say(replies.NOT_IMPLEMENTED if verb in _KNOWN else replies.UNKNOWN)
    return None


def _hello(session: ServerState, argument: bytes, esmtp: bool) -> Event | None:
    if _HELO.match(argument) is None:
        session.say(replies.HELO_SYNTAX)
        return None
    session.count_idle()
    session.helo = argument.decode("ascii")
    session.esmtp = esmtp
    event = Abort() if session.in_transaction else None
    session.forget()
    if not esmtp:
        session.out.append(f"250 {session.limits.hostname}\r\n".encode())
        return event
    words = [
        session.limits.hostname, "PIPELINING", f"SIZE {session.limits.max_message_bytes}",
        "ENHANCEDSTATUSCODES", "8BITMIME", "DSN", "SMTPUTF8", "CHUNKING",
    ]  # fmt: skip
    if session.offers_starttls:
        words.insert(3, "STARTTLS")
    if session.limits.offer_etrn:
        words.append("ETRN")
    text = "".join(f"250-{word}\r\n" for word in words[:-1]) + f"250 {words[-1]}\r\n"
    session.out.append(text.encode())
    return event


def _on_ehlo(session: ServerState, argument: bytes) -> Event | None:
    return _hello(session, argument, esmtp=True)


def _on_helo(session: ServerState, argument: bytes) -> Event | None:
    return _hello(session, argument, esmtp=False)


def _on_rset(session: ServerState, argument: bytes) -> Event | None:
    if argument:
        session.say(replies.NO_ARGUMENT)
        return None
    session.count_idle()
    event = Abort() if session.in_transaction else None
    session.forget()
    session.out.append(_OK)
    return event


def _on_noop(session: ServerState, _argument: bytes) -> Event | None:
    session.count_idle()
    session.out.append(_OK)
    return None


def _on_vrfy(session: ServerState, argument: bytes) -> Event | None:
    session.count_idle()
    session.say(replies.VRFY if argument else replies.VRFY_SYNTAX)
    return None


def _on_help(session: ServerState, _argument: bytes) -> Event | None:
    session.count_idle()
    session.say(replies.HELP)
    return None


def _on_etrn(session: ServerState, argument: bytes) -> Event | None:
    if not session.limits.offer_etrn:
        session.say(replies.NOT_IMPLEMENTED)
    elif not session.helo:
        session.say(replies.HELO_FIRST)
    elif session.in_transaction:
        session.say(replies.NOT_IN_TRANSACTION)
    elif not argument or not argument.isascii() or b" " in argument:
        session.say(replies.ETRN_SYNTAX)
    else:
        session.count_idle()
        session.awaiting = Etrn
        return Etrn(argument.decode("ascii"))
    return None


def _on_quit(session: ServerState, argument: bytes) -> Event | None:
    if argument:
        session.say(replies.NO_ARGUMENT)
        return None
    session.out.append(b"221 2.0.0 Bye\r\n")
    session.pending_close = "quit"
    return Abort() if session.in_transaction else None


def _on_starttls(session: ServerState, argument: bytes) -> Event | None:
    if argument:
        session.say(replies.NO_ARGUMENT)
    elif session.tls:
        session.say(replies.TLS_TWICE)
    elif not session.offers_starttls:
        session.say(replies.NOT_IMPLEMENTED)
    elif session.in_transaction:
        session.say(replies.NOT_IN_TRANSACTION)
    else:
        session.out.append(_TLS_READY)
        session.buffer, session.pos = b"", 0  # what came in clear behind it is dropped
        session.mode = Mode.TLS
        return StartTls()
    return None


_HANDLERS: Final[dict[bytes, Callable[[ServerState, bytes], Event | None]]] = {
    b"EHLO": _on_ehlo,
    b"HELO": _on_helo,
    b"MAIL": on_mail,
    b"RCPT": on_rcpt,
    b"DATA": on_data,
    b"BDAT": on_bdat,
    b"RSET": _on_rset,
    b"NOOP": _on_noop,
    b"VRFY": _on_vrfy,
    b"HELP": _on_help,
    b"ETRN": _on_etrn,
    b"QUIT": _on_quit,
    b"STARTTLS": _on_starttls,
}
