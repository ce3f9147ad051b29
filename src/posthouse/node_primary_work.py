"""What the primary's process does: makes rosters, serves the HTTPS door, grants agreements.

Where [postfix] asks for it, it answers Postfix's questions about them too.

One event loop. The door opens with the rosters of before while new ones are made. On
SIGHUP configuration, certificate and pairing files are read again; a pairing that
is no good any more keeps the former settings in force.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from posthouse import observe
from posthouse.config_pairs import load_backup_pairing, load_own_pairing, make_account
from posthouse.config_primary import load_primary
from posthouse.config_primary_schema import PairedBackupConfig, PrimaryConfig
from posthouse.errors import PosthouseError, StorageError
from posthouse.interfaces.https_agreements import (
    AGREEMENTS_PATH,
    COMPLETION_PATH,
    make_agreements_handler,
    make_completion_handler,
)
from posthouse.interfaces.https_app import PeerRoute
from posthouse.interfaces.https_rosters import ROSTER_PATH, RosterDesk
from posthouse.node_https import HttpsHouse, HttpsPlan
from posthouse.node_postfix import PostfixHouse
from posthouse.node_primary_watch import PrimaryWatch, open_traffic
from posthouse.node_process import Process, clock_us, run_in_loop
from posthouse.node_publishing import (
    collect_keys,
    make_plans,
    open_publisher,
    rosters_directory,
)
from posthouse.node_rights import PagesHouse
from posthouse.ports_https import Peer
from posthouse.ports_publish import PublishedDomain
from posthouse.proto.base_url import lies_under
from posthouse.proto.pairing import BackupPairing, OwnPairing
from posthouse.services.granter import ForwarderTerms, Granter, GranterSettings
from posthouse.services.granter_callbacks import GranterCallbacks
from posthouse.storage.granter_book import SqliteGranterBook
from posthouse.storage.published_addresses import PublishedAddresses
from posthouse.supervisor import Heartbeat
from posthouse.transports.agreement_calls import PeerForwarders
from posthouse.transports.peers import HttpsPeer

# How often forwarders that did not confirm an end are told again.
ENDS_SECONDS: Final = 300.0
# How often it is looked for agreements whose mailbox is gone from the roster.
GONE_SECONDS: Final = 3600.0


class Partner(msgspec.Struct, frozen=True, kw_only=True):
    """One backup with what its files say."""

    config: PairedBackupConfig
    theirs: BackupPairing
    own: OwnPairing

    @property
    def domains(self) -> frozenset[str]:
        """Those that are in the configuration and in what it was given."""
        return frozenset(self.config.domains) & frozenset(self.own.domains)


def run_primary(
    config: PrimaryConfig, heartbeat: Heartbeat, *, listeners: Sequence[socket.socket]
) -> int:
    """The duty of the primary's process until SIGTERM."""
    return run_in_loop(PrimaryWork(listeners).run(config, heartbeat))


def read_partners(config: PrimaryConfig) -> tuple[Partner, ...]:
    """Read every pairing file. Raises ConfigError."""
    return tuple(
        Partner(
            config=backup,
            theirs=load_backup_pairing(backup.pairing),
            own=load_own_pairing(backup.own, "primary"),
        )
        for backup in config.backups
    )


class PrimaryWork:
    """See the module."""

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        self._listeners = listeners
        self._peers: dict[str, Peer] = {}
        self._paired: dict[str, BackupPairing] = {}

    async def run(self, config: PrimaryConfig, heartbeat: Heartbeat) -> int:
        """Serve until SIGTERM."""
        self.process = Process(config, heartbeat, self._reload, read=load_primary)
        partners = await asyncio.to_thread(read_partners, config)
        self._traffic = await asyncio.to_thread(open_traffic, config.data_dir)
        self._watch = PrimaryWatch(config, self._describe, self._traffic)
        self._publisher = open_publisher(config, self._watch.alerts)
        self._addresses = PublishedAddresses(rosters_directory(config), collect_keys(config))
        book = await SqliteGranterBook.open(config.data_dir / "agreements")
        settings = make_granter(config, partners)
        await self._set_peers(partners)
        self._granter = Granter(
            settings,
            book=book,
            addresses=self._addresses,
            lies_under=lies_under,
            mint=secrets.token_hex,
            clock_us=clock_us,
        )
        self._callbacks = GranterCallbacks(
            settings,
            book=book,
            addresses=self._addresses,
            calls=PeerForwarders(self._peers),
            mint=secrets.token_hex,
            clock_us=clock_us,
        )
        self._postfix = PostfixHouse(self._granter)
        await self._postfix.set_plan(config.postfix)
        self._pages = PagesHouse(addresses=self._addresses, grants=book, backups=self._callbacks)
        self._house = HttpsHouse(self._listeners, config.data_dir)
        await self._house.set_plan(self._make_plan(config, partners))
        process = self.process
        process.keep(self._house.run(), "watching the HTTPS door")
        process.keep(self._publish(), "making rosters")
        process.keep(self._watch.run(), "watching for people")
        process.keep(self._postfix.run(), "answering Postfix")
        process.keep(self._tell_ends(), "telling ends")
        process.keep(self._end_gone(), "ending agreements of mailboxes that are gone")
        process.serve()
        await process.stopping.wait()
        await self._house.close(config.shutdown_grace.total_seconds())
        await process.end_tasks()
        await self._watch.save_traffic()
        await self._postfix.close()
        await self._pages.close()
        for peer in self._peers.values():
            await peer.close()
        await book.close()
        self._addresses.close()
        return 70 if process.failed else 0

    async def _reload(self, config: PrimaryConfig) -> None:
        partners = await asyncio.to_thread(read_partners, config)
        settings = make_granter(config, partners)
        await self._watch.reload(config)
        self._addresses.set_keys(collect_keys(config))
        self._publisher.set_plans(make_plans(config))
        self._granter.reload(settings)
        self._callbacks.reload(settings)
        await self._set_peers(partners)
        await self._postfix.set_plan(config.postfix)
        opened = await self._house.set_plan(self._make_plan(config, partners))
        await self._publisher.refresh()  # may take minutes; the door has changed already
        if opened:
            observe.note("https", f"reloaded; backups: {', '.join(self._peers) or 'none'}")

    def _make_plan(self, config: PrimaryConfig, partners: Sequence[Partner]) -> HttpsPlan:
        rosters = RosterDesk(self._publisher)
        traffic = self._traffic
        traffic.keep_only({partner.theirs.party for partner in partners})
        return HttpsPlan(
            certificate=config.https.certificate,
            private_key=config.https.private_key,
            accounts=tuple(
                make_account(partner.theirs.party, partner.own, partner.domains)
                for partner in partners
            ),
            routes=(
                PeerRoute(
                    method="GET", path=ROSTER_PATH, handler=traffic.note_fetches(rosters.answer)
                ),
                PeerRoute(
                    method="POST",
                    path=AGREEMENTS_PATH,
                    handler=traffic.note_agreements(make_agreements_handler(self._granter)),
                ),
                PeerRoute(
                    method="POST",
                    path=COMPLETION_PATH,
                    handler=traffic.note_agreements(make_completion_handler(self._granter)),
                ),
            ),
            others=tuple(self._pages.make_routes(config)),
            base_urls=(config.base_url, *(partner.own.base_url for partner in partners)),
        )

    async def _set_peers(self, partners: Sequence[Partner]) -> None:
        """Bring them up to date in place: whoever calls them holds the mapping."""
        wanted = {partner.theirs.party: partner.theirs for partner in partners}
        changed = [name for name, theirs in self._paired.items() if wanted.get(name) != theirs]
        closing = [self._peers.pop(name) for name in changed]
        for name, theirs in wanted.items():
            if name not in self._peers:
                self._peers[name] = HttpsPeer(
                    name,
                    theirs.base_url,
                    token=theirs.token,
                    spki_sha256=theirs.tls_spki_sha256,
                    now_us=clock_us,
                )
        self._paired = wanted
        for peer in closing:
            await peer.close()

    # ------------------------------------------------------------------ what time brings

    async def _describe(self) -> Sequence[PublishedDomain]:
        return await self._publisher.describe()

    async def _publish(self) -> None:
        await self._publisher.refresh()
        await self._publisher.run()

    async def _tell_ends(self) -> None:
        while True:
            await asyncio.sleep(ENDS_SECONDS)
            try:
                await self._callbacks.tell_ends()
            except StorageError as error:
                observe.trouble("agreements", "ends cannot be told", error)

    async def _end_gone(self) -> None:
        while True:
            await asyncio.sleep(GONE_SECONDS)
            try:
                await self._callbacks.forget_ended()
            except StorageError as error:
                observe.trouble("agreements", "what ended cannot be forgotten", error)
            for domain in self.process.config.domains:
                try:
                    count = await self._callbacks.end_gone(domain.name)
                except PosthouseError as error:
                    observe.trouble("agreements", f"{domain.name}: ends cannot be found", error)
                    continue
                if count:
                    observe.note("agreements", f"{domain.name}: {count} ended, mailbox gone")


def make_granter(config: PrimaryConfig, partners: Sequence[Partner]) -> GranterSettings:
    """Whom agreements are granted to, and how."""
    return GranterSettings(
        party=config.party,
        completion_url=config.base_url + COMPLETION_PATH,
        forwarders={
            partner.theirs.party: ForwarderTerms(
                domains=partner.domains,
                policy_base=partner.theirs.base_url,
                ask=partner.config.agreements == "ask",
            )
            for partner in partners
        },
        blocking={domain.name: domain.policy.blocking == "allowed" for domain in config.domains},
    )
