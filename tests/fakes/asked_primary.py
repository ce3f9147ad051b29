"""A primary that is asked about addresses (`ports_standby.PrimaryConnector`), without sockets."""

from __future__ import annotations

import asyncio

from posthouse.errors import NextHopFailure
from posthouse.mail.credentials import Credentials
from posthouse.mail.envelope import Recipient
from posthouse.mail.reply import Reply
from posthouse.ports_relay import Target

TAKEN = Reply(250, "", "2.1.5 ok")
UNKNOWN = Reply(550, "", "5.1.1 User unknown")


class AskedPrimary:
    """users: local parts it takes, None takes everybody. replies: address → reply, before that.

    asked: every address of a RCPT, in order. connects: sessions opened.
    """

    def __init__(self, *users: str) -> None:
        self.users: set[str] | None = set(users)
        self.replies: dict[str, Reply] = {}
        self.mail_reply = Reply(250, "", "2.1.0 ok")
        self.failure: NextHopFailure | None = None
        self.breaks = 0  # so many RCPTs find the session broken
        self.smtputf8 = True
        self.gate: asyncio.Event | None = None
        self.connects = 0
        self.open_sessions = 0
        self.asked: list[str] = []
        self.senders: list[str] = []

    def down(self, why: str = "connection refused") -> None:
        """Answer nobody."""
        self.failure = NextHopFailure(why, stage="connect")

    def asked_of(self, *users: str) -> list[str]:
        """The questions about some users, those whose answers are known left out."""
        return [a for a in self.asked if a.partition("@")[0] in users]

    async def open(self, target: Target) -> _Session:
        self.connects += 1
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.open_sessions += 1
        return _Session(self)

    async def find_targets(self, domain: str) -> tuple[Target, ...]:
        """As `services.ways`."""
        return (Target(f"mx.{domain}", "192.0.2.1"),)

    def next_hop_of(self, domain: str) -> str:
        """As `services.ways`."""
        return domain


class _Session:
    def __init__(self, primary: AskedPrimary) -> None:
        self._primary = primary
        self._closed = False
        self.size_limit = 0
        self.over = False

    @property
    def smtputf8(self) -> bool:
        return self._primary.smtputf8

    async def authenticate(self, credentials: Credentials) -> Reply | None:
        raise AssertionError("nobody is vouched for by a question")

    async def mail(
        self,
        sender: str,
        *,
        size: int,
        body: str,
        smtputf8: bool,
        ret: str,
        envid: str,
        credentials: Credentials | None = None,
    ) -> Reply:
        await self._turn()
        self._primary.senders.append(sender)
        return self._primary.mail_reply

    async def rcpt(self, recipient: Recipient) -> Reply:
        primary = self._primary
        if primary.gate is not None:
            await primary.gate.wait()
        await self._turn()
        if primary.breaks:
            primary.breaks -= 1
            raise NextHopFailure("lost connection", stage="session")
        address = recipient.address
        primary.asked.append(address)
        if address in primary.replies:
            return primary.replies[address]
        taken = primary.users is None or address.partition("@")[0] in primary.users
        return TAKEN if taken else UNKNOWN

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        assert not self._closed
        if self._primary.failure is not None:
            raise self._primary.failure

    async def data(self) -> Reply:
        raise AssertionError("a question has no content")

    def write(self, piece: bytes) -> bool:
        raise AssertionError("a question has no content")

    async def drain(self) -> None:
        raise AssertionError("a question has no content")

    async def end(self) -> Reply:
        raise AssertionError("a question has no content")

    async def reset(self) -> None:
        await self._turn()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._primary.open_sessions -= 1
