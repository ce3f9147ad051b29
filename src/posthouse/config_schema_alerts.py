"""The keys of [alerts]: who is told when something is wrong, how, and how often."""

from __future__ import annotations

import dataclasses
import ipaddress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from posthouse.config_checks import Findings, open_regular
from posthouse.config_reading import NONE, Key
from posthouse.config_values import (
    Wrong,
    read_count,
    read_duration,
    read_flag,
    read_list,
    read_path,
    read_size,
    read_text,
    say,
)

MAX_SECRET_BYTES: Final = 4096


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AlertsConfig:
    """Who is told: [alerts]. webhook_secret is never shown."""

    mail: bool
    webhook: str | None
    webhook_secret: str | None = dataclasses.field(repr=False)
    webhook_secret_file: Path | None
    webhook_ca_file: Path | None
    command: tuple[str, ...]
    delay: timedelta
    interval: timedelta
    digest: timedelta
    digest_delay: timedelta
    oldest_age: timedelta
    certificate_days: int
    disk_free: int


class Telling(Protocol):
    """What [alerts] of a node and of a primary have in common: the ways, and when they are gone."""

    @property
    def webhook(self) -> str | None: ...
    @property
    def webhook_secret(self) -> str | None: ...
    @property
    def webhook_secret_file(self) -> Path | None: ...
    @property
    def webhook_ca_file(self) -> Path | None: ...
    @property
    def command(self) -> tuple[str, ...]: ...
    @property
    def delay(self) -> timedelta: ...
    @property
    def interval(self) -> timedelta: ...


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_webhook(value: Any) -> str:
    """An https URL; http only to this very host."""
    text = read_text(value)
    remedy = 'write it like "https://hooks.example.net/posthouse"'
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise Wrong(f"{say(value)} is no URL", remedy) from None
    if not text.isascii() or not text.isprintable() or " " in text or not host:
        raise Wrong(f"{say(value)} is no URL", remedy)
    if parts.scheme == "http" and not _is_loopback(host):
        raise Wrong(f"{say(value)} is not encrypted", "use https; http is for loopback only")
    if parts.scheme not in ("https", "http"):
        raise Wrong(f"{say(value)} is no https URL", remedy)
    if parts.username is not None:
        raise Wrong("it holds a password", "sign with webhook_secret instead")
    return text


def _read_words(value: Any) -> tuple[str, ...]:
    words: tuple[str, ...] = tuple(read_list(read_text)(value))
    if words and not words[0].startswith("/"):
        raise Wrong(f"{say(words[0])} is not a whole path", "write /usr/…: no PATH is searched")
    return words


ALERTS: Final = (
    Key(
        name="mail",
        read=read_flag,
        default=True,
        why="Tell `contact` by mail: alerts and the digest of held mail. It goes by the "
        "contact's own MX, never through a next hop of this backup.",
    ),
    Key(
        name="webhook",
        read=read_webhook,
        default=NONE,
        why="POST alerts as JSON to this https URL (docs/alerts.md).",
    ),
    Key(
        name="webhook_secret",
        read=read_text,
        default=NONE,
        why="Signs them: HMAC-SHA256 over time and body in `Posthouse-Signature`.",
    ),
    Key(
        name="webhook_secret_file",
        read=read_path,
        default=NONE,
        why="File with that secret, instead; white space at its ends does not count.",
    ),
    Key(
        name="webhook_ca_file",
        read=read_path,
        default=NONE,
        why="PEM file of the authorities that vouch for the webhook; none: those of the system.",
    ),
    Key(
        name="command",
        read=_read_words,
        default=[],
        why="Program and arguments; gets alerts as JSON on standard input, 30 s, no shell.",
    ),
    Key(
        name="delay",
        read=read_duration("0s", "1d"),
        default="1m",
        why="What is over sooner is stored but told to nobody; an all-clear waits as long.",
    ),
    Key(
        name="interval",
        read=read_duration("0s", "7d"),
        default="15m",
        why="At most one alert mail in this time; what comes meanwhile is told together.",
    ),
    Key(
        name="digest",
        read=read_duration("1d", "30d"),
        default="1d",
        why="At most one digest of held mail in this time, and only when something new is held.",
    ),
    Key(
        name="digest_delay",
        read=read_duration("0s", "1d"),
        default="15m",
        why="How long the first of them waits for others before the digest is sent.",
    ),
    Key(
        name="oldest_age",
        read=read_duration("1m", "365d"),
        default="1d",
        why="Alert when mail has been queued for longer.",
    ),
    Key(
        name="certificate_days",
        read=read_count(0, 365),
        default=14,
        why="Alert so many days before a certificate of ours ends; ACME clients renew at 30.",
    ),
    Key(
        name="disk_free",
        read=read_size("0B", "1TiB"),
        default="1GiB",
        why="Alert when less is free (at most 10 % of the disk): above `spool.min_free`, where "
        "mail is refused.",
    ),
)


def check_alerts(alerts: dict[str, Any], contact: str | None, findings: Findings) -> None:
    """What no single key shows. Values that were wrong are None."""
    if alerts["webhook_secret"] is not None and alerts["webhook_secret_file"] is not None:
        findings.warn(
            ("alerts", "webhook_secret"), "webhook_secret_file counts instead", "keep one of them"
        )
    signed = alerts["webhook_secret"] or alerts["webhook_secret_file"]
    if alerts["webhook"] is not None and not signed:
        findings.warn(
            ("alerts", "webhook"),
            "its receiver cannot tell who sent an alert",
            "add webhook_secret_file",
        )
    if signed and alerts["webhook"] is None:
        findings.warn(("alerts", "webhook_secret"), "there is no webhook", "add webhook = …")
    told = (contact is not None and alerts["mail"]) or alerts["webhook"] or alerts["command"]
    if contact is None and not told:
        findings.warn((), "nobody is told when something is wrong", "add contact = …")
    if not findings.check_files:
        return
    for name in ("webhook_secret_file", "webhook_ca_file"):
        if alerts[name] is not None:
            try:
                read_secret(alerts[name]) if "secret" in name else open_regular(
                    alerts[name]
                ).close()
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                tell = findings.warn if findings.lists_may_wait else findings.wrong
                tell(("alerts", name), f"{alerts[name]} cannot be used: {why}", "name another")


def read_secret(path: Path) -> bytes:
    """The secret in a file. Raises OSError, ValueError when it is empty or too long."""
    with open_regular(path) as file:
        secret = file.read(MAX_SECRET_BYTES + 1).strip()
    if not secret or len(secret) > MAX_SECRET_BYTES:
        raise ValueError("it is empty or too long")
    return secret
