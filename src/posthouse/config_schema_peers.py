"""Keys of posthouse.toml about the other sides of our pairings: [https] and [[primary]]."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final, Literal

from posthouse.config_reading import NONE, REQUIRED, Key
from posthouse.config_values import (
    Endpoint,
    read_choice,
    read_distinct,
    read_domain,
    read_endpoint,
    read_path,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HttpsConfig:
    """The door for call-backs: [https]. listen (): there is none. certificate None: clear text."""

    listen: tuple[Endpoint, ...]
    certificate: Path | None
    private_key: Path | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PairedPrimaryConfig:
    """One primary we are paired with: [[primary]]. pairing: theirs; own: ours."""

    pairing: Path
    own: Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FurtherBackupConfig:
    """A backup behind us that we grant agreements to: [[backup]]. pairing: theirs; own: ours."""

    pairing: Path
    own: Path
    domains: tuple[str, ...]
    agreements: Literal["auto", "ask"]


HTTPS_KEYS: Final = (
    Key(
        name="listen",
        read=read_distinct(read_endpoint()),
        default=[],
        why="Where paired primaries call back, such as `0.0.0.0:8447`. Empty: nowhere. Without a "
        "certificate: on loopback only.",
    ),
    Key(
        name="certificate",
        read=read_path,
        default=NONE,
        why="PEM file, chain included. Left out: that of `[smtp]`.",
    ),
    Key(
        name="private_key",
        read=read_path,
        default=NONE,
        why="PEM file with its key; `user` must be able to read it.",
    ),
)

PRIMARY_KEYS: Final = (
    Key(
        name="pairing",
        read=read_path,
        default=REQUIRED,
        why="What the primary gave us; `posthouse pair accept` puts it in place.",
    ),
    Key(
        name="own",
        read=read_path,
        default=REQUIRED,
        why="What we keep of the offer we made it; `posthouse pair offer` makes it.",
    ),
)

BACKUP_KEYS: Final = (
    Key(
        name="pairing",
        read=read_path,
        default=REQUIRED,
        why="What the further backup gave us: a backup behind this one, at a higher preference.",
    ),
    Key(
        name="own",
        read=read_path,
        default=REQUIRED,
        why="What we keep of the document we gave it. See [agreements.md](agreements.md).",
    ),
    Key(
        name="domains",
        read=read_distinct(read_domain),
        default=REQUIRED,
        why="The domains it backs up behind us; each is a `[[domain]]` here too.",
    ),
    Key(
        name="agreements",
        read=read_choice("auto", "ask"),
        default="auto",
        why='Grant what our roster vouches for; or "ask": `posthouse agreements grant`.',
    ),
)
