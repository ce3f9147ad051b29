"""Whom a node is paired with for agreements: granters before it, backups behind it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from posthouse import observe
from posthouse.config_pairs import load_backup_pairing, load_own_pairing, make_account
from posthouse.config_schema import Config
from posthouse.config_schema_peers import FurtherBackupConfig
from posthouse.errors import ConfigError
from posthouse.interfaces.https_agreements import COMPLETION_PATH, POLICY_PATH
from posthouse.node_agreements import PairedGranter, find_granters, read_granters
from posthouse.node_process import clock_us
from posthouse.ports_https import Peer
from posthouse.proto.pairing import BackupPairing, OwnPairing, PrimaryPairing
from posthouse.services.forwarder_talk import Link
from posthouse.services.granter import ForwarderTerms, GranterSettings
from posthouse.services.parties import Account
from posthouse.transports.agreement_calls import PeerGranter
from posthouse.transports.peers import HeardDate, HttpsPeer


class FurtherBackup(msgspec.Struct, frozen=True):
    """One [[backup]] with what its files say."""

    config: FurtherBackupConfig
    theirs: BackupPairing
    own: OwnPairing

    @property
    def domains(self) -> frozenset[str]:
        """Those that are in the configuration and in what it was given."""
        return frozenset(self.config.domains) & frozenset(self.own.domains)


def read_backups(config: Config) -> list[FurtherBackup]:
    """Every further backup whose files can be read; the others are told of."""
    found: list[FurtherBackup] = []
    for backup in config.backups:
        try:
            theirs = load_backup_pairing(backup.pairing)
            found.append(FurtherBackup(backup, theirs, load_own_pairing(backup.own, "primary")))
        except ConfigError as error:
            observe.alert("agreements", "; ".join(error.mistakes))
    return found


class Pairs:
    """Whom we are paired with, and connections to them. Made anew at each reload."""

    def __init__(self, config: Config, heard_date: HeardDate | None = None) -> None:
        self._heard_date = heard_date
        self.granters = read_granters(config)
        self.backups = read_backups(config)
        self._by_domain = find_granters(config, self.granters)
        self._peers: list[HttpsPeer] = []
        links = {one.theirs.party: self._make_link(one) for one in self.granters}
        self._links = {
            domain: tuple(links[one.theirs.party] for one in paired)
            for domain, paired in self._by_domain.items()
        }
        self.forwarders: dict[str, Peer] = {
            one.theirs.party: self._connect(one.theirs) for one in self.backups
        }

    @property
    def domains(self) -> list[str]:
        """Those that negotiate."""
        return list(self._links)

    def links(self, domain: str) -> Sequence[Link]:
        """The granters of a domain, the owner first."""
        return self._links.get(domain, ())

    def accounts(self) -> tuple[Account, ...]:
        """Who may knock: granters for their policy questions, forwarders for agreements."""
        granters = [
            make_account(one.theirs.party, one.own, frozenset(one.theirs.domains))
            for one in self.granters
        ]
        backups = [make_account(one.theirs.party, one.own, one.domains) for one in self.backups]
        return (*granters, *backups)

    def base_urls(self) -> tuple[str, ...]:
        """Ours, as the others know them."""
        return (
            *(one.own.base_url for one in self.granters),
            *(one.own.base_url for one in self.backups),
        )

    async def close(self) -> None:
        """Give back connections."""
        for peer in self._peers:
            await peer.close()

    def _make_link(self, one: PairedGranter) -> Link:
        return Link(
            party=one.theirs.party,
            forwarder_id=one.own.party,
            policy_url=one.own.base_url + POLICY_PATH,
            calls=PeerGranter(self._connect(one.theirs)),
        )

    def _connect(self, theirs: BackupPairing | PrimaryPairing) -> HttpsPeer:
        peer = HttpsPeer(
            theirs.party,
            theirs.base_url,
            token=theirs.token,
            spki_sha256=theirs.tls_spki_sha256,
            now_us=clock_us,
            heard_date=self._heard_date,
        )
        self._peers.append(peer)
        return peer


def make_granter_settings(config: Config, backups: Sequence[FurtherBackup]) -> GranterSettings:
    """Whom we grant agreements to. Whether blocking is allowed is the owner's to say: our own
    roster is asked when a block comes (`services.policy`), the forwarder's when it arrives there.
    """
    return GranterSettings(
        party=backups[0].own.party if backups else config.hostname,
        completion_url=(backups[0].own.base_url if backups else "") + COMPLETION_PATH,
        forwarders={
            one.theirs.party: ForwarderTerms(
                domains=one.domains,
                policy_base=one.theirs.base_url,
                ask=one.config.agreements == "ask",
            )
            for one in backups
        },
    )
