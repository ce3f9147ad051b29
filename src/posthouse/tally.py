"""What happens to each domain's mail, counted in memory: for reports and quotas.

Hot: one look into a dict and a few additions an event. Names are taken as they
come; whoever takes the counts away (`take`) brings them in order and stores them.
"""

from __future__ import annotations

import msgspec


class Tally(msgspec.Struct, kw_only=True):
    """What happened to one domain's mail in some time.

    accepted, accepted_bytes: messages answered 250 that have a recipient there; delivered,
    held: recipients; delivered_bytes: octets of the messages, once for each recipient;
    unknown: RCPT answered 550 5.1.1; longest_us: the longest that a recipient delivered in
    that time had waited. proxied, proxied_bytes: messages that the primary took within the
    session (standby = "proxy"), counted as accepted ones are.
    """

    accepted: int = 0
    accepted_bytes: int = 0
    delivered: int = 0
    delivered_bytes: int = 0
    held: int = 0
    unknown: int = 0
    longest_us: int = 0
    proxied: int = 0
    proxied_bytes: int = 0

    def add(self, other: Tally) -> None:
        """Put another one on top."""
        self.accepted += other.accepted
        self.accepted_bytes += other.accepted_bytes
        self.delivered += other.delivered
        self.delivered_bytes += other.delivered_bytes
        self.held += other.held
        self.unknown += other.unknown
        self.proxied += other.proxied
        self.proxied_bytes += other.proxied_bytes
        self.longest_us = max(self.longest_us, other.longest_us)


MOST_NAMES = 20_000
"""A stranger may spell a domain in many ways; more than this are not told apart."""

_counts: dict[str, Tally] = {}


def of(address: str) -> Tally:
    """The counts of the domain that an address names."""
    domain = address[address.rfind("@") + 1 :]
    found = _counts.get(domain)
    if found is None:
        found = Tally()
        if len(_counts) < MOST_NAMES:
            _counts[domain] = found
    return found


def take() -> dict[str, Tally]:
    """Take the counts away: by domain as it was spelled."""
    global _counts
    taken, _counts = _counts, {}
    return taken
