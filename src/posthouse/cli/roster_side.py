"""Whose rosters the commands look at: those we fetched (posthouse.toml) or made (primary.toml)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from posthouse.config import load
from posthouse.config_primary import is_primary_file, load_primary
from posthouse.config_primary_schema import PrimaryConfig
from posthouse.config_schema import Config
from posthouse.domain.verdict import WhenUnknown
from posthouse.errors import PosthouseError
from posthouse.node_publishing import collect_keys, load_signer, rosters_directory
from posthouse.node_rosters import find_pairings, make_keys, make_roster_files
from posthouse.ports_roster import RosterKeys
from posthouse.proto.signing import derive_public_key, key_id
from posthouse.storage.roster_body import RosterBody
from posthouse.storage.roster_offers import RosterOffers


class NoRoster(PosthouseError):
    """There is nothing to look at."""


class RosterSide(Protocol):
    """One side of a pairing, as `roster inspect` and `roster test` see it."""

    def find_keys(self, domain: str) -> RosterKeys | None:
        """What its rosters are checked and read with. Raises ConfigError."""

    def open_in_force(self, domain: str) -> RosterBody:
        """The roster in force. Raises NoRoster, StorageError, ConfigError."""

    def find_when_unknown(self, domain: str) -> WhenUnknown:
        """What the backup answers where nobody can tell."""


def open_side(file: Path) -> RosterSide:
    """Which side a configuration file is for. Raises ConfigError."""
    if is_primary_file(file):
        return _Primary(load_primary(file, check_files=False))
    return _Backup(load(file, check_files=False))


class _Backup:
    def __init__(self, config: Config) -> None:
        self._config = config

    def find_keys(self, domain: str) -> RosterKeys | None:
        pairing = find_pairings(self._config).get(domain)
        return None if pairing is None else make_keys(domain, pairing)

    def open_in_force(self, domain: str) -> RosterBody:
        files = make_roster_files(self._config.data_dir)
        facts = files.get_state(domain).in_force
        if facts is None:
            raise NoRoster(f"{domain} has no roster yet: posthouse roster fetch")
        return files.open_body(domain, facts)

    def find_when_unknown(self, domain: str) -> WhenUnknown:
        for one in self._config.domains:
            if one.name == domain:
                return WhenUnknown(one.when_unknown)
        return WhenUnknown.DEFER


class _Primary:
    def __init__(self, config: PrimaryConfig) -> None:
        self._config = config

    def find_keys(self, domain: str) -> RosterKeys | None:
        keys = collect_keys(self._config).get(domain)
        if not keys:
            return None
        signer = load_signer(self._config)
        return RosterKeys(
            domain=domain,
            party=signer.party,
            public_keys=(derive_public_key(signer.private_key),),
            roster_keys=keys,
        )

    def open_in_force(self, domain: str) -> RosterBody:
        """Every backup's says the same: the first will do."""
        offers = RosterOffers(rosters_directory(self._config))
        for key in collect_keys(self._config).get(domain, ()):
            reply = offers.find(domain, key_id(key), since=None, if_none_match="")
            if reply is not None:
                return RosterBody(Path(reply.path), None)
        raise NoRoster(f"{domain} has no roster yet: posthouse roster build")

    def find_when_unknown(self, domain: str) -> WhenUnknown:  # noqa: ARG002 (the backup's affair)
        return WhenUnknown.DEFER
