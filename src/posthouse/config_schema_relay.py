"""Keys of posthouse.toml about the way home: [relay] and [dns]."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal

from posthouse.config_reading import NONE, make_key
from posthouse.config_values import (
    Endpoint,
    read_address,
    read_choice,
    read_count,
    read_distinct,
    read_duration,
    read_endpoint,
    read_host_name,
    read_list,
    read_path,
)

TlsMode = Literal["none", "opportunistic", "required", "verified"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfig:
    """The way home: [relay]."""

    probe_interval: timedelta
    watch_interval: timedelta
    retry: tuple[timedelta, ...]
    concurrency: int
    tls: TlsMode
    ca_file: Path | None
    own_names: tuple[str, ...]
    own_addresses: tuple[str, ...]
    connect_timeout: timedelta
    reply_timeout: timedelta
    idle_timeout: timedelta
    mx_port: int
    drain_rate: int
    surge_share: int
    surge_window: int
    surge_least: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DnsConfig:
    """Where questions go: [dns]. Empty servers: those of /etc/resolv.conf."""

    servers: tuple[Endpoint, ...]
    timeout: timedelta


RELAY_KEYS: Final = (
    make_key(
        "probe_interval",
        read_duration("1s", "1d"),
        "30s",
        "Between tries of a next hop that is down.",
    ),
    make_key(
        "watch_interval",
        read_duration("0s", "1d"),
        "2m",
        "Between looks at a next hop that is up and has no mail, so that an outage is known before "
        "the first message; 0s = none.",
    ),
    make_key(
        "retry",
        read_list(read_duration("1s", "7d"), empty=False),
        ["1m", "5m", "15m", "30m"],
        "Waits after each deferral of a recipient; the last repeats. RFC 5321 §4.5.4.1 asks for "
        "30 minutes at least, but a backup knows its primary; Postfix: 5m to 1h6m.",
    ),
    make_key(
        "concurrency",
        read_count(1, 1000),
        20,
        "Sessions to one next hop, shared by the workers (at least one each). Postfix: 20.",
    ),
    make_key(
        "tls",
        read_choice("none", "opportunistic", "required", "verified"),
        "opportunistic",
        "STARTTLS towards the next hop: never; when offered; always; always with a certificate "
        "that is valid for its name.",
    ),
    make_key(
        "ca_file",
        read_path,
        NONE,
        'PEM file of the authorities for tls = "verified"; none: those of the system.',
    ),
    make_key(
        "own_names",
        read_distinct(read_host_name),
        [],
        "Other names of this host among the MX records. `hostname` counts by itself.",
    ),
    make_key(
        "own_addresses",
        read_distinct(read_address),
        [],
        "Other addresses of this host, such as the public one of its NAT. Those of its interfaces "
        "count by themselves.",
    ),
    make_key(
        "connect_timeout",
        read_duration("1s", "10m"),
        "30s",
        "For a TCP connection. Postfix: 30s.",
    ),
    make_key(
        "reply_timeout",
        read_duration("1s", "1h"),
        "5m",
        "For a reply of the next hop; twice as long after the final dot (RFC 5321 §4.5.3.2.6).",
    ),
    make_key(
        "idle_timeout",
        read_duration("100ms", "10m"),
        "2s",
        "How long an idle session to a next hop is kept for the next message. Postfix: 2s.",
    ),
    make_key("mx_port", read_count(1, 65535), 25, "The port of hosts found by MX records."),
    make_key(
        "drain_rate",
        read_count(0, 1_000_000),
        0,
        "Messages a second to one next hop while it is drained after an outage, shared by the "
        "workers; 0 = as many as it takes. For a primary that cannot be told to trust this host.",
    ),
    make_key(
        "surge_share",
        read_count(1, 100),
        20,
        "Percent of the last `surge_window` replies of a drain: more permanent refusals stop it "
        "until `posthouse drain resume`. What was refused is held.",
    ),
    make_key(
        "surge_window",
        read_count(1, 10_000),
        50,
        "Replies of a drain that are looked at.",
    ),
    make_key(
        "surge_least",
        read_count(1, 10_000),
        5,
        "Permanent refusals there must be among them at least.",
    ),
)

DNS_KEYS: Final = (
    make_key(
        "servers",
        read_distinct(read_endpoint(53)),
        [],
        'IP addresses, with ":port" if it is not 53. Empty: those of /etc/resolv.conf.',
    ),
    make_key(
        "timeout",
        read_duration("1s", "1m"),
        "10s",
        "For one question, repeats included.",
    ),
)
