"""Rosters in a worker: names the engines and wires them; and whose keys they are made with.

The worker answers from what the control process (node_subscriber) put in force,
and releases what was held until somebody vouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from posthouse import observe
from posthouse.config_pairs import load_primary_pairing
from posthouse.config_recipients import RosterOrigin
from posthouse.config_schema import Config
from posthouse.config_schema_domain import DomainConfig
from posthouse.errors import ConfigError
from posthouse.node_process import clock_us
from posthouse.ports_recipients import RecipientDirectory
from posthouse.ports_roster import RosterKeys
from posthouse.ports_spool import Spool
from posthouse.proto.pairing import PrimaryPairing
from posthouse.services.look_ups import LookUpPool
from posthouse.services.roster_watch import RosterWatch
from posthouse.services.voucher import Find, Voucher
from posthouse.storage.roster_store import RosterFiles


def rosters_directory(data_dir: Path) -> Path:
    """Where the rosters in force are kept."""
    return data_dir / "rosters"


def roster_socket(data_dir: Path) -> Path:
    """Where operators reach the subscriber."""
    return data_dir / "run" / "rosters.sock"


def clock_s() -> float:
    """Seconds since 1970, by the node's clock."""
    return clock_us() / 1e6


def make_roster_files(data_dir: Path) -> RosterFiles:
    """The rosters of a node on its disk."""
    return RosterFiles(rosters_directory(data_dir), clock_s=clock_s)


def find_pairings(config: Config) -> dict[str, PrimaryPairing]:
    """For each domain with a roster, whose keys it is made with.

    A domain whose pairing cannot be read is left out and told of: nobody is known there.
    """
    primaries = list(_read_pairings(one.pairing for one in config.primaries))
    found: dict[str, PrimaryPairing] = {}
    for domain in config.domains:
        if domain.roster is None:
            continue
        if domain.roster.pairing is not None:
            own = list(_read_pairings([domain.roster.pairing]))
        else:
            own = [one for one in primaries if _fits(one, domain, domain.roster)]
        if own:
            found[domain.name] = own[0]
        else:
            text = f"{domain.name}: no pairing gives the keys of its roster"
            observe.alert("rosters", text, domain=domain.name)
    return found


def find_publishers(config: Config) -> dict[str, PrimaryPairing]:
    """Whom we are paired with, by name: who may be asked for a roster, whoever made it."""
    return {one.party: one for one in _read_pairings(one.pairing for one in config.primaries)}


def _read_pairings(paths: Iterable[Path]) -> Iterable[PrimaryPairing]:
    for path in paths:
        try:
            yield load_primary_pairing(path)
        except ConfigError as error:
            observe.alert("rosters", "; ".join(error.mistakes))


def _fits(pairing: PrimaryPairing, domain: DomainConfig, origin: RosterOrigin) -> bool:
    if origin.kind == "primary" and pairing.party != origin.place:
        return False
    return domain.name in pairing.domains


def make_keys(domain: str, pairing: PrimaryPairing) -> RosterKeys:
    """What is needed to believe and to read a domain's rosters."""
    return RosterKeys(
        domain=domain,
        party=pairing.party,
        public_keys=(pairing.public_key,),
        roster_keys=pairing.roster_keys,
    )


class RosterView:
    """What a worker knows of rosters. table: where look-ups find the directory of a domain."""

    def __init__(self, config: Config, table: dict[str, RecipientDirectory]) -> None:
        self._pool = LookUpPool(
            threads=config.lookups.threads, guesses_an_hour=config.lookups.guesses
        )
        self.watch = RosterWatch(
            make_roster_files(config.data_dir),
            self._keys(config),
            table=table,
            slow=self._pool,
        )
        self._vouchers: list[Voucher] = []
        self.watch.swapped.append(self._ring)

    async def reload(self, config: Config) -> None:
        """Serve the domains of this configuration."""
        self._pool.set_guesses(config.lookups.guesses)
        await self.watch.set_keys(self._keys(config))
        for voucher in self._vouchers:
            voucher.set_domains(_holding(config))

    def make_voucher(
        self, spool: Spool, config: Config, find: Find, released: Callable[[], None]
    ) -> Voucher:
        """Who releases what is held in one shard."""
        voucher = Voucher(spool, _holding(config), find=find, clock_us=clock_us, released=released)
        self._vouchers.append(voucher)
        return voucher

    def close(self) -> None:
        """Begin no more look-ups."""
        self._pool.close()

    def _ring(self, domain: str) -> None:
        for voucher in self._vouchers:
            voucher.ring(domain)

    @staticmethod
    def _keys(config: Config) -> dict[str, RosterKeys]:
        pairings = find_pairings(config)
        return {domain: make_keys(domain, pairing) for domain, pairing in pairings.items()}


def _holding(config: Config) -> list[str]:
    return [domain.name for domain in config.domains if domain.when_unknown == "hold"]
