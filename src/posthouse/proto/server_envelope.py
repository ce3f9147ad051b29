"""MAIL and RCPT at the server: who sends, to whom, and with which parameters.

Order, limits and syntax are answered here; what is well formed comes out as an
event, and waits for the owner's answer. Raises nothing on any input.

Spec: RFC 5321 §4.1.1.2, §4.1.1.3, §4.5.3.1.10; parameters: `server_params`.
"""

from __future__ import annotations

from typing import Final

from posthouse.errors import AddressError
from posthouse.mail.address import NeedsUtf8, parse_path
from posthouse.mail.reply import Reply
from posthouse.proto import server_params
from posthouse.proto import server_replies as replies
from posthouse.proto.server_events import Event, Mail, Rcpt
from posthouse.proto.server_state import ServerState

_MANY_RCPT: Final = replies.MANY_RCPT.encode()
# Recipients over the limit that are no error yet (precedent: Postfix
# smtpd_recipient_overshoot_limit); a client that goes on for ever is cut.
_RECIPIENT_OVERSHOOT: Final = 1000


def on_mail(session: ServerState, argument: bytes) -> Event | None:
    """MAIL, as it is spelled by whom the fast path does not know."""
    split = _split_path(argument, b"FROM:")
    if split is not None:
        return mail_path(session, *split)
    if not session.helo:
        session.say(replies.HELO_FIRST)
    else:
        session.say(replies.NESTED_MAIL if session.in_transaction else replies.MAIL_SYNTAX)
    return None


def mail_path(session: ServerState, path: bytes, rest: bytes) -> Event | None:
    """MAIL, with what stood between the angle brackets and what followed."""
    if not session.helo:
        session.say(replies.HELO_FIRST)
        return None
    if session.in_transaction:
        session.say(replies.NESTED_MAIL)
        return None
    if rest and not session.esmtp:
        session.say(server_params.UNKNOWN_PARAMETER)
        return None
    params = server_params.parse_mail_params(rest, max_bytes=session.limits.max_message_bytes)
    if isinstance(params, Reply):
        session.say(params)
        return None
    try:
        sender = parse_path(path, utf8=params.smtputf8)
    except AddressError as error:
        session.say(replies.SENDER_UTF8 if isinstance(error, NeedsUtf8) else replies.BAD_SENDER)
        return None
    session.sender, session.params, session.in_transaction = sender, params, True
    session.awaiting = Mail
    return Mail(sender, params)


def on_rcpt(session: ServerState, argument: bytes) -> Event | None:
    """RCPT, as it is spelled by whom the fast path does not know."""
    split = _split_path(argument, b"TO:")
    if split is None:
        session.say(replies.RCPT_SYNTAX if session.in_transaction else replies.NEED_MAIL)
        return None
    return rcpt_path(session, *split)


def rcpt_path(session: ServerState, path: bytes, rest: bytes) -> Event | None:
    """RCPT, with what stood between the angle brackets and what followed."""
    if not session.in_transaction:
        session.say(replies.NEED_MAIL if session.helo else replies.HELO_FIRST)
        return None
    if session.chunks:
        session.say(replies.NOT_NOW)
        return None
    if session.accepted >= session.limits.max_recipients:
        _refuse_one_more(session)
        return None
    params = server_params.parse_rcpt_params(rest, smtputf8=session.params.smtputf8)
    if rest and not session.esmtp:
        params = server_params.UNKNOWN_PARAMETER
    if isinstance(params, Reply):
        session.say(params)
        return None
    try:
        mailbox = parse_path(path, utf8=session.params.smtputf8, allow_bare="postmaster")
    except AddressError as error:
        session.refused_rcpt += 1
        session.say(replies.SENDER_UTF8 if isinstance(error, NeedsUtf8) else replies.BAD_RECIPIENT)
        return None
    if mailbox is None:
        session.refused_rcpt += 1
        session.say(replies.BAD_RECIPIENT)
        return None
    session.awaiting = Rcpt
    return Rcpt(mailbox, params)


def _refuse_one_more(session: ServerState) -> None:
    """Over the limit, which is no error of the client's (RFC 5321 §4.5.3.1.10) for long."""
    session.out.append(_MANY_RCPT)
    session.over_limit += 1
    if session.over_limit > _RECIPIENT_OVERSHOOT:
        session.errors += 1


def _split_path(argument: bytes, keyword: bytes) -> tuple[bytes, bytes] | None:
    """Split 'FROM:<path> params' into (path, params); quotes may hide ">" (RFC 5321 §4.1.2)."""
    if argument[: len(keyword)].upper() != keyword:
        return None
    text = argument[len(keyword) :].lstrip(b" ")
    if not text.startswith(b"<"):
        return None
    quoted = False
    index = 1
    while index < len(text):
        octet = text[index]
        if octet == 0x5C and quoted:  # backslash
            index += 1
        elif octet == 0x22:
            quoted = not quoted
        elif octet == 0x3E and not quoted:
            rest = text[index + 1 :]
            if rest and not rest.startswith(b" "):
                return None
            return text[1:index], rest.strip(b" ")
        index += 1
    return None
