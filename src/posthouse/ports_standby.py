"""Ports of the standby modes: a conversation with the primary, one command at a time."""

from __future__ import annotations

from typing import Protocol

from posthouse.mail.credentials import Credentials
from posthouse.mail.envelope import Recipient
from posthouse.mail.reply import Reply
from posthouse.ports_relay import Target


class PrimarySession(Protocol):
    """An open, greeted session with the primary. Every wait raises NextHopFailure when it fails.

    smtputf8: the primary takes such messages. size_limit: octets, 0 for none. over: it failed or
    was closed. Replies are the primary's own.
    """

    @property
    def over(self) -> bool: ...
    @property
    def smtputf8(self) -> bool: ...
    @property
    def size_limit(self) -> int: ...

    async def authenticate(self, credentials: Credentials) -> Reply | None:
        """AUTH, before the first MAIL that has credentials, once a session and under TLS only.

        The primary's last word; None where AUTH is not due or not offered. Refused, the session
        goes on without.
        """

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
        """MAIL FROM; parameters go where they are offered. size: octets announced, 0 for none.

        credentials: of the agreement that the message is under (AUTH=, RFC 4954 §5).
        """

    async def rcpt(self, recipient: Recipient) -> Reply:
        """RCPT TO."""

    async def data(self) -> Reply:
        """DATA; 354 lets `write` begin."""

    def write(self, piece: bytes) -> bool:
        """Send content (not dot-stuffed yet). Never blocks or raises.

        False: stop until `drain` returns. What is written after a failure is dropped.
        """

    async def drain(self) -> None:
        """Wait until more may be written, or the session failed. Never raises."""

    async def end(self) -> Reply:
        """The final dot, and what the primary says to it."""

    async def reset(self) -> None:
        """RSET. One that is refused is a failure, too."""

    def close(self) -> None:
        """QUIT if that is possible, and let go; harmless at any time."""


class PrimaryConnector(Protocol):
    """Opens such sessions."""

    async def open(self, target: Target) -> PrimarySession:
        """Connect, greet, EHLO, STARTTLS as configured. Raises NextHopFailure."""
