"""The ways of telling that a configuration names: mail, webhook, command, with their engines."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from posthouse import node_settings, observe
from posthouse.config_schema import Config
from posthouse.config_schema_alerts import Telling, read_secret
from posthouse.errors import TellingFailed
from posthouse.node_process import clock_us
from posthouse.ports_alerts import Alert, AlertChannel, Notice, StoredAlert
from posthouse.ports_spool import Body
from posthouse.services.alert_desk import DeskSettings
from posthouse.services.alert_mail import Courier, CourierSettings, MailChannel, MailToContact
from posthouse.services.alert_text import notice_document
from posthouse.transports.alert_command import AlertCommand
from posthouse.transports.resolver import DnsResolver
from posthouse.transports.smtp_out import OutSettings, SmtpConnector
from posthouse.transports.webhook import Webhook

QUICK_INTERVAL_US: Final = 10_000_000
"""Webhook and command: what comes within seconds is told together."""


def as_us(span: timedelta) -> int:
    """Microseconds."""
    return span // timedelta(microseconds=1)


class Ways:
    """The ways of telling that a configuration names, and what they need."""

    def __init__(
        self,
        telling: Telling,
        mail: MailToContact | None,
        clock_us: Callable[[], int],
        *,
        connector: SmtpConnector | None = None,
    ) -> None:
        """mail: the way to the contact, if mails are sent. connector: is closed with us."""
        self.mail = mail
        self._connector = connector
        self.channels: list[AlertChannel] = []
        if mail is not None:
            self.channels.append(MailChannel(mail))
        if telling.webhook is not None:
            self.channels.append(
                Webhook(
                    telling.webhook,
                    secret=_find_secret(telling),
                    ca_file=telling.webhook_ca_file,
                    clock_us=clock_us,
                    document=notice_document,
                )
            )
        if telling.command:
            self.channels.append(AlertCommand(telling.command, document=notice_document))

    async def close(self) -> None:
        """Let go of connections."""
        if self._connector is not None:
            await self._connector.close()


def alerts_file(data_dir: Path) -> Path:
    """Where alerts are stored, of a node and of a primary."""
    return data_dir / "watch" / "alerts.db"


def make_ways(
    config: Config, listening: Sequence[tuple[str, int]], clock_us: Callable[[], int]
) -> Ways:
    """Those of a node: its mails go by the contact's own MX."""
    if config.contact is None or not config.alerts.mail:
        return Ways(config.alerts, None, clock_us)
    connector = _make_connector(config)
    courier = _make_courier(config, listening, connector, clock_us)
    return Ways(config.alerts, courier, clock_us, connector=connector)


def open_connector(settings: OutSettings) -> SmtpConnector:
    """Sessions for mails that are in memory."""

    async def open_body(_queue_id: int) -> Body:
        raise KeyError("alerts are in memory")

    return SmtpConnector(settings, open_body)


def _make_connector(config: Config) -> SmtpConnector:
    # Whoever looks after the node chose the contact; its MX need not be what `relay.tls` asks
    # of a primary.
    settings = node_settings.make_out(config)
    if settings.tls in ("required", "verified"):
        settings = dataclasses.replace(settings, tls="opportunistic")
    return open_connector(settings)


def _make_courier(
    config: Config,
    listening: Sequence[tuple[str, int]],
    connector: SmtpConnector,
    clock_us: Callable[[], int],
) -> Courier:
    assert config.contact is not None
    relay = node_settings.make_relay(config, 1, listening)
    return Courier(
        CourierSettings(
            node=config.hostname,
            contact=config.contact,
            hops={name: route.hops for name, route in node_settings.make_routes(config).items()},
            own_names=relay.own_names,
            own_addresses=relay.own_addresses,
            mx_port=relay.mx_port,
        ),
        resolver=DnsResolver(
            [str(server) for server in config.dns.servers] or None,
            lifetime_seconds=config.dns.timeout.total_seconds(),
        ),
        connector=connector,
        clock_us=clock_us,
        token=lambda: secrets.token_hex(12),
    )


def _find_secret(alerts: Telling) -> bytes:
    if alerts.webhook_secret_file is not None:
        try:
            return read_secret(alerts.webhook_secret_file)
        except (OSError, ValueError) as error:
            observe.trouble("alerts", "webhooks go unsigned", error)
            return b""
    return (alerts.webhook_secret or "").encode()


def make_desk_settings(node: str, telling: Telling) -> DeskSettings:
    """How long to wait and how often to tell. node: our name."""
    interval_us = as_us(telling.interval)
    quick_us = min(interval_us, QUICK_INTERVAL_US)
    return DeskSettings(
        node=node,
        delay_us=as_us(telling.delay),
        intervals={"mail": interval_us, "webhook": quick_us, "command": quick_us},
    )


def try_ways(config: Config) -> list[tuple[str, str]]:
    """Tell a test alert on every way there is: its name, and what failed ("" when nothing did)."""

    async def work() -> list[tuple[str, str]]:
        listening = [(one.address, one.port) for one in config.smtp.listen]
        return await tell_test(config.hostname, make_ways(config, listening, clock_us))

    return asyncio.run(work())


async def tell_test(node: str, ways: Ways) -> list[tuple[str, str]]:
    """The same for ways that are made; they are closed."""
    now_us = clock_us()
    alert = Alert(
        kind="test",
        subject="",
        text="this is a test, asked for with posthouse alerts --test",
        what_to_do="Nothing is wrong",
        since_us=now_us,
    )
    stored = StoredAlert(number=0, alert=alert, raised_us=now_us)
    notice = Notice(node=node, number=0, alerts=(stored,), made_us=now_us)
    tried = []
    try:
        for channel in ways.channels:
            try:
                await channel.deliver(notice)
            except TellingFailed as failure:
                tried.append((channel.name, failure.detail))
            else:
                tried.append((channel.name, ""))
    finally:
        await ways.close()
    return tried
