"""What the page for mailbox owners needs of the world, and what it shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from posthouse.mail.recipes import Actor, Holder, Refusal
from posthouse.ports_agreements import Grant, GrantState


class LinkMail(Protocol):
    """Sends one mail: the one-time link, an alert."""

    async def send(self, recipient: str, subject: str, text: str) -> None:
        """Hand over a message of plain text. Raises TellingFailed."""


class GrantsOfMailbox(Protocol):
    """What was granted for a mailbox; `ports_agreements.GranterBook` does."""

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
        """Raises StorageError."""


class Backups(Protocol):
    """The other sides, asked on behalf of a user; `services.granter_callbacks` does."""

    async def find_holders(
        self, mailbox: str, actor: Actor, visited: Sequence[str] = ()
    ) -> Sequence[Holder]:
        """Everybody below us who stores the address. Raises StorageError."""

    async def set_blocked(self, grant: Grant, blocked: bool, actor: Actor) -> Grant | Refusal:
        """Block or unblock there. Raises PeerFailure, StorageError."""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """One server that holds the address, as its owner sees it.

    since_us, last_message_us: 0 where that is not known. own: it is the primary itself.
    agreement_id: "" where there is none of ours (a backup of the backup). blocked: None
    where that cannot be. error: why it could not be asked.
    """

    party: str
    host: str
    preference: int = 0
    since_us: int = 0
    messages: int = 0
    last_message_us: int = 0
    own: bool = False
    agreement_id: str = ""
    blocked: bool | None = None
    error: str = ""


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. may_block: the policy of the domain."""

    address: str
    servers: tuple[Server, ...]
    may_block: bool


class Visit(msgspec.Struct, frozen=True, kw_only=True):
    """A session of somebody who proved control of an address.

    mailbox: canonical text. csrf: for forms. until_us: when it ends.
    """

    mailbox: str
    domain: str
    csrf: str
    until_us: int
