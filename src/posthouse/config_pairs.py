"""Reads the pairing files that a configuration names; every mistake names file and remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from posthouse.errors import ConfigError
from posthouse.proto.pairing import (
    BackupPairing,
    Kind,
    OwnPairing,
    PrimaryPairing,
    parse_backup_pairing,
    parse_own_pairing,
    parse_primary_pairing,
)
from posthouse.proto.signing import key_id
from posthouse.services.parties import Account
from posthouse.storage.pairs import is_open_to_others, read_private

# In data_dir: hashes of tokens that the other sides have shown.
USED_TOKENS_FILE: Final = "tokens.used"

T = TypeVar("T")


def load_primary_pairing(path: Path) -> PrimaryPairing:
    """What a primary gave us. Raises ConfigError."""
    return _load(path, parse_primary_pairing, "ask the primary for a new one: posthouse pair offer")


def load_backup_pairing(path: Path) -> BackupPairing:
    """What a backup gave us. Raises ConfigError."""
    return _load(path, parse_backup_pairing, "ask the backup for a new one: posthouse pair offer")


def load_own_pairing(path: Path, kind: Kind) -> OwnPairing:
    """What we keep of the document we gave away. Raises ConfigError."""
    return _load(path, lambda data: parse_own_pairing(data, kind), "make one: posthouse pair offer")


def warn_of_open_file(path: Path) -> str | None:
    """A warning when others on this machine may read the secrets in it, else None."""
    try:
        if is_open_to_others(path):
            return f"{path}: anybody on this machine can read its secrets; chmod 600 {path}"
    except OSError:
        pass
    return None


def make_account(name: str, own: OwnPairing, domains: frozenset[str]) -> Account:
    """The door's account for the party to which `own` was given."""
    return Account(
        name=name,
        domains=domains,
        token_hashes=tuple(one.token_sha256 for one in own.credentials),
        roster_key_ids=tuple(
            key_id(one.roster_key) for one in own.credentials if one.roster_key is not None
        ),
    )


def _load(path: Path, parse: Callable[[bytes], T], remedy: str) -> T:
    try:
        return parse(read_private(path))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}; {remedy}"]) from error
    except ValueError as error:
        raise ConfigError([f"{path}: no usable pairing file: {error}; {remedy}"]) from error
