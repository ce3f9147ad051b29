"""A roster: who exists, without saying who. Every decision about one, none of its bytes.

Four questions are answered here:

1. May this header be believed at all? (`check_header`: raises RosterRefused)
2. Is it newer than what is known, and may it be put in force without asking
   anybody? (`judge_arrival`: serial, then guards)
3. What text stands for a local part? (`canonical_text`)
4. What does it say of one? (`RosterReader`): postmaster, rules, digest of the
   text with its subaddress, then without, catch-all, absent, in this order.

Spec: docs/protocol.md "The roster".
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from posthouse.domain.finding import Finding
from posthouse.domain.recipients import Fold, fold, fold_both, fold_case
from posthouse.domain.roster_rules import compile_rules
from posthouse.errors import AddressError, RosterRefused
from posthouse.mail.address import normalize_domain
from posthouse.mail.roster import RosterHeader, ScryptDigest
from posthouse.mail.wire_text import parse_time

MAX_AHEAD_SECONDS: Final = 300  # clocks differ
MAX_LIFETIME_SECONDS: Final = 90 * 86_400
DEFAULT_MAX_LOSS_PERCENT: Final = 20
POSTMASTER: Final = "postmaster"


# --------------------------------------------------------------------------- canonical text


def fold_of(header: RosterHeader) -> Fold:
    """How the primary reads a local part, in the terms of `domain/recipients`."""
    how = header.fold
    return Fold(case=how.case, delimiters=how.delimiters, dots=how.dots)


def canonical_text(content: str, how: Fold, *, cut: bool, domain: str) -> str:
    """The text that is digested: fold(content)@domain; "" when the fold leaves nothing.

    content: of a local part, unquoted; domain: as `normalize_domain` gives it.
    """
    local = fold(content, how, cut=cut)
    return f"{local}@{domain}" if local else ""


# --------------------------------------------------------------------------- may it be believed


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """What a pairing says of the rosters of one domain.

    party, publisher_key_ids: who may sign; roster_key_ids: which keys we hold.
    """

    domain: str
    party: str
    publisher_key_ids: Collection[str]
    roster_key_ids: Collection[str]


def check_header(header: RosterHeader, trust: Trust, *, now_s: int) -> None:
    """Check everything that needs neither signature nor body. now_s: seconds since 1970.

    Raises RosterRefused; its `check` is "header", "domain", "publisher", "key", "times"
    or "rules".
    """
    check_form(header)
    if header.domain != trust.domain:
        raise RosterRefused("domain", f"it is for {header.domain[:255]!r}, not {trust.domain}")
    if header.publisher.party != trust.party:
        raise RosterRefused("publisher", f"published by {header.publisher.party[:255]!r}")
    if header.publisher.key_id not in trust.publisher_key_ids:
        raise RosterRefused("publisher", f"signed with key {header.publisher.key_id}: not paired")
    if header.digest.key_id not in trust.roster_key_ids:
        raise RosterRefused("key", f"made with roster key {header.digest.key_id}: not ours")
    check_times(header, now_s=now_s)


def check_form(header: RosterHeader) -> None:
    """Check what the types of the header leave open; a publisher does it before it signs.

    Raises RosterRefused("header" or "rules").
    """
    if not _is_domain(header.domain):
        raise RosterRefused("header", "domain is not in lower-case A-labels")
    digest = header.digest
    if isinstance(digest, ScryptDigest) and digest.n & (digest.n - 1):
        raise RosterRefused("header", f"digest: n = {digest.n} is no power of two")
    for _, host in header.mx:
        if host != "." and not _is_domain(host):  # "." alone is the null MX (RFC 7505)
            raise RosterRefused("header", f"mx: {host[:255]!r} is no host name in A-labels")
    compile_rules(header.rules)


def check_times(header: RosterHeader, *, now_s: int) -> None:
    """Check the times of a roster on its arrival. Raises RosterRefused("times")."""
    issued, expires = parse_time(header.issued_at), parse_time(header.expires_at)
    if issued > now_s + MAX_AHEAD_SECONDS:
        raise RosterRefused("times", f"issued in the future, at {header.issued_at}")
    if expires <= issued:
        raise RosterRefused("times", "expires before it is issued")
    if expires - issued > MAX_LIFETIME_SECONDS:
        raise RosterRefused("times", "issued for more than 90 days")
    if expires <= now_s:
        raise RosterRefused("times", f"expired at {header.expires_at}")


def _is_domain(name: str) -> bool:
    try:
        return normalize_domain(name) == name
    except AddressError:
        return False


# --------------------------------------------------------------------------- may it be put in force


class KnownRoster(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a roster. head_sha256: hex, of its three lines; since the header
    has the hash of the body, equal heads are equal files.
    """

    serial: int
    key_id: str
    head_sha256: str
    count: int
    catch_all: bool


class History(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the rosters of one domain.

    highest: by key_id, the highest serial ever put in force or set aside, with its head.
    """

    in_force: KnownRoster | None = None
    set_aside: KnownRoster | None = None
    highest: Mapping[str, KnownRoster] = {}


class Arrival(enum.Enum):
    """What to do with a roster that has passed every check."""

    NOT_MODIFIED = "not modified"
    PUT_IN_FORCE = "put in force"
    SET_ASIDE = "set aside"


def judge_serial(new: KnownRoster, history: History) -> bool:
    """Tell whether the roster is news; False: it is, octet for octet, what is known already.

    Raises RosterRefused("serial") for a roll-back, and for a known serial with other octets.
    """
    highest = history.highest.get(new.key_id)
    if highest is None or new.serial > highest.serial:
        return True
    if new.serial < highest.serial:
        raise RosterRefused("serial", f"roll-back: {new.serial} after {highest.serial}")
    if new.head_sha256 != highest.head_sha256:
        raise RosterRefused("serial", f"serial {new.serial} is known with other contents")
    return new not in (history.in_force, history.set_aside)


def judge_arrival(
    new: KnownRoster, history: History, *, max_loss_percent: int = DEFAULT_MAX_LOSS_PERCENT
) -> tuple[Arrival, str]:
    """Decide about a roster that has passed every check; the text says why it is set aside.

    max_loss_percent: 0..100, how much of the count in force may go without asking.
    Raises RosterRefused("serial").
    """
    if not judge_serial(new, history):
        return Arrival.NOT_MODIFIED, ""
    old = history.in_force
    if old is None:
        if new.count <= 1 and not new.catch_all:
            return Arrival.SET_ASIDE, "the first roster names nobody but postmaster"
        return Arrival.PUT_IN_FORCE, ""
    if old.catch_all and not new.catch_all:
        return Arrival.SET_ASIDE, "catch_all turns false: whoever is not listed would be refused"
    lost = old.count - new.count
    if lost * 100 > old.count * max_loss_percent:
        share = f"{lost:,} of {old.count:,} entries are gone, more than {max_loss_percent} %"
        return Arrival.SET_ASIDE, share
    return Arrival.PUT_IN_FORCE, ""


# --------------------------------------------------------------------------- what it says


_ACTIONS: Final = {
    "accept": Finding.RULE,
    "reject": Finding.ABSENT,
    "trap": Finding.TRAP,
    "defer": Finding.DEFER,
}


class RosterReader:
    """The order of a look-up. Digests are computed and searched by whoever holds the body."""

    def __init__(self, header: RosterHeader) -> None:
        """Raises RosterRefused("rules") for a header that was not checked."""
        self.header = header
        self.how = fold_of(header)
        self.otherwise = Finding.CATCH_ALL if header.catch_all else Finding.ABSENT
        self.expires_s = parse_time(header.expires_at)
        self._at_domain = "@" + header.domain
        self._lowers = self.how.case == "lower"
        # Folding the plain case costs as much as all the rest of a look-up: it is done here.
        self._delimiters = None if self.how.dots == "drop" else tuple(self.how.delimiters)
        self._has_rules = bool(header.rules)
        self._match = compile_rules(header.rules)

    def find_early(self, content: str) -> Finding | None:
        """What postmaster and the rules say, without any digest; None: they are silent."""
        if len(content) == len(POSTMASTER) and content.lower() == POSTMASTER:
            return Finding.VOUCHED
        if self._has_rules:
            rule = self._match(fold_case(content, self.how))
            if rule is not None:
                return _ACTIONS[rule.action]
        return None

    def find_texts(self, content: str) -> tuple[str, str]:
        """The canonical texts to look for: subaddress kept, then cut ("" when not different)."""
        delimiters = self._delimiters
        if delimiters is not None and content and content.isascii():
            for delimiter in delimiters:
                if delimiter in content:
                    break
            else:
                return (content.lower() if self._lowers else content) + self._at_domain, ""
        kept, cut = fold_both(content, self.how)
        return (
            kept + self._at_domain if kept else "",
            cut + self._at_domain if cut and cut != kept else "",
        )

    def is_stale(self, now_s: int) -> bool:
        """From expires_at on it proves no absence any more."""
        return now_s >= self.expires_s
