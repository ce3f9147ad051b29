"""What the relay is told, and what it tells: plain values, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from posthouse.domain.drain import State
from posthouse.domain.nexthop import HostPort, next_hop_key

_SECOND: Final = 1_000_000
_MIB: Final = 1 << 20


class RouteSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How one domain's mail goes home: fixed places tried in order, or () to follow its MX."""

    hops: tuple[HostPort, ...] = ()


class RelaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one worker's relay.

    own_names: A-labels, lower case. own_addresses: IP texts or "address/length";
    the node puts in those it listens on (with a wildcard: all of the host's,
    loopback too) and those of `relay.own_addresses`.
    probe_interval_us > 0. watch_interval_us: between looks at a next hop that is up and has no
    mail, 0 = none. retry_us: not empty, each > 0, the last repeats.
    concurrency: sessions per next hop of *this* worker, >= 1. drain_rate: messages a second
    of *this* worker to one next hop while it drains, 0 = as many as go.
    surge_share, surge_window, surge_least: see `domain.drain.SurgeGuard`.
    idle_seconds: a session without work is closed after this, at most twice this.
    batch_messages, batch_bytes: one claim. body_bytes: bodies in memory, all next
    hops together; beyond it, bodies are streamed from disk.
    mx_port: 25 except in rehearsals.
    """

    own_names: frozenset[str]
    own_addresses: frozenset[str] = frozenset()
    probe_interval_us: int = 30 * _SECOND
    watch_interval_us: int = 0
    retry_us: tuple[int, ...] = (60 * _SECOND, 300 * _SECOND, 900 * _SECOND, 1800 * _SECOND)
    concurrency: int = 20  # Postfix: default_destination_concurrency_limit
    idle_seconds: float = 2.0  # Postfix: smtp_connection_cache_time_limit
    batch_messages: int = 100
    batch_bytes: int = 4 * _MIB
    body_bytes: int = 24 * _MIB
    mx_port: int = 25
    drain_rate: float = 0.0
    surge_share: float = 0.2
    surge_window: int = 50
    surge_least: int = 5


CONDITIONS: Final = {
    State.DOWN: "next-hop-down",
    State.BLOCKED: "next-hop-blocked",
    State.HELD: "next-hop-held",
    State.SURGE_STOPPED: "drain-stopped",
    State.SUSPENDED: "next-hop-suspended",
}
"""States a person should know of, and the kind of alert they are."""


def group_routes(
    routes: Mapping[str, RouteSettings],
) -> dict[str, tuple[tuple[HostPort, ...], tuple[str, ...]]]:
    """Each next hop once: key → its fixed places (() follows MX), its domains."""
    shared: dict[str, list[str]] = {}
    for domain, route in routes.items():
        shared.setdefault(next_hop_key(domain, route.hops), []).append(domain)
    return {key: (routes[domains[0]].hops, tuple(domains)) for key, domains in shared.items()}


class NextHopStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One next hop for `posthouse status`.

    sessions: open now. in_hand: messages read from the spool and not settled
    by a reply yet. next_probe_us: None while mail flows.
    """

    next_hop: str
    domains: tuple[str, ...]
    state: State
    since_us: int
    why: str
    sessions: int
    in_hand: int
    next_probe_us: int | None


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """Something a person should see, for as long as it lasts. kind: a word for filters."""

    kind: str
    text: str
    since_us: int
