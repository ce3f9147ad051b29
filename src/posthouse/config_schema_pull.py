"""The keys of mail that is fetched: [odmr] and [[pull]] (RFC 2645)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

from posthouse.config_checks import Findings, open_regular
from posthouse.config_reading import REQUIRED, Key
from posthouse.config_values import (
    PULL,
    Endpoint,
    read_distinct,
    read_domain,
    read_endpoint,
    read_list,
    read_path,
    read_text,
)

MIN_SECRET: Final = 16
"""Characters. CRAM-MD5 lets whoever listens guess at leisure: short secrets fall."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OdmrConfig:
    """The door for ATRN: [odmr]. listen () = none."""

    listen: tuple[Endpoint, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PullConfig:
    """Who may fetch what: [[pull]]. secret: from secret_file, "" when files were not looked at."""

    user: str
    secret_file: Path
    domains: tuple[str, ...]
    secret: str = dataclasses.field(repr=False)


ODMR_KEYS: Final = (
    Key(
        name="listen",
        read=read_distinct(read_endpoint(366)),
        default=[],
        why="IP addresses, with ports if not 366, where primaries dial in to fetch their mail "
        "(ATRN, RFC 2645). Empty: nowhere. STARTTLS uses the certificate of `[smtp]`.",
    ),
)

PULL_KEYS: Final = (
    Key(name="user", read=read_text, default=REQUIRED, why="Who dials in, as AUTH names it."),
    Key(
        name="secret_file",
        read=read_path,
        default=REQUIRED,
        why="File whose first line is the secret, 16 characters or more. Made for nothing else: "
        "CRAM-MD5 wants it readable on both sides.",
    ),
    Key(
        name="domains",
        read=read_list(read_domain, empty=False),
        default=REQUIRED,
        why='Whose mail it may fetch; these have `next_hop = "pull"`.',
    ),
)


def read_pulls(
    pulls: list[dict[str, Any]],
    listen: tuple[Endpoint, ...] | None,
    domains: list[dict[str, Any]],
    findings: Findings,
) -> tuple[PullConfig, ...]:
    """Check who fetches what against the domains, and read the secrets. `None` was wrong before."""
    pulled = {d["name"] for d in domains if d["next_hop"] == PULL}
    owner: dict[str, str] = {}
    users: set[str] = set()
    made: list[PullConfig] = []
    for index, pull in enumerate(pulls):
        user = pull["user"]
        if user in users:
            findings.wrong(("pull", index, "user"), f"{user} stands twice", "remove one")
        users.add(user)
        for at, domain in enumerate(pull["domains"] or ()):
            path = ("pull", index, "domains", at)
            if domain not in pulled:
                findings.wrong(
                    path,
                    f"{domain} is not fetched",
                    'give its [[domain]] next_hop = "pull", or remove it here',
                )
            elif domain in owner:
                findings.wrong(path, f"{domain} is fetched by {owner[domain]} already", "choose")
            else:
                owner[domain] = user
        secret = _read_secret(("pull", index, "secret_file"), pull["secret_file"], findings)
        if None not in pull.values():
            made.append(PullConfig(**pull, secret=secret))
    for index, domain in enumerate(domains):
        if domain["next_hop"] == PULL and domain["name"] not in owner:
            findings.wrong(
                ("domain", index, "next_hop"),
                f"nobody may fetch the mail of {domain['name']}",
                "name it in the domains of a [[pull]]",
            )
        if domain["next_hop"] == PULL and domain["standby"] not in (None, "relay"):
            findings.wrong(
                ("domain", index, "standby"),
                f"the primary of {domain['name']} fetches its mail: clients cannot reach it",
                'remove it: `next_hop = "pull"` goes with standby = "relay"',
            )
    if pulls and not listen and listen is not None:
        findings.wrong(("odmr", "listen"), "nobody can dial in", 'add listen = ["0.0.0.0:366"]')
    return tuple(made)


def _read_secret(path: tuple[str | int, ...], file: Path | None, findings: Findings) -> str:
    if file is None or not findings.check_files:
        return ""
    try:
        with open_regular(file) as stream:
            line = stream.readline(4096)
        secret = line.decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        findings.wrong(path, f"{file} cannot be read: {why}", "name a readable file")
        return ""
    if len(secret) < MIN_SECRET:
        findings.wrong(
            path,
            f"the secret in {file} has {len(secret)} characters",
            f"{MIN_SECRET} at least: openssl rand -base64 24",
        )
    if file.stat().st_mode & 0o007:
        findings.warn(path, f"{file} is open to every user", f"chmod o= {file}")
    return secret
