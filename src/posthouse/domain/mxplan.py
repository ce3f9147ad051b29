"""Where a backed-up domain's mail may go: only to MXes strictly better than ourselves.

Promise: a plan never names this host, nor a host at this host's own preference
or worse, so two backups can never hand the same mail to each other. When DNS
leaves nobody to send to, the plan says why in one plain line; the mail is kept.
RFC 5321 §5.1 would return it as undeliverable when we are the best MX, and
Postfix, qmail and Sendmail do; a slip in a zone file must not destroy a queue,
so we hold and alert (Exim's `self = freeze` is the precedent).

Spec: RFC 5321 §5.1 (MX order, discarding our own level), RFC 7505 (null MX).
Fails: never raises on what DNS can hold; what is malformed is skipped.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, Final, NamedTuple, Protocol

MAX_EXCHANGES: Final = 64
"""MX records looked at, best first. A response can hold thousands; nobody needs more than 20."""

MAX_PLACES: Final = 32
"""Addresses in one plan. Postfix stops at 5 (smtp_mx_address_limit), too few for a dual-stack
domain with five MXes; more than this only makes an outage slower to notice."""

Shuffle = Callable[[list[Any]], None]


class Exchange(Protocol):
    """One MX record as the resolver hands it over: A-labels, lower case; "" is the null MX."""

    @property
    def preference(self) -> int: ...
    @property
    def exchange(self) -> str: ...


class Place(NamedTuple):
    """One address to try. host: its name for logs and TLS; address: IP text."""

    host: str
    address: str


class Obstacle(enum.Enum):
    """Why there is nobody to send to. The value is what `status` shows."""

    NO_DOMAIN = "no such domain"
    NULL_MX = "null MX"
    SELF_BEST = "self is best MX"
    NOT_LISTED = "own name not among the MX records"
    NO_ADDRESSES = "no MX with addresses"
    UNKNOWN = "DNS gave no answer"

    @property
    def temporary(self) -> bool:
        """True when DNS may simply be unwell: wait quietly, as for a host that is down."""
        return self in (Obstacle.NO_ADDRESSES, Obstacle.UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Places in the order to try them, or an obstacle and one line about it."""

    places: tuple[Place, ...] = ()
    obstacle: Obstacle | None = None
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ourselves:
    """What this host is known by.

    names: A-labels, lower case, no trailing dot. addresses: IP texts and, for
    whole ranges, "address/length"; addresses behind which we are reached
    through NAT belong here too.
    """

    names: frozenset[str]
    addresses: frozenset[str]

    def include(self, host: str, addresses: Iterable[str]) -> bool:
        """True when `host` is one of our names or any of `addresses` is ours."""
        if host in self.names:
            return True
        singles, networks = _own_addresses(self.addresses)
        for text in addresses:
            address = _parse_address(text)
            if address is not None and (
                address in singles or any(address in network for network in networks)
            ):
                return True
        return False


def rank_exchanges(mx: Sequence[Exchange], names: frozenset[str]) -> list[str]:
    """Name the hosts whose addresses `plan_mx` needs, best first.

    Those at or behind our own name need none: they are discarded whatever they are.
    """
    ranked = sorted(mx, key=lambda record: record.preference)[:MAX_EXCHANGES]
    own = min((r.preference for r in ranked if r.exchange in names), default=None)
    hosts = [r.exchange for r in ranked if r.exchange and (own is None or r.preference < own)]
    return list(dict.fromkeys(hosts))


def plan_mx(
    mx: Sequence[Exchange] | None,
    addresses: Mapping[str, Sequence[str]],
    *,
    domain: str,
    ourselves: Ourselves,
    shuffle: Shuffle,
) -> Plan:
    """Decide where mail for `domain` may go.

    mx: as published; None when the domain does not exist, () when it has no MX.
    addresses: of every host of `rank_exchanges` (of `domain` itself when mx is
    ()), IPv4 and IPv6 in the order to try; () when it has none. A host that is
    missing from the map could not be asked: it is no target now, and while it
    might have been us, "not listed" is not concluded.
    shuffle: orders hosts of equal preference in place (RFC 5321 §5.1 MUST).
    """
    if mx is None:
        return _stuck(Obstacle.NO_DOMAIN, f"{domain} does not exist in DNS; its mail is kept")
    if not mx:
        return _plan_implicit(domain, addresses, ourselves)
    ranked = sorted(mx, key=lambda record: record.preference)[:MAX_EXCHANGES]
    listed = [record for record in ranked if record.exchange]
    if not listed:
        return _stuck(
            Obstacle.NULL_MX, f"{domain} publishes a null MX (accepts no mail); its mail is kept"
        )
    own = min(
        (
            r.preference
            for r in listed
            if ourselves.include(r.exchange, addresses.get(r.exchange, ()))
        ),
        default=None,
    )
    if own is None:
        if any(record.exchange not in addresses for record in listed):
            return _stuck(Obstacle.UNKNOWN, f"some MX hosts of {domain} could not be looked up")
        return _stuck(
            Obstacle.NOT_LISTED,
            f"no MX of {domain} is this host, so none is proven better; its mail is kept",
        )
    better = [record for record in listed if record.preference < own]
    if not better:
        return _stuck(
            Obstacle.SELF_BEST,
            f"this host is the best MX of {domain} (preference {own}); its mail is kept",
        )
    places = _order(better, addresses, shuffle)
    if not places:
        return _stuck(Obstacle.NO_ADDRESSES, f"no better MX of {domain} has an address now")
    return Plan(places=places)


def _plan_implicit(
    domain: str, addresses: Mapping[str, Sequence[str]], ourselves: Ourselves
) -> Plan:
    """No MX: the domain itself is one, preference 0 (RFC 5321 §5.1)."""
    if domain not in addresses:
        return _stuck(Obstacle.UNKNOWN, f"the addresses of {domain} could not be looked up")
    if ourselves.include(domain, addresses[domain]):
        return _stuck(
            Obstacle.SELF_BEST, f"{domain} has no MX and is this host itself; its mail is kept"
        )
    places = tuple(_places_of(domain, addresses))[:MAX_PLACES]
    if not places:
        return _stuck(Obstacle.NO_ADDRESSES, f"{domain} has neither an MX nor an address now")
    return Plan(places=places)


def _order(
    better: Sequence[Exchange], addresses: Mapping[str, Sequence[str]], shuffle: Shuffle
) -> tuple[Place, ...]:
    places: dict[str, Place] = {}  # by address: a host listed twice, or two names of one host
    for _, level in groupby(better, key=lambda record: record.preference):
        hosts = [record.exchange for record in level]
        shuffle(hosts)
        for host in hosts:
            for place in _places_of(host, addresses):
                places.setdefault(place.address, place)
    return tuple(places.values())[:MAX_PLACES]


def _places_of(host: str, addresses: Mapping[str, Sequence[str]]) -> Iterable[Place]:
    for text in addresses.get(host, ()):
        address = _parse_address(text)
        # 0.0.0.0 and :: are this very machine to connect(2), multicast is nobody.
        if address is not None and not address.is_unspecified and not address.is_multicast:
            yield Place(host, str(address))


def _stuck(obstacle: Obstacle, text: str) -> Plan:
    return Plan(obstacle=obstacle, text=text)


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _parse_address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


@lru_cache(maxsize=8)
def _own_addresses(texts: frozenset[str]) -> tuple[frozenset[_Address], tuple[_Network, ...]]:
    singles = {address for text in texts if (address := _parse_address(text)) is not None}
    networks = tuple(ipaddress.ip_network(text, strict=False) for text in texts if "/" in text)
    return frozenset(singles), networks
