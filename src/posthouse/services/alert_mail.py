"""Mail from this node to its contact: alerts and the digest of held mail.

It goes to the MX of the contact's domain by our own client, never through the
spool and never by way of a next hop that this node backs: a warning that the
primary is down would wait for the primary. A contact whose domain we back up,
or whose every MX is such a next hop or this host, gets nothing, and that is an
alert of its own on the other channels. The null reverse-path keeps bounces from
looking for somebody here (RFC 5321 §4.5.5 allows it for what nobody answers).

Fails with TellingFailed; whoever calls tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from posthouse.domain.mxplan import MAX_EXCHANGES, Ourselves
from posthouse.domain.nexthop import HostPort
from posthouse.errors import DnsTemporary, NextHopFailure, TellingFailed
from posthouse.mail.address import normalize_domain
from posthouse.mail.credentials import Credentials
from posthouse.mail.envelope import Client
from posthouse.ports_alerts import Notice
from posthouse.ports_dns import Resolver
from posthouse.ports_relay import Connector, RecipientResult, Session, Target, Transaction
from posthouse.ports_rights import LinkMail
from posthouse.ports_spool import QueuedMessage, QueuedRecipient
from posthouse.services.alert_text import format_mail, format_notice

SEND_SECONDS: Final = 300.0
"""For one host: a mail this small that takes longer does better at the next try."""
MOST_TARGETS: Final = 10
MOST_DOMAINS: Final = 200
"""Backed-up domains whose MX hosts are looked up to tell whether one is the contact's too."""
REMEMBER_US: Final = 3_600_000_000


class CourierSettings(msgspec.Struct, frozen=True, kw_only=True):
    """node: our name. contact: a mailbox. hops: by backed-up domain, () when it follows its MX.

    own_names, own_addresses as in `RelaySettings`.
    """

    node: str
    contact: str
    hops: Mapping[str, tuple[HostPort, ...]]
    own_names: frozenset[str]
    own_addresses: frozenset[str] = frozenset()
    mx_port: int = 25


class Courier:
    """Sends one mail at a time to the contact."""

    def __init__(
        self,
        settings: CourierSettings,
        *,
        resolver: Resolver,
        connector: Connector,
        clock_us: Callable[[], int],
        token: Callable[[], str],
    ) -> None:
        """token: a fresh unguessable word for each mail's id."""
        self._settings = settings
        self._resolver = resolver
        self._connector = connector
        self._clock_us = clock_us
        self._token = token
        self._backed: tuple[int, frozenset[str]] | None = None

    async def send(self, subject: str, text: str) -> None:
        """Send it. Returns with the 250 of the contact's MX. Raises TellingFailed."""
        settings = self._settings
        octets = format_mail(
            node=settings.node,
            to=settings.contact,
            subject=subject,
            text=text,
            now_us=self._clock_us(),
            token=self._token(),
        )
        failures = []
        for target in await self._find_targets():
            letter = _Letter(settings.contact, octets, self._clock_us())
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await self._send_to(target, letter)
            except TimeoutError:
                failures.append(f"{target.host}: takes too long")
            except NextHopFailure as failure:
                failures.append(failure.detail)
            else:
                return
        raise TellingFailed("; ".join(failures[:3]))

    async def _send_to(self, target: Target, letter: _Letter) -> None:
        session = await self._connector.connect(target, letter)
        try:
            result = await letter.wait_result(session)
        finally:
            session.quit()
        if result.code // 100 != 2:
            raise NextHopFailure(f"{target.host} said {result.text}", stage=result.stage)

    # ------------------------------------------------------------------ where to

    async def _find_targets(self) -> Sequence[Target]:
        """Raises TellingFailed when nobody may or can be asked."""
        settings = self._settings
        domain = normalize_domain(settings.contact.rpartition("@")[2])
        if domain in settings.hops:
            raise TellingFailed(
                f"{settings.contact} is behind this backup; `contact` must be elsewhere",
                for_good=True,
            )
        try:
            hosts = await self._find_hosts(domain)
            backed = await self._find_backed()
            targets, behind = [], 0
            for host in hosts[:MOST_TARGETS]:
                addresses = await self._resolver.find_addresses(host)
                if {host, *addresses} & backed or self._is_us(host, addresses):
                    behind += 1
                    continue
                targets += [
                    Target(host=host, address=address, port=settings.mx_port)
                    for address in addresses
                ]
        except DnsTemporary as error:
            raise TellingFailed(f"DNS: {error.detail}") from error
        if not targets and behind:
            raise TellingFailed(
                f"{settings.contact} is behind this backup: its MX is a next hop of ours; "
                "`contact` must be elsewhere"
            )
        if not targets:
            raise TellingFailed(f"no MX of {domain} has an address")
        return targets[:MOST_TARGETS]

    async def _find_hosts(self, domain: str) -> list[str]:
        mx = await self._resolver.find_mx(domain)
        if mx is None:
            raise TellingFailed(f"{domain} does not exist in DNS")
        if not mx:
            return [domain]  # RFC 5321 §5.1: the domain itself is its MX
        ranked = sorted(mx, key=lambda record: record.preference)[:MAX_EXCHANGES]
        hosts = list(dict.fromkeys(record.exchange for record in ranked if record.exchange))
        if not hosts:
            raise TellingFailed(f"{domain} publishes a null MX")
        return hosts

    def _is_us(self, host: str, addresses: Sequence[str]) -> bool:
        settings = self._settings
        ourselves = Ourselves(names=settings.own_names, addresses=settings.own_addresses)
        return ourselves.include(host, addresses)

    async def _find_backed(self) -> frozenset[str]:
        """Names and addresses of all next hops, as far as DNS tells now; remembered for an hour."""
        now_us = self._clock_us()
        if self._backed is not None and 0 <= now_us - self._backed[0] < REMEMBER_US:
            return self._backed[1]
        hosts: set[str] = set()
        for domain, hops in list(self._settings.hops.items())[:MOST_DOMAINS]:
            if hops:
                hosts |= {hop.host for hop in hops}
                continue
            try:
                hosts |= {mx.exchange for mx in await self._resolver.find_mx(domain) or ()}
            except DnsTemporary:
                continue
        hosts -= {"", *self._settings.own_names}
        places = set(hosts)
        for host in hosts:
            try:
                places |= set(await self._resolver.find_addresses(host))
            except DnsTemporary:
                continue
        self._backed = (now_us, frozenset(places))
        return self._backed[1]


class _Letter:
    """One mail as a `ports_relay.WorkSource`: given once, its result kept."""

    def __init__(self, to: str, octets: bytes, now_us: int) -> None:
        local, _, domain = to.rpartition("@")
        recipient = QueuedRecipient(seq=0, address=to, domain=domain)
        message = QueuedMessage(
            queue_id=0,
            received_us=now_us,
            size_bytes=len(octets),
            envelope_sender="",
            body_type="",
            smtputf8=not local.isascii(),
            ret="",
            envid="",
            client=Client(address="", port=0),
            recipients=(recipient,),
            body=octets,
            recipients_in_all=1,
        )
        self._transaction: Transaction | None = Transaction(message=message, body=octets)
        self._result: asyncio.Future[RecipientResult] = asyncio.get_running_loop().create_future()

    def next_transaction(self) -> Transaction | None:
        """See `ports_relay.WorkSource`."""
        transaction, self._transaction = self._transaction, None
        return transaction

    def finished(self, transaction: Transaction, results: Sequence[RecipientResult]) -> None:  # noqa: ARG002
        """See `ports_relay.WorkSource`."""
        if not self._result.done():
            self._result.set_result(results[0])

    def returned(self, transaction: Transaction, *, why: str, after_dot: bool) -> None:  # noqa: ARG002
        """See `ports_relay.WorkSource`."""
        if not self._result.done():
            self._result.set_exception(NextHopFailure(why, stage="session"))

    def auth_answered(self, credentials: Credentials, *, code: int, text: str) -> None:
        """See `ports_relay.WorkSource`; this mail is under no agreement."""

    async def wait_result(self, session: Session) -> RecipientResult:
        """The contact's MX has answered. Raises NextHopFailure when it went away instead."""
        end = asyncio.ensure_future(session.wait_end())
        try:
            await asyncio.wait((self._result, end), return_when=asyncio.FIRST_COMPLETED)
            if self._result.done():
                return self._result.result()
            raise NextHopFailure(end.result().failure or "the session ended", stage="session")
        finally:
            end.cancel()


class MailToContact(Protocol):
    """A way for one mail to the contact."""

    async def send(self, subject: str, text: str) -> None:
        """Send it. Raises TellingFailed."""


class HandedMail:
    """By a mail server that takes what we hand it: beside a primary there is one."""

    def __init__(self, mailer: LinkMail, contact: str) -> None:
        self._mailer = mailer
        self._contact = contact

    async def send(self, subject: str, text: str) -> None:
        """See `MailToContact`."""
        await self._mailer.send(self._contact, subject, text)


class MailChannel:
    """Alerts as mails. See `ports_alerts.AlertChannel`."""

    name = "mail"

    def __init__(self, courier: MailToContact) -> None:
        self._courier = courier

    async def deliver(self, notice: Notice) -> None:
        """See `ports_alerts.AlertChannel`."""
        await self._courier.send(*format_notice(notice))
