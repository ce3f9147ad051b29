"""From primary.toml to what makes its rosters: keys, orders, engines, the service.

Who publishes signs with `data_dir/signing.key`. Each backup has a roster key of its
own in the file that we keep for it (`own`), two while keys are changed; where no
backup is paired for a domain, its rosters are made with `data_dir/roster.key`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from posthouse.config_pairs import load_own_pairing
from posthouse.config_primary_schema import PrimaryConfig, PublishedDomainConfig
from posthouse.config_primary_values import make_trap_rules
from posthouse.errors import ConfigError
from posthouse.mail.wire_text import decode_base64url, encode_base64url
from posthouse.node_sources import open_source
from posthouse.ports_alerts import AlertSink
from posthouse.ports_publish import DigestOrder, RosterOrder
from posthouse.proto.signing import KEY_BYTES
from posthouse.services.roster_publisher import Plan, RosterPublisher
from posthouse.storage.pairs import read_private, write_private
from posthouse.storage.roster_maker import RosterMaker, Signer
from posthouse.storage.roster_offers import RosterOffers

SIGNING_KEY_FILE: Final = "signing.key"
ROSTER_KEY_FILE: Final = "roster.key"
_ROSTERS: Final = "rosters"


def rosters_directory(config: PrimaryConfig) -> Path:
    """Where the rosters lie that were made."""
    return config.data_dir / _ROSTERS


def clock_s() -> int:
    """Seconds since 1970."""
    return int(time.time())


def read_key(path: Path) -> bytes:
    """32 octets from a key file. Raises ConfigError, FileNotFoundError."""
    try:
        return decode_base64url(read_private(path).decode("ascii").strip(), KEY_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except ValueError as error:
        raise ConfigError([f"{path}: no key: {error}; restore it from a copy"]) from error


def write_key(path: Path, key: bytes) -> None:
    """Put a key into a new file, mode 0600. Raises FileExistsError, OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, f"{encode_base64url(key)}\n".encode("ascii"), replace=False)


def load_signer(config: PrimaryConfig) -> Signer:
    """Who publishes. Raises ConfigError when there is no key yet."""
    path = config.data_dir / SIGNING_KEY_FILE
    try:
        return Signer(party=config.party, private_key=read_key(path))
    except FileNotFoundError:
        raise ConfigError(
            [f"{path}: is not there; make it: posthouse roster keygen -c {config.file}"]
        ) from None


def collect_keys(config: PrimaryConfig) -> Mapping[str, tuple[bytes, ...]]:
    """The roster keys of every domain, each once. Raises ConfigError.

    A domain that nobody is paired for has the key of data_dir, if that exists.
    """
    keys: dict[str, dict[bytes, None]] = {domain.name: {} for domain in config.domains}
    for backup in config.backups:
        own = load_own_pairing(backup.own, "primary")
        for domain in backup.domains:
            for credential in own.credentials:
                if credential.roster_key is not None:
                    keys[domain][credential.roster_key] = None
    try:
        plain = read_key(config.data_dir / ROSTER_KEY_FILE)
    except FileNotFoundError:
        plain = None
    return {
        domain: tuple(found) or ((plain,) if plain is not None else ())
        for domain, found in keys.items()
    }


def make_order(domain: PublishedDomainConfig, keys: Sequence[bytes]) -> RosterOrder:
    """What the rosters of one domain are made of and say."""
    return RosterOrder(
        domain=domain.name,
        sources=tuple(open_source(spec, domain.fold) for spec in domain.sources),
        keys=tuple(keys),
        how=domain.fold,
        catch_all=domain.catch_all,
        rules=(*make_trap_rules(domain.traps), *domain.rules),
        digest=DigestOrder(
            scheme=domain.digest.scheme,
            length=domain.digest.bytes,
            n=domain.digest.n,
            p=domain.digest.p,
        ),
        decoy_percent=domain.decoys.percent,
        decoy_multiple=domain.decoys.multiple,
        refresh_seconds=int(domain.refresh_interval.total_seconds()),
        valid_seconds=int(domain.valid_for.total_seconds()),
        limits=domain.limits,
        policy=domain.policy,
        mx=domain.mx,
        max_loss=domain.max_loss,
    )


def make_plans(config: PrimaryConfig) -> tuple[Plan, ...]:
    """All that is to be made, also after a reload. Raises ConfigError."""
    keys = collect_keys(config)
    return tuple(
        Plan(
            order=make_order(domain, keys[domain.name]),
            rebuild_seconds=int(domain.rebuild_interval.total_seconds()),
        )
        for domain in config.domains
        if keys[domain.name]
    )


def open_maker(config: PrimaryConfig) -> RosterMaker:
    """What makes rosters, in data_dir. Raises ConfigError."""
    return RosterMaker(rosters_directory(config), load_signer(config), now_s=clock_s)


def open_publisher(config: PrimaryConfig, alerts: AlertSink) -> RosterPublisher:
    """The service: `await refresh()` once, then `run()`; `find` for the door.

    Raises ConfigError.
    """
    return RosterPublisher(
        open_maker(config),
        RosterOffers(rosters_directory(config)),
        make_plans(config),
        alerts=alerts,
        now_s=clock_s,
    )
