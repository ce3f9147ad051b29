"""Whose address a client has: the unit that limits on strangers count.

A home or a host gets at least an IPv6 /64 and a spammer rents an IPv4 /24
(precedent: postscreen, rspamd), so a limit on single addresses limits nobody.
"""

from __future__ import annotations

import ipaddress


def client_network(address: str) -> str:
    """The network a limit counts: IPv4 /24, IPv6 /64, an IPv4-mapped one as IPv4."""
    if ":" not in address:
        return address.rpartition(".")[0]
    parsed = ipaddress.IPv6Address(address.partition("%")[0])
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped).rpartition(".")[0]
    return parsed.exploded[:19]


def plain_address(host: str) -> str:
    """The peer's address without zone; an IPv4-mapped IPv6 address as IPv4."""
    host = host.partition("%")[0]
    return host[7:] if host.startswith("::ffff:") and "." in host else host
