"""What asking the primary about an address tells (RFC 5321 §3.3: RCPT, then no mail).

A reply says something of the address only when the primary tells addresses
apart. So each conversation begins with questions whose answers are known: an
address nobody has (it must be refused), `postmaster` (it must be taken, §4.5.1)
and the one that was taken last. First match wins::

    reply to RCPT                      and the standard                     finding
    2xx                                the random address is refused        EXISTS
    2xx                                the random address is taken, or      UNDECIDED
                                       nothing is known of it
    5xx 5.1.x about the recipient      the last one taken is refused now,   UNDECIDED
                                       and postmaster is not taken
    5xx 5.1.x about the recipient      otherwise                            ABSENT
    5xx with the words of an unknown   postmaster is taken                  ABSENT
    user, and no enhanced code
    everything else                    any                                  UNDECIDED

5.1.7 and 5.1.8 are about the sender (RFC 3463 §3.2), whom we name. Words count
because Exim, qmail's kin and old Exchange send no enhanced codes; a server that
refuses *us* with such words ("550 mailbox unavailable") refuses postmaster too.
One that came back without its users refuses whom it took, and must not turn
that into bounces here.
A primary that takes the random address takes everybody: its yes says nothing,
and mail is not accepted on it here. That is what `when_unknown` is for; a
domain that really is a catch-all says so with `@domain` in its recipients file.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from posthouse.domain.replies import classify_reply, enhanced_code

_HOUR_US: Final = 3_600_000_000
POSITIVE_US: Final = 31 * 24 * _HOUR_US  # Postfix: address_verify_positive_expire_time
REFRESH_US: Final = 7 * 24 * _HOUR_US  # Postfix: address_verify_positive_refresh_time
SLEWED_US: Final = 60_000_000
NEGATIVE_US: Final = 2 * _HOUR_US  # Postfix 3d: too long for a mailbox that was just made
UNDECIDED_US: Final = 60_000_000
STANDARD_US: Final = _HOUR_US // 2

_ABOUT_THE_SENDER: Final = frozenset({"5.1.7", "5.1.8"})


class LiveFinding(enum.Enum):
    """What is known of one address. GUESSED and BUSY: nobody asked, see `services.live_check`."""

    EXISTS = "exists"
    ABSENT = "absent"
    UNDECIDED = "undecided"
    GUESSED = "guessed"
    BUSY = "busy"


class Probe(enum.Enum):
    """One reply to RCPT, by itself."""

    TAKEN = "taken"
    UNKNOWN = "unknown"  # by its enhanced code
    UNKNOWN_IN_WORDS = "unknown in words"
    OTHER = "other"

    @property
    def refused(self) -> bool:
        """The user is unknown, one way or the other."""
        return self in (Probe.UNKNOWN, Probe.UNKNOWN_IN_WORDS)


class Standard(msgspec.Struct, frozen=True, kw_only=True):
    """Replies to addresses of which the truth is known. last_taken: None when there is none."""

    random: Probe
    postmaster: Probe
    last_taken: Probe | None = None

    @property
    def takes_everybody(self) -> bool:
        """No yes of this primary says anything."""
        return self.random is Probe.TAKEN


class Entry(msgspec.Struct, frozen=True):
    """A finding that is remembered: EXISTS or ABSENT. checked_us: when the primary said so."""

    exists: bool
    checked_us: int


class Use(enum.Enum):
    """What a remembered finding is good for now."""

    FRESH = "fresh"
    AGING = "aging"  # good, and to be asked again when that is possible
    EXPIRED = "expired"


def classify_probe(code: int, text: str) -> Probe:
    """Read a reply to RCPT. text: with its enhanced code, if it has one."""
    if code in (250, 251):
        return Probe.TAKEN
    if code // 100 != 5:
        return Probe.OTHER
    enhanced = enhanced_code(text)
    if enhanced:
        about = enhanced.startswith("5.1.") and enhanced not in _ABOUT_THE_SENDER
        return Probe.UNKNOWN if about else Probe.OTHER
    words = code in (550, 551, 553) and classify_reply(code, text, "rcpt").reason == "unknown"
    return Probe.UNKNOWN_IN_WORDS if words else Probe.OTHER


def decide_finding(probe: Probe, standard: Standard) -> LiveFinding:
    """See the table of the module."""
    if probe is Probe.TAKEN:
        return LiveFinding.EXISTS if standard.random.refused else LiveFinding.UNDECIDED
    if not probe.refused:
        return LiveFinding.UNDECIDED
    if standard.postmaster is Probe.TAKEN:
        return LiveFinding.ABSENT
    lost_its_users = standard.last_taken is not None and standard.last_taken.refused
    believed = probe is Probe.UNKNOWN and not lost_its_users
    return LiveFinding.ABSENT if believed else LiveFinding.UNDECIDED


def judge_age(entry: Entry, now_us: int) -> Use:
    """What an entry is good for at `now_us`.

    One from the future, by more than a clock is slewed, was written by a clock that was
    ahead: a no is forgotten, since it would stand until that time came again; a yes is good,
    and asked again.
    """
    age_us = now_us - entry.checked_us
    if not entry.exists:
        return Use.FRESH if -SLEWED_US <= age_us < NEGATIVE_US else Use.EXPIRED
    if age_us >= POSITIVE_US:
        return Use.EXPIRED
    return Use.FRESH if -SLEWED_US <= age_us < REFRESH_US else Use.AGING
