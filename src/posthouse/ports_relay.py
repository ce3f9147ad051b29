"""The way out: a next hop, a session with it, the work a session takes and the answers it tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from posthouse.mail.credentials import Credentials
from posthouse.ports_spool import QueuedMessage


class Target(msgspec.Struct, frozen=True):
    """One place to connect to.

    host: name for logs, EHLO checks and TLS; address: IP text; port 1..65535.
    """

    host: str
    address: str
    port: int = 25


class Transaction(msgspec.Struct, kw_only=True):
    """One message for one next hop. `body` is None when it must be read with `open_body`.

    credentials: the agreement it goes under; used where the next hop lets us, under TLS.
    """

    message: QueuedMessage
    body: bytes | None
    credentials: Credentials | None = None


class RecipientResult(msgspec.Struct, frozen=True, gc=False):
    """The peer's answer for one recipient.

    stage: where it fell: "mail", "rcpt", "data", "dot", or "local" (never offered: the
    next hop lacks SMTPUTF8 or takes no message that large), or "damaged" (our stored copy
    is). code 250 = delivered; text: one line, enhanced code included, as the peer said it.
    """

    seq: int
    code: int
    text: str
    stage: str


class SessionEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a session ended. `failure` None: in good order.

    stage: as in NextHopFailure, "mail" or "auth" (while SMTP AUTH had no answer).
    """

    failure: str | None = None
    stage: str = ""
    reply_code: int = 0
    reply_text: str = ""


class WorkSource(Protocol):
    """Where an open session gets work and tells results. Called in the event loop; never blocks.

    The session calls `next_transaction` when it can take one (possibly while
    the final reply of the one before is awaited: pipelining), and gives each
    transaction exactly one `finished` or `returned`.
    """

    def next_transaction(self) -> Transaction | None: ...

    def finished(self, transaction: Transaction, results: Sequence[RecipientResult]) -> None:
        """Every recipient got a reply (positive or not)."""

    def returned(self, transaction: Transaction, *, why: str, after_dot: bool) -> None:
        """No outcome: session lost, or refused at MAIL for no fault of the message.

        after_dot: the whole message had been sent; sending it again may duplicate it.
        """

    def auth_answered(self, credentials: Credentials, *, code: int, text: str) -> None:
        """The next hop's last word to SMTP AUTH (235: accepted). Mail goes on either way."""


class Session(Protocol):
    """An open, greeted session with a next hop."""

    target: Target

    def poke(self) -> None:
        """Work may have come: ask the source again if idle. Harmless at any time."""

    def quit(self) -> None:
        """End in good order once what is under way has its answers."""

    def idle_since(self) -> float | None:
        """Loop time since when nothing is under way, else None."""

    async def wait_end(self) -> SessionEnd:
        """Wait until the connection is gone."""


class Connector(Protocol):
    """Opens sessions."""

    async def connect(self, target: Target, source: WorkSource) -> Session:
        """Connect, greet, EHLO/HELO, STARTTLS as configured. Raises NextHopFailure.

        The session starts asking `source` for work by itself.
        """

    async def probe(
        self, target: Target, recipients: Sequence[str] = ()
    ) -> Sequence[tuple[int, str]]:
        """Connect, greet, EHLO, STARTTLS as configured, MAIL FROM:<>, RCPT, RSET, QUIT.

        Returns code and text of the reply to each RCPT (those with non-ASCII are not asked).
        Raises NextHopFailure where the peer does not take mail from us.
        """
