"""Pages for mailbox owners over a real door, with a mailbox, backups and mail of a test."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fakes.https_stage import FakeParties, open_door
from posthouse.errors import PeerFailure, StorageBroken, TellingFailed
from posthouse.interfaces.pages import PagesLook, make_pages
from posthouse.interfaces.pages_api import make_pages_api
from posthouse.mail.recipes import Actor, Denial, Holder, Refusal
from posthouse.ports_agreements import Existence, Grant, GrantState
from posthouse.services.user_rights import RightsSettings, UserRights

START_US = 1_795_900_000_000_000  # 28 November 2026
MINUTE_US = 60_000_000


def grant(
    forwarder: str,
    *,
    mailbox: str = "alice@example.com",
    state: GrantState = GrantState.AGREED,
    blocked: bool = False,
) -> Grant:
    return Grant(
        forwarder_id=forwarder,
        recipe_id=f"r-{forwarder}",
        recipe_key="k",
        domain="example.com",
        mailbox=mailbox,
        address=mailbox,
        name="Backup MX",
        policy_url=f"https://{forwarder}/v1/policy",
        agreement_id=f"a-{forwarder.replace('.', '-')}",
        state=state,
        blocked=blocked,
    )


class World:
    """The world of `UserRights`. `sent` has every mail; `broken` makes parts of it fail."""

    def __init__(self) -> None:
        self.now_us = START_US
        self.users = {"alice": "alice@example.com", "bob": "bob@example.com"}
        self.grants = [grant("mx2.example.net"), grant("mx3.example.net")]
        self.holders = [
            Holder(
                party="mx3.example.net",
                host="mx3.example.net",
                preference=30,
                since_us=START_US - 86_400_000_000,
            ),
            Holder(
                party="mx2.example.net",
                host="relay.example.net",
                preference=20,
                since_us=START_US - 10 * 86_400_000_000,
                messages=1234,
                last_message_us=START_US - MINUTE_US,
            ),
            Holder(party="mx4.example.org", error="timeout"),
        ]
        self.sent: list[tuple[str, str, str]] = []
        self.looked_up: list[str] = []
        self.blocks: list[tuple[str, bool, str]] = []
        self.broken: set[str] = set()
        self.refusal: Refusal | None = None
        self._minted = 0
        self.rights = UserRights(
            RightsSettings(
                party="example.com",
                host="mail.example.com",
                blocking={"example.com": True, "strict.example": False},
                link_url="https://mail.example.com:8447/mailbox/link/",
            ),
            addresses=self,
            grants=_Grants(self),
            backups=_Backups(self),
            mail=self,
            mint=self.mint,
            clock_us=lambda: self.now_us,
        )

    def mint(self, octets: int) -> str:
        self._minted += 1
        return f"secret{self._minted:04}".ljust(octets, "x")

    async def find(self, domain: str, local: str) -> Existence:
        """`AddressBook`."""
        self.looked_up.append(f"{local}@{domain}")
        if "addresses" in self.broken:
            return Existence(exists=None, mailbox="")
        name = local.lower().partition("+")[0]
        mailbox = self.users.get(name)
        return Existence(exists=mailbox is not None, mailbox=mailbox or f"{name}@{domain}")

    async def send(self, recipient: str, subject: str, text: str) -> None:
        """`LinkMail`."""
        if "mail" in self.broken:
            raise TellingFailed("no")
        self.sent.append((recipient, subject, text))

    async def settle(self) -> None:
        """Let what was begun in the background end."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def get_link(self, address: str = "alice@example.com") -> str:
        """The secret of a fresh link."""
        assert self.rights.ask_link(address, "192.0.2") == 0
        await self.settle()
        return secret_in(self.sent[-1][2])


def secret_in(text: str) -> str:
    """The secret of the link in a mail."""
    found = re.search(r"/mailbox/link/(\S+)", text)
    assert found is not None
    return found[1]


class _Grants:
    def __init__(self, world: World) -> None:
        self._world = world

    async def list(
        self,
        *,
        mailbox: str = "",
        domain: str = "",
        forwarder_id: str = "",
        state: GrantState | None = None,
        after: str = "",
        limit: int = 1000,
    ) -> Sequence[Grant]:
        if "book" in self._world.broken:
            raise StorageBroken("disk")
        return [one for one in self._world.grants if one.mailbox == mailbox]


class _Backups:
    def __init__(self, world: World) -> None:
        self._world = world

    async def find_holders(
        self, mailbox: str, actor: Actor, visited: Sequence[str] = ()
    ) -> Sequence[Holder]:
        assert actor == "user"
        return self._world.holders if mailbox == "alice@example.com" else []

    async def set_blocked(self, grant: Grant, blocked: bool, actor: Actor) -> Grant | Refusal:
        assert actor == "user"
        if "backup" in self._world.broken:
            raise PeerFailure("no answer", stage="timeout")
        if self._world.refusal is not None:
            return self._world.refusal
        self._world.blocks.append((grant.forwarder_id, blocked, actor))
        index = self._world.grants.index(grant)
        self._world.grants[index] = make_grant(grant.forwarder_id, blocked=blocked)
        return self._world.grants[index]


make_grant = grant
FORBIDDEN = Refusal(Denial.FORBIDDEN, "the policy of example.com forbids blocking")


@asynccontextmanager
async def open_pages(world: World) -> AsyncIterator[int]:
    """The pages on a loopback port."""
    look = PagesLook(name="Example & Sons", domain="example.com", minutes=30, secure=False)
    others = [*make_pages(world.rights, look), *make_pages_api(world.rights)]
    async with open_door([], FakeParties(), others=others) as (_, port):
        try:
            yield port
        finally:
            await world.rights.close()
