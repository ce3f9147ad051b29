"""Keys of primary.toml about alerts: [alerts], as in posthouse.toml, where they mean something.

A primary has no queue: what is about held or waiting mail is left out. `mail_via`
is its own: beside a primary there is a mail server.
"""

from __future__ import annotations

import dataclasses
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from posthouse.config_checks import Findings
from posthouse.config_primary_pages import read_mail_via
from posthouse.config_reading import NONE, Key
from posthouse.config_schema_alerts import ALERTS, check_alerts
from posthouse.config_values import FixedHop

_ABOUT_QUEUES: Final = ("digest", "digest_delay", "oldest_age")
_WHY: Final = {
    "mail": "Tell `contact` by mail.",
    "disk_free": "Alert when less is free (at most 10 % of the disk) where `data_dir` is.",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PrimaryAlertsConfig:
    """Who is told: [alerts]. mail_via None: by the pages' way, else by the contact's MX."""

    mail: bool
    mail_via: FixedHop | Path | None
    webhook: str | None
    webhook_secret: str | None = dataclasses.field(repr=False)
    webhook_secret_file: Path | None
    webhook_ca_file: Path | None
    command: tuple[str, ...]
    delay: timedelta
    interval: timedelta
    certificate_days: int
    disk_free: int


_MAIL_VIA: Final = Key(
    name="mail_via",
    read=read_mail_via,
    default=NONE,
    why="How those mails are sent, written as `pages.mail_via`. Left out: as there; where that is "
    "left out too, to the MX of the contact's domain, which wants port 25 open outwards.",
)


def _make_keys() -> tuple[Key, ...]:
    keys = []
    for key in ALERTS:
        if key.name not in _ABOUT_QUEUES:
            keys.append(dataclasses.replace(key, why=_WHY.get(key.name, key.why)))
        if key.name == "mail":
            keys.append(_MAIL_VIA)
    return tuple(keys)


ALERTS_KEYS: Final = _make_keys()


def resolve_alerts(base: Path, alerts: dict[str, Any]) -> None:
    """Make paths absolute; relative ones start where the file is."""
    for name in ("webhook_secret_file", "webhook_ca_file"):
        if alerts[name] is not None:
            alerts[name] = base / alerts[name]


def check_primary_alerts(alerts: dict[str, Any], contact: str | None, findings: Findings) -> None:
    """What no single key shows. Values that were wrong are None."""
    check_alerts(alerts, contact, findings)
    via = alerts["mail_via"]
    if isinstance(via, Path) and findings.check_files and not os.access(via, os.X_OK):
        findings.wrong(
            ("alerts", "mail_via"), f"{via} cannot be run", 'name a program, or "smtp://host:port"'
        )
    if via is not None and contact is None:
        findings.warn(("alerts", "mail_via"), "there is nobody to mail to", "add contact = …")
