"""From a domain's DNS, or fixed places, to addresses to connect to, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posthouse.domain.drain import Event
from posthouse.domain.mxplan import (
    MAX_PLACES,
    Obstacle,
    Ourselves,
    Shuffle,
    plan_mx,
    rank_exchanges,
)
from posthouse.domain.nexthop import HostPort
from posthouse.errors import DnsTemporary, NextHopFailure
from posthouse.ports_dns import Resolver
from posthouse.ports_relay import Target
from posthouse.services.relay_settings import RelaySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Targets in the order to try them, or an obstacle and one line about it."""

    targets: tuple[Target, ...] = ()
    obstacle: Obstacle | None = None
    text: str = ""


async def find_way(
    resolver: Resolver,
    *,
    domain: str,
    hops: Sequence[HostPort],
    settings: RelaySettings,
    shuffle: Shuffle,
) -> Way:
    """Ask DNS where mail for `domain` may go now; `hops`, when given, are used instead of MX.

    Never raises: DNS failing is an obstacle too.
    """
    try:
        if hops:
            return await _follow_hops(resolver, hops)
        return await _follow_mx(resolver, domain, settings, shuffle)
    except DnsTemporary as error:
        return Way(obstacle=Obstacle.UNKNOWN, text=f"DNS: {error.detail}")


Failures = Sequence[tuple[Target, NextHopFailure]]


def judge_failures(failures: Failures) -> tuple[Event, str]:
    """No target took us: refused when every one said 5xx, else lost; and one line."""
    told = [
        f.detail if t.address in f.detail else f"{t.host}[{t.address}]:{t.port}: {f.detail}"
        for t, f in failures[:3]
    ]
    permanent = all(failure.permanent for _, failure in failures)
    return (Event.REFUSED if permanent else Event.LOST), "; ".join(told)


async def _follow_hops(resolver: Resolver, hops: Sequence[HostPort]) -> Way:
    addresses = await _look_up(resolver, [hop.host for hop in hops])
    targets = dict.fromkeys(
        Target(host=hop.host, address=address, port=hop.port)
        for hop in hops
        for address in addresses.get(hop.host, ())
    )
    if targets:
        return Way(targets=tuple(targets)[:MAX_PLACES])
    names = ", ".join(dict.fromkeys(hop.host for hop in hops))
    if len(addresses) < len({hop.host for hop in hops}):
        return Way(obstacle=Obstacle.UNKNOWN, text=f"DNS: no answer about {names}")
    return Way(obstacle=Obstacle.NO_ADDRESSES, text=f"no address for {names}")


async def _follow_mx(
    resolver: Resolver, domain: str, settings: RelaySettings, shuffle: Shuffle
) -> Way:
    mx = await resolver.find_mx(domain)
    hosts = [domain] if mx == () else rank_exchanges(mx or (), settings.own_names)
    plan = plan_mx(
        mx,
        await _look_up(resolver, hosts),
        domain=domain,
        ourselves=Ourselves(names=settings.own_names, addresses=settings.own_addresses),
        shuffle=shuffle,
    )
    targets = tuple(
        Target(host=place.host, address=place.address, port=settings.mx_port)
        for place in plan.places
    )
    return Way(targets=targets, obstacle=plan.obstacle, text=plan.text)


async def _look_up(resolver: Resolver, hosts: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Addresses by host; a host DNS has no answer about is left out."""
    unique = [host for host in dict.fromkeys(hosts) if not host.startswith("/")]
    found = await asyncio.gather(
        *(resolver.find_addresses(host) for host in unique), return_exceptions=True
    )
    # A path is a place on this host already: the socket of whoever fetches mail (ATRN).
    addresses: dict[str, Sequence[str]] = {h: (h,) for h in hosts if h.startswith("/")}
    for host, answer in zip(unique, found, strict=True):
        if isinstance(answer, DnsTemporary):
            continue
        if isinstance(answer, BaseException):
            raise answer
        addresses[host] = answer
    return addresses
