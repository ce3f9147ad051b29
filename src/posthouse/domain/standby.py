"""What a backup does while the primary is up: `domain.standby`.

relay   accept and pass on
defer   451 4.3.2 at RCPT: the client is to use the more preferred MX. A client
        that keeps coming back plainly cannot reach it, and is let in.
proxy   the primary answers itself, through us, within the session

A client that can reach the primary never needs us; what comes to a backup
meanwhile is mostly from bots that try the last MX first and never come again.
But paths break between two hosts while both are well (the seed's asymmetric
routes), and RFC 5321 §5.1 makes such a client try every MX, again and again.
So nobody is turned away for good: the same sender and recipient, turned away
`patience` times over `window_us` at least, are accepted, from whatever address
they come (large senders retry from many), and so is everything else for that
domain from the network that proved it, for `PROVEN_US`.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

PATIENCE_US: Final = 15 * 60 * 1_000_000
"""A client that can reach the primary was there long before; RFC 5321 §4.5.4.1 asks clients
to wait 30 minutes between tries, impatient ones wait 5."""

FORGET_US: Final = 5 * 86400 * 1_000_000
"""Give-up time of RFC 5321 §4.5.4.1: who comes later begins anew."""

PROVEN_US: Final = 12 * 3600 * 1_000_000
"""How long a network that proved it cannot reach the primary is believed."""


class Standby(enum.Enum):
    """See the module."""

    RELAY = "relay"
    DEFER = "defer"
    PROXY = "proxy"


class Turned(msgspec.Struct, frozen=True):
    """How often one sender and recipient were turned away. Instants in microseconds since 1970."""

    first_us: int
    last_us: int
    times: int


def decide_turn(
    known: Turned | None, *, now_us: int, patience: int, window_us: int = PATIENCE_US
) -> Turned | None:
    """Turn the client away (what to remember of it), or let it in: None.

    known: what was remembered; patience: how often it is turned away, >= 1; window_us: over
    how long at least.
    A clock set back begins anew; it never lets anybody wait longer.
    """
    if known is None or not known.first_us <= now_us <= known.first_us + FORGET_US:
        return Turned(now_us, now_us, 1)
    if known.times >= patience and now_us - known.first_us >= window_us:
        return None
    return Turned(known.first_us, now_us, min(known.times + 1, 0xFFFF))


def is_proven(proven_us: int | None, *, now_us: int) -> bool:
    """Tell whether a network's proof still counts. proven_us: when it was given, if ever."""
    return proven_us is not None and 0 <= now_us - proven_us <= PROVEN_US


_OF_US: Final = (
    "client host",  # Postfix: "Client host [192.0.2.1] blocked using …", "Client host rejected: …"
    "blocked using",
    "helo command rejected",
    "your host",
    "your ip",
    "your reverse",
    "sending host",
)


def speaks_of_us(text: str) -> bool:
    """Tell whether a refusal at RCPT means the host that asks: us, not the client or its mail.

    Postfix gives its verdict on a client at RCPT only (`smtpd_delay_reject`), others too.
    """
    lower = text.lower()
    return any(words in lower for words in _OF_US)
