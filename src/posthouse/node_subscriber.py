"""Rosters in the control process: fetched, checked, in force. Names the engines, wires them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from posthouse.config_recipients import RosterOrigin
from posthouse.config_schema import Config
from posthouse.interfaces.roster_door import RosterDoor
from posthouse.node_process import Process, clock_us
from posthouse.node_rosters import (
    find_pairings,
    find_publishers,
    make_keys,
    make_roster_files,
    roster_socket,
)
from posthouse.ports_alerts import AlertSink
from posthouse.ports_https import Peer
from posthouse.ports_roster import RosterSource
from posthouse.proto.base_url import join_url
from posthouse.proto.pairing import PrimaryPairing
from posthouse.services.mx_watch import MxWatch
from posthouse.services.roster_sources import PeerRosters, UrlRosters
from posthouse.services.subscriber import Subscriber, Subscription
from posthouse.storage.roster_local import LocalRoster
from posthouse.transports.peers import HeardDate, HttpsPeer
from posthouse.transports.resolver import DnsResolver

# How long the first mail ever may wait for the first rosters ever.
FIRST_SECONDS: Final = 3.0


class RosterDuty:
    """The subscriber with its door and its connections."""

    def __init__(
        self, config: Config, alerts: AlertSink, *, heard_date: HeardDate | None = None
    ) -> None:
        self._heard_date = heard_date
        self._files = make_roster_files(config.data_dir)
        self._peers: list[HttpsPeer] = []
        self._door: RosterDoor | None = None
        self._refreshing: set[asyncio.Task[None]] = set()
        self.subscriber = Subscriber(
            self._files, (), alerts=alerts, now_us=clock_us, dice=random.random
        )
        self._mx = MxWatch(
            self._files.read_says,
            DnsResolver(
                [str(server) for server in config.dns.servers] or None,
                lifetime_seconds=config.dns.timeout.total_seconds(),
            ),
            alerts=alerts,
            now_us=clock_us,
        )

    def prepare(self, config: Config) -> None:
        """Make the directories and take up the subscriptions. Raises StorageError."""
        self._files.prepare()
        self.subscriber.set_subscriptions(self._subscribe(config))

    async def open(self, config: Config, process: Process[Any]) -> None:
        """Begin to fetch, and let operators in. Raises OSError.

        Where there is no roster yet, the first ones are waited for, a little.
        """
        self._door = RosterDoor(self.subscriber)
        await self._door.open(roster_socket(config.data_dir))
        domains = [one.name for one in config.domains if one.roster is not None]
        if any(self._files.get_version(domain) is None for domain in domains):
            first = asyncio.ensure_future(self._refresh(()))
            self._refreshing.add(first)
            first.add_done_callback(self._refreshing.discard)
            await asyncio.wait([first], timeout=FIRST_SECONDS)
        self._watch_mx(config)
        process.keep(self.subscriber.run(), "fetching rosters")
        process.keep(self._mx.run(), "comparing MX records")

    def reload(self, config: Config) -> None:
        """Watch the domains of this configuration, and ask for all of them at once."""
        old, self._peers = self._peers, []
        self.subscriber.set_subscriptions(self._subscribe(config))
        self._watch_mx(config)
        task = asyncio.ensure_future(self._refresh(old))  # a primary may be slow to answer
        self._refreshing.add(task)
        task.add_done_callback(self._refreshing.discard)

    def _watch_mx(self, config: Config) -> None:
        domains = [one.name for one in config.domains if one.roster is not None]
        self._mx.set_domains(domains, {config.hostname, *config.relay.own_names})

    async def _refresh(self, old: Sequence[HttpsPeer]) -> None:
        """Attempts under way end with the connections that they began with."""
        try:
            await self.subscriber.refresh()
        finally:
            for peer in old:
                await peer.close()

    async def close(self) -> None:
        """Give back everything; the tasks have ended before."""
        for task in self._refreshing:
            task.cancel()
        await asyncio.gather(*self._refreshing, return_exceptions=True)
        if self._door is not None:
            await self._door.close()
        for peer in self._peers:
            await peer.close()

    def _subscribe(self, config: Config) -> Sequence[Subscription]:
        pairings, publishers = find_pairings(config), find_publishers(config)
        paired: dict[str, HttpsPeer] = {}
        subscriptions = []
        for domain in config.domains:
            pairing, origin = pairings.get(domain.name), domain.roster
            if origin is None or pairing is None:
                continue
            # A backup in front of us may hand on what the owner made (`pairing` beside it).
            asked = publishers.get(origin.place, pairing) if origin.kind == "primary" else pairing
            if asked.party not in paired:
                paired[asked.party] = self._connect(asked)
            source = self._make_source(domain.name, origin, paired[asked.party])
            subscriptions.append(
                Subscription(
                    keys=make_keys(domain.name, pairing),
                    source=source,
                    max_loss_percent=origin.max_loss,
                )
            )
        return subscriptions

    def _make_source(self, domain: str, origin: RosterOrigin, peer: Peer) -> RosterSource:
        if origin.kind == "file":
            return LocalRoster(Path(origin.place))
        if origin.kind == "primary":
            return PeerRosters(peer, domain)
        try:
            join_url(peer.base_url, origin.place)
        except ValueError:  # another server: it must not see our token
            base = origin.place.partition("?")[0].rpartition("/")[0] + "/"
            peer = self._keep(
                HttpsPeer(origin.place, base, token="", spki_sha256=None, now_us=clock_us)
            )
        return UrlRosters(peer, origin.place)

    def _connect(self, pairing: PrimaryPairing) -> HttpsPeer:
        return self._keep(
            HttpsPeer(
                pairing.party,
                pairing.base_url,
                token=pairing.token,
                spki_sha256=pairing.tls_spki_sha256,
                now_us=clock_us,
                heard_date=self._heard_date,
            )
        )

    def _keep(self, peer: HttpsPeer) -> HttpsPeer:
        self._peers.append(peer)
        return peer
