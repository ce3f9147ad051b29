"""What the relay is told, and what it tells: plain values, no behaviour."""

from __future__ import annotations

from typing import Final

import msgspec

from posthouse.domain.nexthop import HostPort, State

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
    probe_interval_us > 0. retry_us: not empty, each > 0, the last repeats.
    concurrency: sessions per next hop of *this* worker, >= 1.
    idle_seconds: a session without work is closed after this, at most twice this.
    batch_messages, batch_bytes: one claim. body_bytes: bodies in memory, all next
    hops together; beyond it, bodies are streamed from disk.
    mx_port: 25 except in rehearsals.
    """

    own_names: frozenset[str]
    own_addresses: frozenset[str] = frozenset()
    probe_interval_us: int = 30 * _SECOND
    retry_us: tuple[int, ...] = (60 * _SECOND, 300 * _SECOND, 900 * _SECOND, 1800 * _SECOND)
    concurrency: int = 20  # Postfix: default_destination_concurrency_limit
    idle_seconds: float = 2.0  # Postfix: smtp_connection_cache_time_limit
    batch_messages: int = 100
    batch_bytes: int = 4 * _MIB
    body_bytes: int = 24 * _MIB
    mx_port: int = 25


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
