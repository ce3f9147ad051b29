"""The pages for mailbox owners, as [pages] of primary.toml wants them."""

from __future__ import annotations

import ipaddress
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from starlette.routing import BaseRoute

from posthouse.config_primary_schema import PrimaryConfig
from posthouse.config_values import FixedHop
from posthouse.interfaces.pages import PAGES_PATH, PagesLook, make_pages
from posthouse.interfaces.pages_api import make_pages_api
from posthouse.node_process import clock_us
from posthouse.ports_agreements import AddressBook
from posthouse.ports_rights import Backups, GrantsOfMailbox, LinkMail
from posthouse.proto.base_url import parse_base_url
from posthouse.services.user_rights import RightsSettings, UserRights
from posthouse.transports.link_mail import LinkMailer, SendmailProgram, Submission


class PagesHouse:
    """Makes the routes; links and visits outlive a reload."""

    def __init__(
        self, *, addresses: AddressBook, grants: GrantsOfMailbox, backups: Backups
    ) -> None:
        self._addresses = addresses
        self._grants = grants
        self._backups = backups
        self._rights: UserRights | None = None

    def make_routes(self, config: PrimaryConfig) -> Sequence[BaseRoute]:
        """What the door serves besides; nothing without `pages.mail_via`."""
        mail = _make_mail(config)
        if mail is None:
            return ()
        settings = _make_settings(config)
        if self._rights is None:
            self._rights = UserRights(
                settings,
                addresses=self._addresses,
                grants=self._grants,
                backups=self._backups,
                mail=mail,
                mint=secrets.token_urlsafe,
                clock_us=clock_us,
            )
        else:
            self._rights.reload(settings, mail)
        url = parse_base_url(config.base_url)
        look = PagesLook(
            name=config.pages.name or config.party,
            domain=config.domains[0].name,
            minutes=int(config.pages.link_lifetime.total_seconds() // 60),
            secure=url.scheme == "https",
        )
        return (
            *make_pages(self._rights, look, prefix=url.path),
            *make_pages_api(self._rights, prefix=url.path),
        )

    async def close(self) -> None:
        """Let go of links that are being sent."""
        if self._rights is not None:
            await self._rights.close()


def _make_settings(config: PrimaryConfig) -> RightsSettings:
    return RightsSettings(
        party=config.party,
        host=config.hostname,
        blocking={domain.name: domain.policy.blocking == "allowed" for domain in config.domains},
        link_url=f"{config.base_url}{PAGES_PATH}link/",
        link_lifetime=config.pages.link_lifetime,
    )


def _make_mail(config: PrimaryConfig) -> LinkMail | None:
    via = config.pages.mail_via
    if via is None:
        return None
    return LinkMailer(
        make_way(via),
        sender=config.pages.sender or f"postmaster@{config.party}",
        hostname=make_hostname(config),
        now_s=time.time,
    )


def make_way(via: FixedHop | Path) -> Submission | SendmailProgram:
    """What a `mail_via` of primary.toml names."""
    if isinstance(via, Path):
        return SendmailProgram(path=str(via))
    return Submission(host=via.host, port=via.port)


def make_hostname(config: PrimaryConfig) -> str:
    """For EHLO and Message-ID: a name, also where base_url has an address."""
    try:
        ipaddress.ip_address(config.hostname)
    except ValueError:
        return config.hostname
    return config.party
