"""What a verdict may know of the session it is for, and what is told after a commit.

The door fills these in; services read them. Kept apart from `ports`, which is
about the world behind the services.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec

from posthouse.domain.verdict import Verdict
from posthouse.mail.address import Mailbox
from posthouse.mail.envelope import Client, Envelope
from posthouse.mail.reply import Reply


class MailWish(Protocol):
    """What MAIL asked for. size_bytes 0: not declared; the rest as in mail/envelope.Envelope."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def body(self) -> str: ...
    @property
    def smtputf8(self) -> bool: ...
    @property
    def ret(self) -> str: ...
    @property
    def envid(self) -> str: ...


class RcptWish(Protocol):
    """What RCPT asked for, as in mail/envelope.Recipient."""

    @property
    def notify(self) -> str: ...
    @property
    def orcpt(self) -> str: ...


class SessionFacts(msgspec.Struct, kw_only=True):
    """One client's session, as it is at this command. One object a connection, changed in place.

    address: IP text; network: what limits count (domain/client_network), IPv4 /24 or IPv6 /64;
    name: verified reverse name or "unknown"; helo, tls: as in mail/envelope.Client;
    identity: whom SMTP AUTH proved, "" for nobody; sender: reverse-path of the transaction,
    "" is the null one; transaction: counts the MAILs; mail, rcpt: what these commands asked for
    (rcpt: that of the recipient being judged). These are valid from MAIL on and do not change
    while a verdict is awaited.
    scratch: for whoever judges to remember things until the client leaves; the key is the
    name of the service that owns the entry.
    """

    address: str
    network: str
    name: str = "unknown"
    helo: str = ""
    tls: str = ""
    identity: str = ""
    sender: str = ""
    transaction: int = 0
    mail: Any = None  # MailWish
    rcpt: Any = None  # RcptWish
    scratch: dict[str, Any] = {}


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is durable and is being answered 250.

    verdicts: one for each recipient of the envelope, in its order. size_bytes: as stored.
    """

    queue_id: int
    size_bytes: int = 0
    envelope: Envelope
    client: Client
    verdicts: tuple[Verdict, ...]


AfterCommit = Callable[[Accepted], None]
"""Called in the event loop after a commit, also when the client has gone meanwhile.

Must not block. A crash may come between the commit and the call: what is learned
here may be lost, never be wrong. What it raises is logged and costs nobody anything.
"""


class OpenLetter(Protocol):
    """A message on its way in, as the door sees it. Ends in `commit` or `discard`."""

    queue_id: str
    trace: bytes  # our trace field: the first octets of the message, stored already

    def write(self, data: bytes) -> bool:
        """Take content. False: stop reading from the client until `drain` returns."""

    async def drain(self) -> None:
        """Wait until more may be written. Raises StorageError."""

    def discard(self) -> None:
        """Forget it; nothing was promised yet. Harmless when repeated."""

    def refusal(self) -> Reply | None:
        """What is wrong with the whole message, now that it is here; then it is discarded."""

    def commit(self) -> Awaitable[None]:
        """See that somebody answers for it; raises StorageError when nobody does (451)."""

    def accepted(self) -> Reply:
        """The final reply, after `commit`; what is no 2xx is logged and passed on as it is."""


WrapLetter = Callable[[OpenLetter, Envelope, Client, SessionFacts], OpenLetter]
"""Puts itself between the door and a letter: sees its content, has the last word on its reply."""


class Agreements(Protocol):
    """Stands between the verdicts and the lists (`services.agreement_verdicts`)."""

    def judge(
        self,
        mailbox: Mailbox,
        domain: str,
        session: SessionFacts,
        by_lists: Callable[[], Verdict | Awaitable[Verdict]],
    ) -> Verdict | Awaitable[Verdict]:
        """The verdict on a recipient of a backed-up domain; by_lists: without agreements."""


class Gatekeeper(Protocol):
    """Stands before the verdicts: the standby modes (domain/standby)."""

    def judge(
        self,
        mailbox: Mailbox,
        session: SessionFacts,
        own: Callable[[], Verdict | Awaitable[Verdict]],
    ) -> Verdict | Awaitable[Verdict]:
        """The verdict at RCPT; `own` judges as if there were no gatekeeper."""

    def leave(self, session: SessionFacts) -> None:
        """The client has gone; called when `scratch` is not empty."""


class Receptionist(Protocol):
    """Whom a door asks (services/reception is one)."""

    def judge_mail(self) -> Reply | None:
        """Refuse MAIL, or None."""

    def judge_recipient(
        self, mailbox: Mailbox, session: SessionFacts
    ) -> Verdict | Awaitable[Verdict]:
        """The verdict at RCPT."""

    def open_letter(
        self,
        envelope: Envelope,
        client: Client,
        session: SessionFacts,
        verdicts: Sequence[Verdict],
    ) -> OpenLetter | Reply:
        """Begin a message, or why not (4xx)."""

    def leave(self, session: SessionFacts) -> None:
        """The client has gone."""
