"""What the owner of a mailbox may know and do about the servers that hold the address.

Control of the address is proved by a link that is mailed to it: good once and
for a short while. Whoever asks hears the same answer, at once, whether the
address exists or not; what is done about it happens afterwards. How often a link
may be asked for is limited by address, by client network and in all.

Links and visits live in memory, by the hash of their secret: a restart ends them,
and a stolen copy of the disk opens nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final

import msgspec

from posthouse import observe
from posthouse.domain.buckets import Buckets
from posthouse.errors import AddressError, PosthouseError
from posthouse.mail.address import Mailbox, parse_path
from posthouse.mail.recipes import Denial, Holder, Refusal
from posthouse.ports_agreements import AddressBook, Grant, GrantState
from posthouse.ports_rights import (
    Backups,
    GrantsOfMailbox,
    LinkMail,
    Overview,
    Server,
    Visit,
)

SECRET_BYTES: Final = 24
VISIT_LIFETIME: Final = timedelta(minutes=30)
# A person who mistypes needs a few; more would be a way to flood a mailbox.
LINKS_AN_HOUR: Final = 4
# Behind one network sit many people, or one who tries addresses.
ASKED_AN_HOUR_BY_NETWORK: Final = 30
ASKED_AN_HOUR_IN_ALL: Final = 1000
MAX_LINKS: Final = 5000
MAX_VISITS: Final = 5000
MAX_TASKS: Final = 50

_OVER = (GrantState.ENDED, GrantState.ENDING, GrantState.REFUSED)


class RightsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """party: our name; host: of this server, for the list.

    blocking: by domain of ours, whether its users may block. link_url: the page that
    takes the secret, to which it is appended.
    """

    party: str
    host: str
    blocking: Mapping[str, bool]
    link_url: str
    link_lifetime: timedelta = timedelta(minutes=30)


class _Link(msgspec.Struct, frozen=True):
    mailbox: str
    domain: str
    until_us: int


class UserRights:
    """See the module. One for all pages and the API."""

    def __init__(
        self,
        settings: RightsSettings,
        *,
        addresses: AddressBook,
        grants: GrantsOfMailbox,
        backups: Backups,
        mail: LinkMail,
        mint: Callable[[int], str],
        clock_us: Callable[[], int],
    ) -> None:
        """mint: n random octets as text for a URL."""
        self._settings = settings
        self._addresses = addresses
        self._grants = grants
        self._backups = backups
        self._mail = mail
        self._mint = mint
        self._clock_us = clock_us
        self._links: dict[bytes, _Link] = {}
        self._visits: dict[bytes, Visit] = {}
        self._tasks: set[asyncio.Task[None]] = set()

        def clock() -> float:
            return clock_us() / 1e6

        self._by_address = Buckets(per_minute=LINKS_AN_HOUR / 60, burst=LINKS_AN_HOUR, clock=clock)
        self._by_network = Buckets(
            per_minute=ASKED_AN_HOUR_BY_NETWORK / 60, burst=ASKED_AN_HOUR_BY_NETWORK, clock=clock
        )
        self._in_all = Buckets(
            per_minute=ASKED_AN_HOUR_IN_ALL / 60, burst=ASKED_AN_HOUR_IN_ALL, clock=clock
        )

    def reload(self, settings: RightsSettings, mail: LinkMail) -> None:
        """Put new settings in force; links and visits stay good."""
        self._settings = settings
        self._mail = mail

    async def close(self) -> None:
        """Let go of what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------------ proving control

    def ask_link(self, address: str, network: str) -> int:
        """Ask for a link to be mailed; returns seconds to wait when the asker is too eager, else 0.

        Says nothing about the address, by its answer or by its time.
        """
        wait = self._by_network.take(network) or self._in_all.take("")
        if wait:
            return wait
        if len(self._tasks) < MAX_TASKS:
            task = asyncio.get_running_loop().create_task(self._send_link(address))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            observe.note("rights", "a link was not sent: too many are under way")
        return 0

    async def _send_link(self, address: str) -> None:
        try:
            mailbox = _parse(address)
            if mailbox is None or mailbox.domain not in self._settings.blocking:
                return
            found = await self._addresses.find(mailbox.domain, mailbox.local)
            if not found.exists or self._by_address.take(found.mailbox):
                return
            secret = self._keep_link(found.mailbox, mailbox.domain)
            await self._mail.send(found.mailbox, *self._write(found.mailbox, secret))
        except PosthouseError as error:
            observe.trouble("rights", "a link could not be sent", error)
        except Exception as error:  # one link fails, the page goes on
            observe.trouble("rights", "a link could not be made", error)

    def _keep_link(self, mailbox: str, domain: str) -> str:
        now_us = self._clock_us()
        for digest in [key for key, link in self._links.items() if link.until_us <= now_us]:
            del self._links[digest]
        if len(self._links) >= MAX_LINKS:
            del self._links[next(iter(self._links))]
        secret = self._mint(SECRET_BYTES)
        lifetime_us = self._settings.link_lifetime // timedelta(microseconds=1)
        self._links[_hash(secret)] = _Link(mailbox, domain, now_us + lifetime_us)
        return secret

    def _write(self, mailbox: str, secret: str) -> tuple[str, str]:
        minutes = int(self._settings.link_lifetime.total_seconds() // 60)
        subject = "Your link: which servers hold your address"
        text = (
            f"Somebody, you we hope, asked {self._settings.party} which servers hold\n"
            f"the address {mailbox}.\n"
            "\n"
            "Open this link to see them. It works once, and for "
            f"{minutes} minutes:\n"
            "\n"
            f"    {self._settings.link_url}{secret}\n"
            "\n"
            "If you did not ask, do nothing: nobody but you gets this link,\n"
            "and nothing is changed by it.\n"
        )
        return subject, text

    def find_link(self, secret: str) -> bool:
        """Tell whether a link is still good, without using it up (mail scanners open links)."""
        link = self._links.get(_hash(secret))
        return link is not None and link.until_us > self._clock_us()

    def redeem(self, secret: str) -> str | None:
        """Use a link up; returns the secret of a new visit, None when it is not good (any more)."""
        link = self._links.pop(_hash(secret), None)
        now_us = self._clock_us()
        if link is None or link.until_us <= now_us:
            return None
        for digest in [key for key, one in self._visits.items() if one.until_us <= now_us]:
            del self._visits[digest]
        if len(self._visits) >= MAX_VISITS:
            del self._visits[next(iter(self._visits))]
        visit_secret = self._mint(SECRET_BYTES)
        self._visits[_hash(visit_secret)] = Visit(
            mailbox=link.mailbox,
            domain=link.domain,
            csrf=self._mint(SECRET_BYTES),
            until_us=now_us + VISIT_LIFETIME // timedelta(microseconds=1),
        )
        return visit_secret

    # ------------------------------------------------------------------ a visit

    def find_visit(self, secret: str) -> Visit | None:
        """The visit a cookie or bearer token stands for."""
        visit = self._visits.get(_hash(secret))
        return visit if visit is not None and visit.until_us > self._clock_us() else None

    def leave(self, secret: str) -> None:
        """End a visit."""
        self._visits.pop(_hash(secret), None)

    def may_post(self, visit: Visit, csrf: str) -> bool:
        """Tell whether a form comes from a page of ours."""
        return hmac.compare_digest(visit.csrf.encode(), csrf.encode("utf-8", "surrogatepass"))

    async def look(self, visit: Visit) -> Overview:
        """All servers that hold the address, ours first. Raises StorageError."""
        grants = await self._grants_of(visit)
        holders = await self._backups.find_holders(visit.mailbox, "user")
        may_block = self._settings.blocking.get(visit.domain, False)
        ours = Server(party=self._settings.party, host=self._settings.host, own=True)
        others = (_make_server(holder, grants.get(holder.party), may_block) for holder in holders)
        return Overview(
            address=visit.mailbox,
            servers=(
                ours,
                *sorted(others, key=lambda one: (bool(one.error), one.preference, one.party)),
            ),
            may_block=may_block,
        )

    async def set_blocked(self, visit: Visit, agreement_id: str, blocked: bool) -> Refusal | None:
        """Block or unblock the address at one backup; None: done.

        Raises PeerFailure, StorageError.
        """
        for grant in (await self._grants_of(visit)).values():
            if grant.agreement_id == agreement_id:
                answer = await self._backups.set_blocked(grant, blocked, "user")
                what = "blocks" if blocked else "unblocks"
                if isinstance(answer, Refusal):
                    return answer
                observe.note(
                    "rights", f"{visit.mailbox} {what} the address at {grant.forwarder_id}"
                )
                return None
        return Refusal(Denial.NOT_FOUND, "there is no such agreement for this address")

    async def _grants_of(self, visit: Visit) -> dict[str, Grant]:
        """By forwarder-ID; what is over does not count."""
        found: dict[str, Grant] = {}
        for grant in await self._grants.list(mailbox=visit.mailbox):
            if grant.state not in _OVER:
                known = found.get(grant.forwarder_id)
                if known is None or grant.state is GrantState.AGREED:
                    found[grant.forwarder_id] = grant
        return found


def _make_server(holder: Holder, grant: Grant | None, may_block: bool) -> Server:
    return Server(
        party=holder.party,
        host=holder.host,
        preference=holder.preference,
        since_us=holder.since_us,
        messages=holder.messages,
        last_message_us=holder.last_message_us,
        agreement_id=grant.agreement_id if grant is not None else "",
        blocked=grant.blocked if grant is not None and (may_block or grant.blocked) else None,
        error=holder.error,
    )


def _parse(address: str) -> Mailbox | None:
    try:
        return parse_path(address.strip().encode("utf-8"), utf8=True)
    except (AddressError, UnicodeEncodeError):
        return None


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
