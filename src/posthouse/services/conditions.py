"""From what is known of a node to alerts: pure, one function a kind.

Texts say what happened in one line; what to do names a command or a place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from posthouse.domain.nexthop import is_fetched
from posthouse.log_sink import clean
from posthouse.ports_alerts import Alert, AlertKind
from posthouse.ports_publish import PublishedDomain
from posthouse.ports_spool import DomainTotals
from posthouse.services.alert_text import tell

DAY_US: Final = 86_400_000_000


class Hop(NamedTuple):
    """A next hop as the node sees it. state: a word of `domain.drain.State`."""

    next_hop: str
    state: str
    since_us: int
    why: str
    domains: tuple[str, ...] = ()


_HOP_KINDS: Final = {
    "down": (
        AlertKind.NEXT_HOP_DOWN,
        "is down",
        "Look at the primary; its mail is kept and goes by itself when it is back",
    ),
    "blocked": (
        AlertKind.NEXT_HOP_BLOCKED,
        "refuses this backup",
        "Have the primary accept mail from this host; it is tried again all the time",
    ),
    "held by DNS": (
        AlertKind.NO_BETTER_MX,
        "leaves nobody to send to: no better MX",
        "Correct the MX records (`posthouse status` shows what is seen); mail waits",
    ),
    "surge-stopped": (
        AlertKind.DRAIN_STOPPED,
        "refused too much, the drain is stopped",
        "Repair it, `posthouse drain resume`, `posthouse queue release --reply 550 --since …`",
    ),
}


def next_hop_alerts(hops: Iterable[Hop]) -> Iterator[Alert]:
    """One for each next hop that takes no mail for a reason a person must know."""
    for hop in hops:
        if hop.state not in _HOP_KINDS or (hop.state == "down" and is_fetched(hop.next_hop)):
            continue
        kind, what, todo = _HOP_KINDS[hop.state]
        yield Alert(
            kind=kind,
            subject=hop.next_hop,
            text=f"next hop {hop.next_hop} {what}: {clean(hop.why)}",
            what_to_do=todo,
            since_us=hop.since_us,
        )


def list_alerts(facts: Mapping[str, Mapping[str, str | int | bool]]) -> Iterator[Alert]:
    """Recipient lists that are not what their file says now. facts: by domain."""
    for domain, one in facts.items():
        if one.get("problem"):
            yield Alert(
                kind=AlertKind.LIST_STALE,
                subject=domain,
                text=f"recipients of {domain}: {clean(str(one['problem']))}",
                what_to_do="Correct the file; the list of before stays in force meanwhile",
            )


def queue_alerts(
    totals: Iterable[DomainTotals], *, oldest_age_us: int, now_us: int
) -> Iterator[Alert]:
    """Mail on hold, and mail that has been queued for too long, by domain."""
    held: dict[str, int] = {}
    queued: dict[str, int] = {}
    oldest: dict[str, int] = {}
    for row in totals:
        held[row.domain] = held.get(row.domain, 0) + row.held
        queued[row.domain] = queued.get(row.domain, 0) + row.queued
        if row.oldest_queued_us is not None:
            oldest[row.domain] = min(row.oldest_queued_us, oldest.get(row.domain, 1 << 62))
    for domain, count in held.items():
        if count:
            yield Alert(
                kind=AlertKind.MAIL_HELD,
                subject=domain,
                text=f"{count:,} recipients of {domain} are on hold",
                what_to_do=f"See `posthouse queue list --state held --domain {domain}`",
            )
    for domain, at_us in oldest.items():
        if now_us - at_us >= oldest_age_us:
            yield Alert(
                kind=AlertKind.OLDEST_MESSAGE,
                subject=domain,
                text=f"mail for {domain} waits since {tell(at_us)}: {queued[domain]:,} recipients",
                what_to_do="See `posthouse status` for why, or release it to another address",
                since_us=at_us + oldest_age_us,
            )


_NODE_DISK: Final = "below `spool.min_free` mail is refused for a while (452)"


def disk_alert(
    free_bytes: int, wanted_bytes: int, place: str, *, else_: str = _NODE_DISK
) -> Alert | None:
    """Too little is free. else_: what comes of it if nothing is done."""
    if free_bytes >= wanted_bytes:
        return None
    return Alert(
        kind=AlertKind.DISK_LOW,
        subject=place,
        text=f"{free_bytes >> 20:,} MiB are free in {place}, less than {wanted_bytes >> 20:,} MiB",
        what_to_do=f"Make room: {else_}",
    )


def certificate_alert(name: str, end_us: int, *, days: int, now_us: int) -> Alert | None:
    """A certificate of ours ends soon, or has ended."""
    left_us = end_us - now_us
    if left_us > days * DAY_US:
        return None
    text = f"the certificate {name} ends {tell(end_us)}"
    if left_us <= 0:
        text = f"the certificate {name} ended {tell(end_us)}"
    return Alert(
        kind=AlertKind.CERTIFICATE,
        subject=name,
        text=text,
        what_to_do="Renew it, then reload the node (SIGHUP)",
        since_us=min(now_us, end_us - days * DAY_US),
    )


def intake_alert(problem: str | None) -> Alert | None:
    """No mail can be taken."""
    if not problem:
        return None
    return Alert(
        kind=AlertKind.STORAGE,
        subject="intake",
        text=f"no mail is taken, clients are told to come again: {clean(problem)}",
        what_to_do="Look at the disk and at the node's log",
    )


ROSTER_EXPIRES: Final = "roster-expires"
NEAR_PART: Final = 4
"""A roster is told of in the last quarter of its time; new dates come after the first."""


def roster_alerts(domains: Iterable[PublishedDomain], *, now_us: int) -> Iterator[Alert]:
    """Rosters of a primary that come near their end, or are past it, one alert a domain."""
    for domain in domains:
        if not domain.rosters:
            continue
        first = min(domain.rosters, key=lambda roster: roster.expires_s)
        near_s = first.expires_s - (first.expires_s - first.issued_s) // NEAR_PART
        if now_us < near_s * 1_000_000:
            continue
        over = now_us >= first.expires_s * 1_000_000
        what = "has expired" if over else "is good no longer than"
        then = "backups refuse nobody any more" if over else "then backups refuse nobody any more"
        yield Alert(
            kind=ROSTER_EXPIRES,
            subject=domain.name,
            text=f"the roster of {domain.name} {what} {tell(first.expires_s * 1_000_000)}; {then}",
            what_to_do="See why none is made: `posthouse primary status`, `posthouse roster build`",
            since_us=near_s * 1_000_000,
        )
