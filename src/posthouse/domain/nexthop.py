"""How next hops are named and written in a configuration, and when they are probed.

A next hop is where the mail of one or more domains goes home. Its state is the
business of `posthouse.domain.drain`.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple


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


def pull_socket_name(domain: str) -> str:
    """Name the unix socket where whoever fetches the mail of `domain` is found; constant length."""
    return f"atrn-{hashlib.blake2b(domain.encode(), digest_size=8).hexdigest()}.sock"


_FETCHED: Final = "atrn:"
WAITS: Final = "waits until it fetches its mail (ATRN)"


def is_fetched(next_hop: str) -> bool:
    """Tell whether this is a primary that dials in: that it is not there is how it should be."""
    return next_hop.startswith(_FETCHED)


def next_hop_key(domain: str, hops: Iterable[HostPort]) -> str:
    """Name a next hop: those with the same fixed places are one; one that follows MX is alone."""
    places = list(hops)
    if places and places[0].host.startswith("/"):  # a unix socket: fetched with ATRN
        return f"{_FETCHED}{domain}"
    return ",".join(map(str, places)) or f"mx:{domain}"


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
