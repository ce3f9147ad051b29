"""MAIL and RCPT parameters (RFC 1870, 3461, 6152, 6531) and what is wrong with them."""

from __future__ import annotations

import re

import msgspec

from posthouse.mail.reply import Reply

BAD_PARAMETER = Reply(501, "5.5.4", "Bad parameter value")
DUPLICATE_PARAMETER = Reply(501, "5.5.4", "Parameter given twice")
UNKNOWN_PARAMETER = Reply(555, "5.5.4", "Unsupported parameter")  # RFC 5321 §4.1.1.11
TOO_BIG = Reply(552, "5.3.4", "Message size exceeds fixed limit")  # RFC 1870 §6.1

_XTEXT = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})+\Z")  # RFC 3461 §4
_ORCPT_UTF8 = re.compile(r"(?i:utf-8);[^\x00-\x20\x7f]+\Z")  # RFC 6533 §3
_NOTIFY = frozenset({"SUCCESS", "FAILURE", "DELAY"})


class MailParams(msgspec.Struct, frozen=True):
    """Parameters of MAIL. size_bytes 0: not declared."""

    size_bytes: int = 0
    body: str = ""
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""


class RcptParams(msgspec.Struct, frozen=True):
    """Parameters of RCPT."""

    notify: str = ""
    orcpt: str = ""


_NO_MAIL = MailParams()
_NO_RCPT = RcptParams()


def _split(text: bytes) -> dict[str, bytes | None] | Reply:
    found: dict[str, bytes | None] = {}
    for word in text.split():
        name, equals, value = word.partition(b"=")
        key = name.decode("ascii", "replace").upper()
        if key in found:
            return DUPLICATE_PARAMETER
        found[key] = value if equals else None
    return found


def parse_mail_params(text: bytes, *, max_bytes: int) -> MailParams | Reply:
    """Read what follows the reverse-path. Returns the reply that refuses MAIL when it is wrong."""
    if not text:
        return _NO_MAIL
    words = _split(text)
    if isinstance(words, Reply):
        return words
    size, body, smtputf8, ret, envid = 0, "", False, "", ""
    for key, value in words.items():
        if key == "SIZE":
            if value is None or not value.isdigit() or len(value) > 20:  # RFC 1870 §3: 20 digits
                return BAD_PARAMETER
            size = int(value)
        elif key == "BODY":
            body = value.decode("ascii", "replace").upper() if value else ""
            if body not in ("7BIT", "8BITMIME"):  # BINARYMIME is not offered
                return BAD_PARAMETER
        elif key == "SMTPUTF8":
            if value is not None:
                return BAD_PARAMETER
            smtputf8 = True
        elif key == "RET":
            ret = value.decode("ascii", "replace").upper() if value else ""
            if ret not in ("FULL", "HDRS"):
                return BAD_PARAMETER
        elif key == "ENVID":
            if not value or len(value) > 100 or _XTEXT.match(value) is None:
                return BAD_PARAMETER
            envid = value.decode("ascii")
        else:
            return UNKNOWN_PARAMETER
    if size > max_bytes:
        return TOO_BIG
    return MailParams(size, body, smtputf8, ret, envid)


def parse_rcpt_params(text: bytes, *, smtputf8: bool) -> RcptParams | Reply:
    """Read what follows the forward-path. Returns the reply that refuses RCPT when it is wrong."""
    if not text:
        return _NO_RCPT
    words = _split(text)
    if isinstance(words, Reply):
        return words
    notify, orcpt = "", ""
    for key, value in words.items():
        if key == "NOTIFY":
            notify = value.decode("ascii", "replace").upper() if value else ""
            parts = notify.split(",")
            if notify != "NEVER" and (
                not notify or len(set(parts)) != len(parts) or not _NOTIFY.issuperset(parts)
            ):
                return BAD_PARAMETER
        elif key == "ORCPT":
            read = _read_orcpt(value or b"", smtputf8)
            if read is None:
                return BAD_PARAMETER
            orcpt = read
        else:
            return UNKNOWN_PARAMETER
    return RcptParams(notify, orcpt)


def _read_orcpt(value: bytes, smtputf8: bool) -> str | None:
    """addr-type ";" xtext, at most 500 octets (RFC 3461 §4.2); UTF-8 with SMTPUTF8 (RFC 6533)."""
    kind, semicolon, text = value.partition(b";")
    if not semicolon or not kind or not text or len(value) > 500:
        return None
    if _XTEXT.match(text) is not None and _XTEXT.match(kind) is not None:
        return value.decode("ascii")
    if smtputf8:
        try:
            decoded = value.decode("utf-8")
        except UnicodeDecodeError:
            return None
        if _ORCPT_UTF8.match(decoded) is not None:
            return decoded
    return None
