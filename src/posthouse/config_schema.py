"""Every key of posthouse.toml: its reader, its default and its reason.

One table drives the reading, the nearest-key hints, `posthouse check --keys`
and the tables in docs/configuration.md. Defaults are written as in the file
and go through the same reader as the operator's own values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

from posthouse.config_reading import NONE, REQUIRED, Absent, Key, Layout
from posthouse.config_recipients import LOOKUP_KEYS, LookUpsConfig, RosterOrigin, read_recipients
from posthouse.config_schema_alerts import ALERTS, AlertsConfig
from posthouse.config_schema_peers import (
    BACKUP_KEYS,
    HTTPS_KEYS,
    PRIMARY_KEYS,
    FurtherBackupConfig,
    HttpsConfig,
    PairedPrimaryConfig,
)
from posthouse.config_schema_pull import ODMR_KEYS, PULL_KEYS, OdmrConfig, PullConfig
from posthouse.config_values import (
    Endpoint,
    FixedHop,
    Read,
    read_address,
    read_choice,
    read_count,
    read_distinct,
    read_domain,
    read_duration,
    read_endpoint,
    read_flag,
    read_host_name,
    read_list,
    read_mailbox,
    read_next_hop,
    read_path,
    read_size,
    read_text,
)

TlsMode = Literal["none", "opportunistic", "required", "verified"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SmtpConfig:
    """The door: [smtp]."""

    listen: tuple[Endpoint, ...]
    certificate: Path | None
    private_key: Path | None
    max_message_size: int
    max_recipients: int
    max_connections: int
    max_connections_per_client: int
    max_errors: int
    max_command_length: int
    idle_timeout: timedelta
    session_timeout: timedelta
    reverse_dns: bool
    bare_newlines: str
    disclose_551: bool


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """Where and how to log: [log]. to: "auto", "stderr", "syslog" or an absolute path."""

    format: str
    to: str
    tag: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SpoolConfig:
    """The store: [spool]. Sizes in octets."""

    segment_size: int
    spill_size: int
    min_free: int


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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole configuration, checked. All paths are absolute; `warnings` are for people."""

    file: Path
    hostname: str
    data_dir: Path
    contact: str | None
    user: str | None
    workers: int
    shutdown_grace: timedelta
    smtp: SmtpConfig
    relay: RelayConfig
    dns: DnsConfig
    log: LogConfig
    spool: SpoolConfig
    https: HttpsConfig
    alerts: AlertsConfig
    lookups: LookUpsConfig
    domains: tuple[DomainConfig, ...]
    primaries: tuple[PairedPrimaryConfig, ...] = ()
    backups: tuple[FurtherBackupConfig, ...] = ()
    odmr: OdmrConfig
    pulls: tuple[PullConfig, ...]
    warnings: tuple[str, ...] = ()


def _key(name: str, read: Read, default: Any, why: str) -> Key:
    return Key(name=name, read=read, default=default, why=why)


_TOP = (
    _key(
        "hostname",
        read_host_name,
        REQUIRED,
        "The name of this host: in the greeting, in `Received`, in `EHLO` to the primary, and how "
        "this host is found among the MX records. It should resolve back and forth.",
    ),
    _key(
        "data_dir",
        read_path,
        "/var/lib/posthouse",
        "Where accepted mail is kept. One node a directory; made with mode 0700.",
    ),
    _key(
        "contact",
        read_mailbox,
        NONE,
        "Who looks after this node; shown by `status`. Not behind this backup.",
    ),
    _key(
        "user",
        read_text,
        NONE,
        "Become this user after the ports are bound, when started as root.",
    ),
    _key(
        "workers",
        read_count(0, 256),
        0,
        "Mail processes; 0 = one per core.",
    ),
    _key(
        "shutdown_grace",
        read_duration("0s", "1h"),
        "30s",
        "How long running sessions may take to finish after SIGTERM.",
    ),
)

_SMTP = (
    _key(
        "listen",
        read_distinct(read_endpoint(), empty=False),
        ["0.0.0.0:25", "[::]:25"],
        "IP addresses with ports. Sockets handed over by systemd take their place. "
        "Port 0 lets the system choose.",
    ),
    _key(
        "certificate",
        read_path,
        NONE,
        "PEM file with the certificate and its chain. With it STARTTLS is offered; "
        "read again on SIGHUP.",
    ),
    _key("private_key", read_path, NONE, "PEM file with its key; `user` must be able to read it."),
    _key(
        "max_message_size",
        read_size("64KiB", "4GiB"),
        "50MB",
        "Announced as SIZE; more gets 552 5.3.4. RFC 5321 §4.5.3.1.7 asks for 64 KiB at least, "
        "Postfix takes 10 MB, large mailbox providers 25 to 50 MB.",
    ),
    _key(
        "max_recipients",
        read_count(100, 50_000),
        100,
        "Per message; more get 452 4.5.3. RFC 5321 §4.5.3.1.8 asks for 100 or more; Postfix: 1000.",
    ),
    _key(
        "max_connections",
        read_count(1, 1_000_000),
        5000,
        "At once, in the whole node, shared evenly by the workers; more get 421 4.7.0. An idle one "
        "costs about 20 KiB.",
    ),
    _key(
        "max_connections_per_client",
        read_count(1, 1_000_000),
        100,
        "At once from one client network (IPv4 /24, IPv6 /64) in one worker; more get 421 4.7.0. "
        "Postfix: 50 from one address.",
    ),
    _key(
        "max_errors",
        read_count(1, 1000),
        10,
        "Refused commands in a session before 421 4.7.0. Postfix: 20, 1 under stress.",
    ),
    _key(
        "max_command_length",
        read_size("1000B", "64KiB"),
        "2048B",
        "Octets of one command line. RFC 5321 §4.5.3.1.4 asks for 512, extensions add up to 1,000; "
        "Postfix: 2048.",
    ),
    _key(
        "idle_timeout",
        read_duration("1s", "1h"),
        "5m",
        "Without a command or data: 421 4.4.2. RFC 5321 §4.5.3.2.7 asks for 5 minutes.",
    ),
    _key(
        "session_timeout",
        read_duration("1s", "1d"),
        "1h",
        "A whole session, however busy: 421 4.4.2. 50 MB take an hour at 14 kB/s.",
    ),
    _key(
        "reverse_dns",
        read_flag,
        True,
        "Look up the client's name for `Received` and the log; forward-confirmed (RFC 8601).",
    ),
    _key(
        "bare_newlines",
        read_choice("refuse", "normalize"),
        "refuse",
        "A CR or LF alone in a message: 550 5.6.11 (SMTP smuggling; Postfix 3.9 does so), or "
        "made CR LF, which breaks signatures. It is never passed on.",
    ),
    _key(
        "disclose_551",
        read_flag,
        True,
        "Answer 551 5.7.1 for an address whose owner blocked it here, as RFC 5321 §3.4 has it; "
        "false: 550 5.7.1, which does not tell that it exists elsewhere.",
    ),
)

_RELAY = (
    _key(
        "probe_interval",
        read_duration("1s", "1d"),
        "30s",
        "Between tries of a next hop that is down.",
    ),
    _key(
        "watch_interval",
        read_duration("0s", "1d"),
        "2m",
        "Between looks at a next hop that is up and has no mail, so that an outage is known before "
        "the first message; 0s = none.",
    ),
    _key(
        "retry",
        read_list(read_duration("1s", "7d"), empty=False),
        ["1m", "5m", "15m", "30m"],
        "Waits after each deferral of a recipient; the last repeats. RFC 5321 §4.5.4.1 asks for "
        "30 minutes at least, but a backup knows its primary; Postfix: 5m to 1h6m.",
    ),
    _key(
        "concurrency",
        read_count(1, 1000),
        20,
        "Sessions to one next hop, shared by the workers (at least one each). Postfix: 20.",
    ),
    _key(
        "tls",
        read_choice("none", "opportunistic", "required", "verified"),
        "opportunistic",
        "STARTTLS towards the next hop: never; when offered; always; always with a certificate "
        "that is valid for its name.",
    ),
    _key(
        "ca_file",
        read_path,
        NONE,
        'PEM file of the authorities for tls = "verified"; none: those of the system.',
    ),
    _key(
        "own_names",
        read_distinct(read_host_name),
        [],
        "Other names of this host among the MX records. `hostname` counts by itself.",
    ),
    _key(
        "own_addresses",
        read_distinct(read_address),
        [],
        "Other addresses of this host, such as the public one of its NAT. Those of its interfaces "
        "count by themselves.",
    ),
    _key(
        "connect_timeout",
        read_duration("1s", "10m"),
        "30s",
        "For a TCP connection. Postfix: 30s.",
    ),
    _key(
        "reply_timeout",
        read_duration("1s", "1h"),
        "5m",
        "For a reply of the next hop; twice as long after the final dot (RFC 5321 §4.5.3.2.6).",
    ),
    _key(
        "idle_timeout",
        read_duration("100ms", "10m"),
        "2s",
        "How long an idle session to a next hop is kept for the next message. Postfix: 2s.",
    ),
    _key("mx_port", read_count(1, 65535), 25, "The port of hosts found by MX records."),
    _key(
        "drain_rate",
        read_count(0, 1_000_000),
        0,
        "Messages a second to one next hop while it is drained after an outage, shared by the "
        "workers; 0 = as many as it takes. For a primary that cannot be told to trust this host.",
    ),
    _key(
        "surge_share",
        read_count(1, 100),
        20,
        "Percent of the last `surge_window` replies of a drain: more permanent refusals stop it "
        "until `posthouse drain resume`. What was refused is held.",
    ),
    _key(
        "surge_window",
        read_count(1, 10_000),
        50,
        "Replies of a drain that are looked at.",
    ),
    _key(
        "surge_least",
        read_count(1, 10_000),
        5,
        "Permanent refusals there must be among them at least.",
    ),
)

_DNS = (
    _key(
        "servers",
        read_distinct(read_endpoint(53)),
        [],
        'IP addresses, with ":port" if it is not 53. Empty: those of /etc/resolv.conf.',
    ),
    _key(
        "timeout",
        read_duration("1s", "1m"),
        "10s",
        "For one question, repeats included.",
    ),
)

_LOG = (
    _key("format", read_choice("text", "json"), "text", "Lines in Postfix's shape, or JSON."),
    _key(
        "to",
        read_text,
        "auto",
        '"stderr", "syslog" (facility mail), a file (reopened on SIGHUP), or "auto": syslog as a '
        "systemd service, else stderr.",
    ),
    _key(
        "tag",
        read_text,
        "postfix",
        "The program name in log lines, `TAG/smtpd[PID]`. Filters made for Postfix read `postfix`; "
        "beside a real Postfix `postfix-posthouse` tells the two apart.",
    ),
)

_SPOOL = (
    _key(
        "segment_size",
        read_size("1MiB", "1GiB"),
        "32MiB",
        "Bodies are appended to files of this size; a file goes when its last message is gone.",
    ),
    _key(
        "spill_size",
        read_size("16KiB", "16MiB"),
        "256KiB",
        "A longer message goes to a file of its own while it arrives, not to memory.",
    ),
    _key(
        "min_free",
        read_size("0B", "1TiB"),
        "256MiB",
        "Refuse mail with 452 4.3.1 while the disk has less than this free (at most 3 % of it). "
        "Postfix: 1.5 times the largest message.",
    ),
)

_DOMAIN = (
    _key("name", read_domain, REQUIRED, "The domain. Subdomains are domains of their own."),
    _key(
        "next_hop",
        read_next_hop,
        "mx",
        '"mx": the more preferred MX hosts of the domain; or a list of `smtp://host[:port]`, '
        'tried in order; or "pull": it fetches them with ATRN (`[[pull]]`).',
    ),
    _key(
        "recipients",
        read_recipients,
        NONE,
        "Who exists. A text file of addresses, read again when it changes; or a roster: "
        '`{ primary = "PARTY" }` of `[[primary]]`, a `.roster` file or an `https://` URL. '
        "Without any the primary is asked (`verify`), and `when_unknown` decides the rest.",
    ),
    _key(
        "keep_for",
        read_duration("1h", "365d"),
        "21d",
        "How long mail waits for the primary before it is put on hold. Never bounced. "
        "Postfix: 5d; RFC 5321 §4.5.4.1 asks for 4 to 5 days at least.",
    ),
    _key(
        "when_unknown",
        read_choice("defer", "hold"),
        "defer",
        "When nobody can tell whether a recipient exists: 451 4.4.3, or accept and put on hold "
        "until a list or the primary vouches. The stricter of this and `when_stale` of a stale "
        "roster holds.",
    ),
    _key(
        "verify",
        read_choice("auto", "off"),
        "auto",
        "Where there is no list, or a stale one, ask the primary while it is up (RCPT, then no "
        'mail): see docs/verification.md. "off": never.',
    ),
    _key(
        "verify_sender",
        read_mailbox,
        NONE,
        "Envelope sender of those questions; without one the null sender, which no server may "
        "refuse (RFC 5321 §4.5.5). Postfix: double-bounce@…",
    ),
    _key(
        "client_info",
        read_choice("auto"),
        "auto",
        "How the primary is told of the real client. In this version: by our `Received` line.",
    ),
    _key(
        "standby",
        read_choice("relay", "defer", "proxy"),
        "relay",
        "While the primary is up: accept and pass on; or 451 4.3.2 until a client plainly cannot "
        "reach it; or have it answer itself, through us, within the session.",
    ),
    _key(
        "standby_patience",
        read_count(1, 1000),
        3,
        'With "defer": how often the same sender and recipient are turned away before they are '
        "accepted.",
    ),
    _key(
        "standby_window",
        read_duration("1s", "1d"),
        "15m",
        'With "defer": over how long at least they are turned away. RFC 5321 §4.5.4.1 has clients '
        "wait 30 minutes, impatient ones wait 5.",
    ),
    _key(
        "quota_size",
        read_size("1MB", "1000TiB"),
        NONE,
        "Octets this domain may have here, queued and held; beyond it 452 4.3.1 for this domain "
        "alone. Not counted exactly (docs/queue.md).",
    ),
    _key(
        "quota_count",
        read_count(1, 1_000_000_000),
        NONE,
        "Recipients this domain may have here, likewise.",
    ),
)

SECTIONS: Final[dict[str, tuple[Key, ...]]] = {
    "": _TOP,
    "smtp": _SMTP,
    "relay": _RELAY,
    "dns": _DNS,
    "log": _LOG,
    "spool": _SPOOL,
    "https": HTTPS_KEYS,
    "alerts": ALERTS,
    "domain": _DOMAIN,
    "primary": PRIMARY_KEYS,
    "backup": BACKUP_KEYS,
    "odmr": ODMR_KEYS,
    "pull": PULL_KEYS,
    "lookups": LOOKUP_KEYS,
}


LAYOUT: Final = Layout(
    sections=SECTIONS,
    arrays=("domain", "primary", "backup", "pull"),
    manual="docs/configuration.md",
)


def show_default(key: Key) -> str:
    """The default as TOML; "required" or "none" where there is no value."""
    return key.default.name if isinstance(key.default, Absent) else _to_toml(key.default)


def _to_toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(_to_toml, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_to_toml(one)}" for name, one in value.items()) + " }"
    return f'"{value}"' if isinstance(value, str) else str(value)


def format_reference() -> Iterable[str]:
    """Lines of Markdown with every key, its default and its reason."""
    for section, keys in SECTIONS.items():
        title = f"`{LAYOUT.show(section)}`" if section else "At the top"
        yield f"### {title}"
        yield ""
        yield "| key | default | what it is for |"
        yield "|---|---|---|"
        for key in keys:
            default = show_default(key)
            told = default if isinstance(key.default, Absent) else f"`{default}`"
            yield f"| `{key.name}` | {told} | {key.why} |"
        yield ""
