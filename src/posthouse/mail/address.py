"""Paths and mailboxes of the SMTP envelope (RFC 5321 §4.1.2, RFC 6531 §3.3).

Parsing is ours because what a relay may accept is its own business: header
parsers such as `email.utils` are for other text. Domains are compared as
lower-case A-labels (IDNA2008 through UTS 46, non-transitional); local parts
are only unquoted here, folding them is the recipient list's affair.
"""

from __future__ import annotations

import re
from functools import lru_cache

import idna
import msgspec

from posthouse.errors import AddressError

# RFC 5321 §4.5.3.1: local part 64, domain 255, path 256 octets. Real local parts
# grow past 64 (BATV, VERP, SRS): Postfix and Exim relay them, and so do we.
MAX_LOCAL_OCTETS = 255
MAX_DOMAIN_OCTETS = 255

_SIMPLE = re.compile(
    rb"([A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*)"
    rb"@([A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)\Z"
)
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]"
_DOT_STRING = re.compile(rf"{_ATEXT}+(?:\.{_ATEXT}+)*\Z")
# Real servers meet "a..b@" and "a.@" (old Japanese mobile mailboxes); who exists is decided by
# the list, so dots are taken as they come (precedent: Postfix, resolve_dequoted_address).
_LOOSE_DOTS = re.compile(rf"(?:{_ATEXT}|\.)+\Z")
_QUOTED = re.compile(r'"((?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*)"\Z')
_QUOTED_PAIR = re.compile(r"\\(.)")
_LITERAL = re.compile(r"\[[A-Za-z0-9:.-]{1,64}\]\Z")
_ROUTE = re.compile(r"@[^@:,<>\s]+(?:,@[^@:,<>\s]+)*:")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?\Z")


class Mailbox(msgspec.Struct, frozen=True, gc=False):
    """One mailbox of a path.

    spelled: as the client gave it, source route and final dot removed; local: content of the
    local part, quotes and backslashes of a quoted-string removed; domain:
    lower-case A-labels, an address literal in brackets, or "" for a bare local part.
    """

    spelled: str
    local: str
    domain: str

    @property
    def ascii(self) -> bool:
        """True when the spelling needs no SMTPUTF8."""
        return self.spelled.isascii()


@lru_cache(maxsize=4096)
def normalize_domain(domain: str) -> str:
    """Bring a domain to lower-case A-labels; one trailing dot is dropped.

    Raises AddressError for what is no host name. Underscores are let pass:
    such domains exist and only the DNS can say whether they receive mail.
    The length is looked at first: mapping is slow, and UTS 46 drops characters,
    so that a domain could be padded without end.
    Spec: RFC 5891 §4.4 (look-up), UTS 46, RFC 5321 §4.5.3.1.2.
    """
    name = domain[:-1] if domain.endswith(".") else domain
    if len(name) > MAX_DOMAIN_OCTETS:
        raise AddressError(f"domain over {MAX_DOMAIN_OCTETS} octets")
    if not name.isascii():
        try:
            if len(name.encode()) > MAX_DOMAIN_OCTETS:
                raise AddressError(f"domain over {MAX_DOMAIN_OCTETS} octets")
            name = idna.encode(name, uts46=True, transitional=False).decode("ascii")
        except (idna.IDNAError, UnicodeError) as error:
            raise AddressError(f"not an IDNA domain: {domain!r}: {error}") from error
    name = name.lower()
    if not name or len(name) > MAX_DOMAIN_OCTETS:
        raise AddressError(f"domain empty or over {MAX_DOMAIN_OCTETS} octets")
    for label in name.split("."):
        if len(label) > 63 or _LABEL.match(label) is None:
            raise AddressError(f"not a domain name: {domain!r}")
    return name


def parse_path(raw: bytes, *, utf8: bool, allow_bare: str = "") -> Mailbox | None:
    """Read what stands between "<" and ">".

    Returns None for the null path. utf8: SMTPUTF8 was asked for, so UTF-8 is
    allowed. allow_bare: the one local part (lower case) that may stand without
    a domain, e.g. "postmaster" (RFC 5321 §4.1.1.3).
    Raises AddressError; its `detail` says what is wrong.
    """
    simple = _SIMPLE.match(raw)
    if simple is not None:
        local, domain = simple.groups()
        if len(local) <= MAX_LOCAL_OCTETS:
            spelled = raw.decode("ascii")
            return Mailbox(spelled, local.decode("ascii"), normalize_domain(domain.decode("ascii")))
    if not raw:
        return None
    return _parse_slowly(_decode(raw, utf8), allow_bare)


def _decode(raw: bytes, utf8: bool) -> str:
    try:
        text = raw.decode("utf-8" if utf8 else "ascii")
    except UnicodeDecodeError as error:
        if not utf8 and not raw.isascii():
            raise NeedsUtf8("address has octets over 127 without SMTPUTF8") from error
        raise AddressError("address is not UTF-8") from error
    return text


class NeedsUtf8(AddressError):
    """The address needs SMTPUTF8, which was not asked for (RFC 6531 §3.5)."""

    public = "address requires SMTPUTF8"


def _parse_slowly(text: str, allow_bare: str) -> Mailbox:
    route = _ROUTE.match(text)
    if route is not None:  # RFC 5321 §4.1.1.3: strip source routes
        text = text[route.end() :]
    local, at, domain = text.rpartition("@")
    if not at:
        if allow_bare and text.lower() == allow_bare:
            return Mailbox(text, text, "")
        raise AddressError("address has no domain")
    content = unquote_local_part(local)
    if len(content.encode()) > MAX_LOCAL_OCTETS:
        raise AddressError(f"local part over {MAX_LOCAL_OCTETS} octets")
    if domain.startswith("["):
        if _LITERAL.match(domain) is None:
            raise AddressError("not an address literal")
        return Mailbox(text, content, domain.lower())
    spelled = text.removesuffix(".")  # the root's dot is no part of a mailbox (RFC 5321 §2.3.5)
    return Mailbox(spelled, content, normalize_domain(domain))


def unquote_local_part(local: str) -> str:
    """The content of a local part: of a quoted-string the quotes and backslashes are removed.

    Raises AddressError when it is neither a dot-string nor a quoted-string.
    """
    quoted = _QUOTED.match(local)
    if quoted is not None:
        content = _QUOTED_PAIR.sub(r"\1", quoted.group(1))
        if not content:
            raise AddressError("empty local part")
        return content
    if _DOT_STRING.match(local) is None and _LOOSE_DOTS.match(local) is None:
        raise AddressError("bad local part")
    return local


def quote_local_part(content: str) -> str:
    """Spell the content of a local part: as it is where that is possible, else quoted."""
    if _LOOSE_DOTS.match(content) is not None:
        return content
    return '"' + content.replace("\\", "\\\\").replace('"', '\\"') + '"'
