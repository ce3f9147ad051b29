"""Keys of primary.toml about the pages for mailbox owners: [pages]."""

from __future__ import annotations

import dataclasses
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from posthouse.config_checks import Findings
from posthouse.config_reading import NONE, Key
from posthouse.config_values import (
    FixedHop,
    Wrong,
    read_duration,
    read_fixed_hop,
    read_mailbox,
    read_text,
    say,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PagesConfig:
    """The pages: [pages]. mail_via None: there are none. sender None: postmaster@party."""

    mail_via: FixedHop | Path | None
    sender: str | None
    name: str | None
    link_lifetime: timedelta


def read_mail_via(value: Any) -> FixedHop | Path:
    """A submission host, smtp://host:port, or sendmail:/path."""
    text = read_text(value)
    scheme, _, path = text.partition(":")
    if scheme == "sendmail":
        if not path.startswith("/"):
            raise Wrong(f"{say(value)} has no path", 'write "sendmail:/usr/sbin/sendmail"')
        return Path(path)
    if scheme == "smtp":
        hop: FixedHop = read_fixed_hop(value)
        return hop
    raise Wrong(
        f"{say(value)} is no way to send mail",
        'write "smtp://127.0.0.1:25" or "sendmail:/usr/sbin/sendmail"',
    )


PAGES_KEYS: Final = (
    Key(
        name="mail_via",
        read=read_mail_via,
        default=NONE,
        why="How the one-time link is mailed: `smtp://127.0.0.1:25`, or a program, "
        "`sendmail:/usr/sbin/sendmail` (it gains no privilege: Postfix's needs one, so there "
        "use smtp). Left out: there are no pages.",
    ),
    Key(
        name="from",
        read=read_mailbox,
        default=NONE,
        why="Sender of that mail. Left out: postmaster at `party`.",
    ),
    Key(
        name="name",
        read=read_text,
        default=NONE,
        why="Whose pages these are, for people. Left out: `party`.",
    ),
    Key(
        name="link_lifetime",
        read=read_duration("5m", "1d"),
        default="30m",
        why="How long a mailed link is good; it works once.",
    ),
)


def check_pages(values: dict[str, Any], findings: Findings) -> None:
    """The program can be run."""
    via = values["mail_via"]
    if isinstance(via, Path) and findings.check_files and not os.access(via, os.X_OK):
        findings.wrong(
            ("pages", "mail_via"), f"{via} cannot be run", 'name a program, or "smtp://host:port"'
        )


def make_pages_config(values: dict[str, Any]) -> PagesConfig:
    """From what was read: `from` is no name in Python."""
    return PagesConfig(
        mail_via=values["mail_via"],
        sender=values["from"],
        name=values["name"],
        link_lifetime=values["link_lifetime"],
    )
