"""Keys of posthouse.toml about one backed-up domain: [[domain]]."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Final

from posthouse.config_reading import NONE, REQUIRED, make_key
from posthouse.config_recipients import RosterOrigin, read_recipients
from posthouse.config_values import (
    FixedHop,
    read_choice,
    read_count,
    read_domain,
    read_duration,
    read_mailbox,
    read_next_hop,
    read_size,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DomainConfig:
    """One backed-up domain: [[domain]]. next_hop () follows DNS.

    recipients: a text file; roster: where its roster comes from; both None: no list.
    """

    name: str
    next_hop: tuple[FixedHop, ...]
    recipients: Path | None
    roster: RosterOrigin | None = None
    keep_for: timedelta
    when_unknown: str
    verify: str
    verify_sender: str | None
    client_info: str
    standby: str
    standby_patience: int
    standby_window: timedelta
    quota_size: int | None
    quota_count: int | None


DOMAIN_KEYS: Final = (
    make_key("name", read_domain, REQUIRED, "The domain. Subdomains are domains of their own."),
    make_key(
        "next_hop",
        read_next_hop,
        "mx",
        '"mx": the more preferred MX hosts of the domain; or a list of `smtp://host[:port]`, '
        'tried in order; or "pull": it fetches them with ATRN (`[[pull]]`).',
    ),
    make_key(
        "recipients",
        read_recipients,
        NONE,
        "Who exists. A text file of addresses, read again when it changes; or a roster: "
        '`{ primary = "PARTY" }` of `[[primary]]`, a `.roster` file or an `https://` URL. '
        "Without any the primary is asked (`verify`), and `when_unknown` decides the rest.",
    ),
    make_key(
        "keep_for",
        read_duration("1h", "365d"),
        "21d",
        "How long mail waits for the primary before it is put on hold. Never bounced. Not in the "
        "first hour after a start or a leap of the clock. Postfix: 5d; RFC 5321 §4.5.4.1 "
        "asks for 4 to 5 days at least.",
    ),
    make_key(
        "when_unknown",
        read_choice("defer", "hold"),
        "defer",
        "When nobody can tell whether a recipient exists: 451 4.4.3, or accept and put on hold "
        "until a list or the primary vouches. The stricter of this and `when_stale` of a stale "
        "roster holds.",
    ),
    make_key(
        "verify",
        read_choice("auto", "off"),
        "auto",
        "Where there is no list, or a stale one, ask the primary while it is up (RCPT, then no "
        'mail): see docs/verification.md. "off": never.',
    ),
    make_key(
        "verify_sender",
        read_mailbox,
        NONE,
        "Envelope sender of those questions; without one the null sender, which no server may "
        "refuse (RFC 5321 §4.5.5). Postfix: double-bounce@…",
    ),
    make_key(
        "client_info",
        read_choice("auto"),
        "auto",
        "How the primary is told of the real client. In this version: by our `Received` line.",
    ),
    make_key(
        "standby",
        read_choice("relay", "defer", "proxy"),
        "relay",
        "While the primary is up: accept and pass on; or 451 4.3.2 until a client plainly cannot "
        "reach it; or have it answer itself, through us, within the session.",
    ),
    make_key(
        "standby_patience",
        read_count(1, 1000),
        3,
        'With "defer": how often the same sender and recipient are turned away before they are '
        "accepted.",
    ),
    make_key(
        "standby_window",
        read_duration("1s", "1d"),
        "15m",
        'With "defer": over how long at least they are turned away. RFC 5321 §4.5.4.1 has clients '
        "wait 30 minutes, impatient ones wait 5.",
    ),
    make_key(
        "quota_size",
        read_size("1MB", "1000TiB"),
        NONE,
        "Octets this domain may have here, queued and held; beyond it 452 4.3.1 for this domain "
        "alone. Not counted exactly (docs/queue.md).",
    ),
    make_key(
        "quota_count",
        read_count(1, 1_000_000_000),
        NONE,
        "Recipients this domain may have here, likewise.",
    ),
)
