"""The state of one next hop, and how it is written in a configuration.

A next hop is where the mail of one or more domains goes home. States:

UP      mail flows, or would if there were any
DOWN    it does not answer, answers 4xx before taking mail, or DNS is unwell
BLOCKED every address refuses us for good (5xx) at connect, EHLO, STARTTLS or MAIL
HELD    DNS leaves nobody better than ourselves to send to

Nothing is sent unless UP. From every other state a probe leads back; it runs
each `probe_interval` (give or take a tenth, so that many nodes do not knock
together), and mail waits untouched meanwhile: an outage costs it no attempt.

Moves (letters are cited by code, tests and docs)::

    event        UP            DOWN          BLOCKED       HELD
    GREETED      -             (u) UP        (u) UP        (u) UP
    LOST         (l) DOWN      -             (l) DOWN      (l) DOWN
    REFUSED      (b) BLOCKED   (b) BLOCKED   -             (b) BLOCKED
    NO_WAY       (n) HELD      (n) HELD      (n) HELD      -

    (u) a probe or a session went through: the queue drains at once
    (l) no connection, time-out, 4xx greeting or EHLO, TLS failure, DNS trouble,
        or sessions that keep breaking
    (b) 5xx that is about us, not about a message or a user: alert
    (n) a finding of `mxplan`: alert
    -   the state stays, only the reason is brought up to date
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple


class State(enum.StrEnum):
    """See the module's table. The values are shown by `status` and in logs."""

    UP = "up"
    DOWN = "down"
    BLOCKED = "blocked"
    HELD = "held by DNS"


class Event(enum.Enum):
    """What was learned about a next hop."""

    GREETED = "greeted"
    LOST = "lost"
    REFUSED = "refused"
    NO_WAY = "no way"


MOVES: Final = {
    (State.DOWN, Event.GREETED): State.UP,  # (u)
    (State.BLOCKED, Event.GREETED): State.UP,  # (u)
    (State.HELD, Event.GREETED): State.UP,  # (u)
    (State.UP, Event.LOST): State.DOWN,  # (l)
    (State.BLOCKED, Event.LOST): State.DOWN,  # (l)
    (State.HELD, Event.LOST): State.DOWN,  # (l)
    (State.UP, Event.REFUSED): State.BLOCKED,  # (b)
    (State.DOWN, Event.REFUSED): State.BLOCKED,  # (b)
    (State.HELD, Event.REFUSED): State.BLOCKED,  # (b)
    (State.UP, Event.NO_WAY): State.HELD,  # (n)
    (State.DOWN, Event.NO_WAY): State.HELD,  # (n)
    (State.BLOCKED, Event.NO_WAY): State.HELD,  # (n)
}
"""What is not in the table keeps its state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """One next hop's state. since_us: when it came into it; why: one line, "" when UP."""

    state: State = State.UP
    since_us: int = 0
    why: str = ""

    @property
    def flowing(self) -> bool:
        """True when mail may be sent."""
        return self.state is State.UP


def move(health: Health, event: Event, *, now_us: int, why: str) -> Health:
    """Apply one event. A state that stays keeps its `since_us` and takes the new reason."""
    state = MOVES.get((health.state, event), health.state)
    if state is State.UP:
        why = ""
    if state is health.state:
        return (
            health if why == health.why else Health(state=state, since_us=health.since_us, why=why)
        )
    return Health(state=state, since_us=now_us, why=why)


def probe_delay_us(interval_us: int, roll: Callable[[], float]) -> int:
    """The next probe's delay: the interval give or take a tenth. roll: uniform in [0, 1)."""
    return int(interval_us * (0.9 + 0.2 * roll()))


def patience_seconds(interval_us: int) -> float:
    """How long one place may take to greet, or to answer a probe, before the next is tried."""
    return max(5.0, interval_us / 1e6)


def quick_probe_delay_us(interval_us: int, refusals: int) -> int:
    """The delay after a MAIL was refused with 5xx: a second, doubled by each refusal in a row.

    A probe with the null sender tells soon whether we or that one sender were
    meant, so a stranger's bad sender address does not stop the queue for long.
    refusals: 5xx at MAIL since the last delivery, this one included, >= 1.
    """
    return min(interval_us, 1_000_000 << min(refusals - 1, 30))


# --------------------------------------------------------------------------- as configured


class HostPort(NamedTuple):
    """One fixed place: a host name in lower case or an IP text, and a TCP port 1..65535."""

    host: str
    port: int = 25

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"smtp://{host}:{self.port}"


def parse_next_hop(text: str) -> HostPort:
    """Read "smtp://host", "smtp://192.0.2.1:2525", "smtp://[2001:db8::1]:25".

    Raises ValueError with a line that says what is wrong.
    """
    scheme, separator, rest = text.strip().partition("://")
    if not separator or scheme.lower() != "smtp":
        raise ValueError(f"{text!r}: a next hop is written smtp://host or smtp://host:port")
    rest = rest.removesuffix("/")
    if any(c in rest for c in "/?#@") or not rest or not rest.isprintable():
        raise ValueError(f"{text!r}: nothing but host and port may follow smtp://")
    if rest.startswith("["):
        host, closing, port = rest[1:].partition("]")
        if not closing or (port and not port.startswith(":")):
            raise ValueError(f"{text!r}: an IPv6 address is written smtp://[address]:port")
        try:
            host = str(ipaddress.IPv6Address(host))
        except ValueError:
            raise ValueError(f"{text!r}: {host!r} is not an IPv6 address") from None
        port = port[1:] if port else "25"
    else:
        if rest.count(":") > 1:
            raise ValueError(f"{text!r}: an IPv6 address needs brackets: smtp://[address]:port")
        host, _, port = rest.partition(":")
        host, port = _check_host(text, host), port if ":" in rest else "25"
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        raise ValueError(f"{text!r}: {port!r} is not a port (1 to 65535)")
    return HostPort(host, int(port))


def next_hop_key(domain: str, hops: Iterable[HostPort]) -> str:
    """Name a next hop: those with the same fixed places are one; one that follows MX is alone."""
    return ",".join(map(str, hops)) or f"mx:{domain}"


def _check_host(text: str, host: str) -> str:
    host = host.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(
        0 < len(label) <= 63 and all(c.isascii() and (c.isalnum() or c in "-_") for c in label)
        for label in labels
    ):
        raise ValueError(f"{text!r}: {host!r} is not a host name or an IPv4 address (use A-labels)")
    if labels[-1].isdigit():
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError(f"{text!r}: {host!r} is not an IPv4 address") from None
    return host
