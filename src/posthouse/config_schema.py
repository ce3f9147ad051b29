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
from typing import Any, Final

from posthouse.config_reading import NONE, REQUIRED, Absent, Key, Layout, make_key
from posthouse.config_recipients import LOOKUP_KEYS, LookUpsConfig
from posthouse.config_schema_alerts import ALERTS, AlertsConfig
from posthouse.config_schema_domain import DOMAIN_KEYS, DomainConfig
from posthouse.config_schema_peers import (
    BACKUP_KEYS,
    HTTPS_KEYS,
    PRIMARY_KEYS,
    FurtherBackupConfig,
    HttpsConfig,
    PairedPrimaryConfig,
)
from posthouse.config_schema_pull import ODMR_KEYS, PULL_KEYS, OdmrConfig, PullConfig
from posthouse.config_schema_relay import DNS_KEYS, RELAY_KEYS, DnsConfig, RelayConfig
from posthouse.config_schema_smtp import SMTP_KEYS, SmtpConfig
from posthouse.config_values import (
    read_choice,
    read_count,
    read_duration,
    read_host_name,
    read_mailbox,
    read_path,
    read_size,
    read_text,
)


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


_TOP = (
    make_key(
        "hostname",
        read_host_name,
        REQUIRED,
        "The name of this host: in the greeting, in `Received`, in `EHLO` to the primary, and how "
        "this host is found among the MX records. It should resolve back and forth.",
    ),
    make_key(
        "data_dir",
        read_path,
        "/var/lib/posthouse",
        "Where accepted mail is kept. One node a directory; made with mode 0700.",
    ),
    make_key(
        "contact",
        read_mailbox,
        NONE,
        "Who looks after this node; shown by `status`. Not behind this backup.",
    ),
    make_key(
        "user",
        read_text,
        NONE,
        "Become this user after the ports are bound, when started as root.",
    ),
    make_key(
        "workers",
        read_count(0, 256),
        0,
        "Mail processes; 0 = one per core.",
    ),
    make_key(
        "shutdown_grace",
        read_duration("0s", "1h"),
        "30s",
        "How long running sessions may take to finish after SIGTERM.",
    ),
)

_LOG = (
    make_key("format", read_choice("text", "json"), "text", "Lines in Postfix's shape, or JSON."),
    make_key(
        "to",
        read_text,
        "auto",
        '"stderr", "syslog" (facility mail), a file (reopened on SIGHUP), or "auto": syslog as a '
        "systemd service, else stderr.",
    ),
    make_key(
        "tag",
        read_text,
        "postfix",
        "The program name in log lines, `TAG/smtpd[PID]`. Filters made for Postfix read `postfix`; "
        "beside a real Postfix `postfix-posthouse` tells the two apart.",
    ),
)

_SPOOL = (
    make_key(
        "segment_size",
        read_size("1MiB", "1GiB"),
        "32MiB",
        "Bodies are appended to files of this size; a file goes when its last message is gone.",
    ),
    make_key(
        "spill_size",
        read_size("16KiB", "16MiB"),
        "256KiB",
        "A longer message goes to a file of its own while it arrives, not to memory.",
    ),
    make_key(
        "min_free",
        read_size("0B", "1TiB"),
        "256MiB",
        "Refuse mail with 452 4.3.1 while the disk has less than this free (at most 3 % of it). "
        "Postfix: 1.5 times the largest message.",
    ),
)

SECTIONS: Final[dict[str, tuple[Key, ...]]] = {
    "": _TOP,
    "smtp": SMTP_KEYS,
    "relay": RELAY_KEYS,
    "dns": DNS_KEYS,
    "log": _LOG,
    "spool": _SPOOL,
    "https": HTTPS_KEYS,
    "alerts": ALERTS,
    "domain": DOMAIN_KEYS,
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
