"""Every key of primary.toml: its reader, its default and its reason.

The file stands beside the primary: what makes a roster, and for whom. One table
drives reading, hints, and the reference in docs/primary.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

from posthouse.config_primary_alerts import ALERTS_KEYS, PrimaryAlertsConfig
from posthouse.config_primary_pages import PAGES_KEYS, PagesConfig
from posthouse.config_primary_values import (
    DecoyChoice,
    DigestChoice,
    read_base_url,
    read_decoys,
    read_digest,
    read_fold,
    read_limits,
    read_local_part,
    read_local_place,
    read_mx,
    read_policy,
    read_rules,
    read_source,
)
from posthouse.config_reading import NONE, REQUIRED, Key, Layout
from posthouse.config_schema import SECTIONS as NODE_SECTIONS
from posthouse.config_schema import LogConfig, show_default
from posthouse.config_values import (
    Endpoint,
    Read,
    read_choice,
    read_count,
    read_distinct,
    read_domain,
    read_duration,
    read_endpoint,
    read_flag,
    read_list,
    read_mailbox,
    read_path,
    read_text,
)
from posthouse.domain.recipients import Fold
from posthouse.domain.source_kinds import SourceSpec
from posthouse.mail.roster import RosterLimits, RosterPolicy, RosterRule
from posthouse.proto.base_url import parse_base_url


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrimaryHttpsConfig:
    """The door that serves rosters and grants agreements: [https]."""

    listen: tuple[Endpoint, ...]
    certificate: Path | None
    private_key: Path | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PostfixConfig:
    """Where Postfix asks about agreements: [postfix]. A path of a Unix socket, or loopback."""

    auth_socket: Path | Endpoint | None
    policy_listen: Path | Endpoint | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PublishedDomainConfig:
    """One domain that this primary owns: [[domain]]. max_loss: per cent."""

    name: str
    sources: tuple[SourceSpec, ...]
    fold: Fold
    catch_all: bool
    traps: tuple[str, ...]
    rules: tuple[RosterRule, ...]
    digest: DigestChoice
    decoys: DecoyChoice
    refresh_interval: timedelta
    valid_for: timedelta
    rebuild_interval: timedelta
    limits: RosterLimits
    policy: RosterPolicy
    mx: tuple[tuple[int, str], ...]
    max_loss: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PairedBackupConfig:
    """One backup: [[backup]]. pairing: theirs; own: ours."""

    pairing: Path
    own: Path
    domains: tuple[str, ...]
    agreements: Literal["auto", "ask"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrimaryConfig:
    """A whole primary.toml, checked. Paths are absolute; `warnings` are for people."""

    file: Path
    party: str
    base_url: str
    data_dir: Path
    contact: str | None
    user: str | None
    shutdown_grace: timedelta
    https: PrimaryHttpsConfig
    postfix: PostfixConfig
    pages: PagesConfig
    alerts: PrimaryAlertsConfig
    log: LogConfig
    domains: tuple[PublishedDomainConfig, ...]
    backups: tuple[PairedBackupConfig, ...]
    warnings: tuple[str, ...] = ()

    @property
    def hostname(self) -> str:
        """The host of base_url: for the log."""
        return parse_base_url(self.base_url).host.strip("[]")


def _key(name: str, read: Read, default: Any, why: str) -> Key:
    return Key(name=name, read=read, default=default, why=why)


_TOP = (
    _key(
        "party",
        read_domain,
        REQUIRED,
        "The name of this organisation in rosters and pairings, as a rule its main domain.",
    ),
    _key(
        "base_url",
        read_base_url,
        REQUIRED,
        'Where the backups find this host, such as "https://mail.example.com:8447/".',
    ),
    _key(
        "data_dir",
        read_path,
        "/var/lib/posthouse-primary",
        "Keys, rosters and the book of agreements. Keep it private and back it up.",
    ),
    _key(
        "contact",
        read_mailbox,
        NONE,
        "Who looks after this: gets alerts by mail ([alerts.md](alerts.md)).",
    ),
    _key(
        "user",
        read_text,
        NONE,
        "Become this user after the ports are bound, when started as root. It must be able to "
        "read the sources.",
    ),
    _key(
        "shutdown_grace",
        read_duration("0s", "1h"),
        "10s",
        "How long answers under way may take to finish after SIGTERM.",
    ),
)

_HTTPS = (
    _key(
        "listen",
        read_distinct(read_endpoint(), empty=False),
        ["0.0.0.0:8447", "[::]:8447"],
        "Where backups connect to. Without a certificate: on loopback only.",
    ),
    _key("certificate", read_path, NONE, "PEM file, chain included."),
    _key("private_key", read_path, NONE, "PEM file, not encrypted."),
)

_POSTFIX = (
    _key(
        "auth_socket",
        read_local_place,
        NONE,
        "Where Postfix asks about passwords of agreements (`smtpd_sasl_path`): the path of a Unix "
        "socket, or a loopback address and port. See [postfix-kit.md](postfix-kit.md).",
    ),
    _key(
        "policy_listen",
        read_local_place,
        NONE,
        'Where Postfix asks about recipients (`check_policy_service`): "unix:PATH", or a loopback '
        "address and port.",
    ),
)

_DOMAIN = (
    _key("name", read_domain, REQUIRED, "The domain. Subdomains are domains of their own."),
    _key(
        "sources",
        read_list(read_source),
        [],
        "Who exists, from all of them together ([Sources](#sources)).",
    ),
    _key(
        "fold",
        read_fold,
        {"case": "lower", "delimiters": "+", "dots": "keep"},
        "How this primary reads a local part: `case` (lower, preserve), `delimiters` of "
        "subaddresses, `dots` (keep, drop). It must do what the mail server does.",
    ),
    _key("catch_all", read_flag, False, "Every local part exists."),
    _key(
        "traps",
        read_list(read_local_part),
        [],
        "Local parts that exist only as honeypots. They come before the rules.",
    ),
    _key(
        "rules",
        read_rules,
        [],
        "Patterns in their order: `{ match, action, note }`, or the name of a shipped one "
        "([Rules](#rules)). The backup can read them: no names in them.",
    ),
    _key(
        "digest",
        read_digest,
        {"scheme": "hmac-sha256", "bytes": 16},
        'How addresses are hashed: `scheme` "hmac-sha256" or "scrypt" (with `n`, `p`), `bytes`.',
    ),
    _key(
        "decoys",
        read_decoys,
        {"percent": 0, "multiple": 1},
        "Entries that are nobody, so that the count tells less: `percent` on top, then up to the "
        "next `multiple`.",
    ),
    _key(
        "refresh_interval",
        read_duration("60s", "1d"),
        "1h",
        "How often a backup asks again.",
    ),
    _key(
        "valid_for",
        read_duration("1h", "90d"),
        "14d",
        "How long a roster proves that somebody does not exist. An outage may take that long.",
    ),
    _key(
        "rebuild_interval",
        read_duration("10s", "1d"),
        "15m",
        "How often sources are read that do not tell of changes (Dovecot, LDAP, SQL).",
    ),
    _key(
        "limits",
        read_limits,
        {"max_message_size": "50MiB", "smtputf8": True, "8bitmime": True},
        "What this primary takes: `max_message_size`, `smtputf8`, `8bitmime`.",
    ),
    _key(
        "policy",
        read_policy,
        {"blocking": "allowed", "when_stale": "defer"},
        "`blocking`: may people block mail at the backup (allowed, forbidden); `when_stale`: what "
        "becomes of unknown recipients when the roster is too old (defer, hold).",
    ),
    _key(
        "mx",
        read_mx,
        [],
        'The MX set that is meant, as `[[10, "mx1.example.com"]]`. Empty: nothing is said.',
    ),
    _key(
        "max_loss",
        read_count(1, 100),
        20,
        "A roster that loses more than so many per cent is not published until "
        "`posthouse roster build --accept-loss`. Backups set such a roster aside at 20 %.",
    ),
)

_BACKUP = (
    _key("pairing", read_path, REQUIRED, "The backup's pairing file."),
    _key("own", read_path, REQUIRED, "What we keep of ours for this backup."),
    _key(
        "domains",
        read_distinct(read_domain, empty=False),
        REQUIRED,
        "Which of the domains it backs up.",
    ),
    _key(
        "agreements",
        read_choice("auto", "ask"),
        "auto",
        'Grant what it asks for, or wait for `posthouse agreements grant` ("ask").',
    ),
)

SECTIONS: Final[dict[str, tuple[Key, ...]]] = {
    "": _TOP,
    "https": _HTTPS,
    "postfix": _POSTFIX,
    "pages": PAGES_KEYS,
    "alerts": ALERTS_KEYS,
    "log": NODE_SECTIONS["log"],
    "domain": _DOMAIN,
    "backup": _BACKUP,
}

LAYOUT: Final = Layout(sections=SECTIONS, arrays=("domain", "backup"), manual="docs/primary.md")


def format_reference() -> Iterable[str]:
    """Lines of Markdown with every key, its default and its reason."""
    for section, keys in SECTIONS.items():
        yield f"### {f'`{LAYOUT.show(section)}`' if section else 'At the top'}"
        yield ""
        yield "| key | default | what it is for |"
        yield "|---|---|---|"
        for key in keys:
            default = show_default(key)
            told = default if key.default in (NONE, REQUIRED) else f"`{default}`"
            yield f"| `{key.name}` | {told} | {key.why} |"
        yield ""
