"""What the primary's process sees to for people: its alerts, stored and told as a node's are.

The publisher says by itself what goes wrong (`alerts`); here it is looked, every few
seconds, at what only time brings: a roster that comes near its end, the
certificate, the disk. Nothing here is needed for serving: whatever fails is logged
and tried again.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from posthouse import observe
from posthouse.config_primary_schema import PrimaryConfig
from posthouse.errors import StorageError
from posthouse.node_process import clock_us
from posthouse.node_rights import make_hostname, make_way
from posthouse.node_tellers import (
    Ways,
    alerts_file,
    make_desk_settings,
    open_connector,
    tell_test,
)
from posthouse.ports_alerts import Alert, AlertSink
from posthouse.ports_publish import PublishedDomain
from posthouse.services import conditions
from posthouse.services.alert_desk import AlertDesk
from posthouse.services.alert_mail import Courier, CourierSettings, HandedMail
from posthouse.services.backup_traffic import BackupTraffic, Traffic
from posthouse.services.standing_alerts import StandingAlerts
from posthouse.storage.alert_store import SqliteAlertStore
from posthouse.storage.traffic_file import load_traffic, save_traffic
from posthouse.transports.certificate import find_end_us
from posthouse.transports.link_mail import LinkMailer
from posthouse.transports.resolver import DnsResolver
from posthouse.transports.smtp_out import OutSettings

LOOK_SECONDS: Final = 2.0
SLOW_LOOK_SECONDS: Final = 30.0
AGAIN_SECONDS: Final = 30.0

Published = Callable[[], Awaitable[Sequence[PublishedDomain]]]


def traffic_file(data_dir: Path) -> Path:
    """Where it is kept what backups came for."""
    return data_dir / "watch" / "backups.json"


def open_traffic(data_dir: Path) -> BackupTraffic:
    """With what is known from before."""
    return BackupTraffic(load_traffic(traffic_file(data_dir), Traffic), now_us=clock_us)


class PrimaryWatch:
    """See the module. published: what is known of every domain's rosters."""

    def __init__(self, config: PrimaryConfig, published: Published, traffic: BackupTraffic) -> None:
        self._config = config
        self._published = published
        self._traffic = traffic
        self._standing = StandingAlerts(clock_us)
        self._desk: AlertDesk | None = None
        self._ways: Ways | None = None
        self._slow_at = 0.0

    @property
    def alerts(self) -> AlertSink:
        """Where others in this process raise and clear."""
        return self._standing

    async def reload(self, config: PrimaryConfig) -> None:
        """Take a new configuration."""
        self._config = config
        self._slow_at = 0.0
        old = self._ways
        if self._desk is None or old is None:
            return
        self._ways = make_primary_ways(config)
        settings = make_desk_settings(config.hostname, config.alerts)
        self._desk.reload(self._ways.channels, settings)
        await old.close()

    async def run(self) -> None:
        """Watch for ever; a store that cannot be opened is tried again."""
        while True:
            try:
                path = alerts_file(self._config.data_dir)
                store = await asyncio.to_thread(SqliteAlertStore.open, path)
            except (StorageError, OSError) as error:
                observe.trouble("alerts", "alerts cannot be stored", error)
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            try:
                await self._work(store)
            finally:
                store.close()

    async def _work(self, store: SqliteAlertStore) -> None:
        config = self._config
        self._ways = make_primary_ways(config)
        settings = make_desk_settings(config.hostname, config.alerts)
        desk = AlertDesk(store, self._ways.channels, settings, clock_us=clock_us)
        self._desk = desk
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(desk.run())
                group.create_task(self._look_forever(desk))
        finally:
            self._desk = None
            await desk.stop()
            await self._ways.close()

    async def _look_forever(self, desk: AlertDesk) -> None:
        while True:
            published = await self._published()
            desk.replace("direct", self._standing.standing())
            desk.replace("rosters", conditions.roster_alerts(published, now_us=clock_us()))
            if time.monotonic() >= self._slow_at:
                self._slow_at = time.monotonic() + SLOW_LOOK_SECONDS
                desk.replace("host", self._look_at_host())
            # A build that is slow to begin must not make an old alert look over.
            if all(domain.tried for domain in published):
                desk.sources_complete()
            await self.save_traffic()
            await asyncio.sleep(LOOK_SECONDS)

    async def save_traffic(self) -> None:
        """Write down what backups came for, if something is new."""
        news = self._traffic.take_news()
        if news is None:
            return
        try:
            await asyncio.to_thread(save_traffic, traffic_file(self._config.data_dir), news)
        except StorageError as error:
            observe.trouble("https", "what backups came for cannot be stored", error)

    def _look_at_host(self) -> list[Alert]:
        config = self._config
        room = os.statvfs(config.data_dir)
        found = [
            conditions.disk_alert(
                room.f_bavail * room.f_frsize,
                min(config.alerts.disk_free, room.f_blocks * room.f_frsize // 10),
                str(config.data_dir),
                else_="on a full disk no roster is made and no agreement granted",
            )
        ]
        if config.https.certificate is not None:
            found.append(self._look_at_certificate(config.https.certificate))
        return [alert for alert in found if alert is not None]

    def _look_at_certificate(self, path: Path) -> Alert | None:
        try:
            end_us = find_end_us(path)
        except (OSError, ValueError):
            return None  # told by whoever uses it
        days = self._config.alerts.certificate_days
        return conditions.certificate_alert(str(path), end_us, days=days, now_us=clock_us())


# --------------------------------------------------------------------------- the ways


def make_primary_ways(config: PrimaryConfig) -> Ways:
    """Those that primary.toml names: mail by the server beside us, else by the contact's MX."""
    if config.contact is None or not config.alerts.mail:
        return Ways(config.alerts, None, clock_us)
    node = make_hostname(config)
    via = config.alerts.mail_via or config.pages.mail_via
    if via is not None:
        mailer = LinkMailer(
            make_way(via),
            sender=f"Posthouse <postmaster@{config.party}>",
            hostname=node,
            now_s=time.time,
        )
        return Ways(config.alerts, HandedMail(mailer, config.contact), clock_us)
    connector = open_connector(OutSettings(helo_name=node))
    courier = Courier(
        CourierSettings(node=node, contact=config.contact, hops={}, own_names=frozenset()),
        resolver=DnsResolver(None),
        connector=connector,
        clock_us=clock_us,
        token=lambda: secrets.token_hex(12),
    )
    return Ways(config.alerts, courier, clock_us, connector=connector)


def try_primary_ways(config: PrimaryConfig) -> list[tuple[str, str]]:
    """Tell a test alert on every way there is: its name, and what failed ("" when nothing did)."""

    async def work() -> list[tuple[str, str]]:
        return await tell_test(config.hostname, make_primary_ways(config))

    return asyncio.run(work())
