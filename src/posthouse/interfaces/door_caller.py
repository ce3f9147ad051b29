"""The client of an SMTP door: who it is, and how logs, trace fields and verdicts name it."""

from __future__ import annotations

import asyncio

from posthouse.domain.client_network import client_network, plain_address
from posthouse.interfaces.door_log import DoorLog
from posthouse.mail.address import Mailbox
from posthouse.mail.envelope import Client
from posthouse.mail.reply import Reply
from posthouse.ports_dns import Resolver
from posthouse.ports_session import SessionFacts
from posthouse.proto.smtp_server import ServerSession


class Caller:
    """One client, for as long as it is connected.

    address: IP text, "" before `meet`; name: its verified reverse name or "unknown";
    facts: what verdicts may know; lookup: the search for the name, None when there is none.
    """

    __slots__ = ("_client", "_log", "_port", "_session", "address", "facts", "lookup", "name")

    def __init__(self, session: ServerSession, log: DoorLog) -> None:
        self._log = log
        self._session = session
        self._client: Client | None = None  # as it was for the last message
        self._port = 0
        self.address = ""
        self.name = "unknown"
        self.facts = SessionFacts(address="", network="")
        self.lookup: asyncio.Task[None] | None = None

    def meet(self, host: str, port: int) -> None:
        """Learn where it calls from."""
        facts = self.facts
        facts.address = self.address = plain_address(host)
        facts.network = client_network(self.address)
        self._port = port

    def learn_name(self, resolver: Resolver | None, timeout_seconds: float) -> None:
        """Search the name, if there is one to ask; the log hears of the client when it is known."""
        if resolver is None:
            self._log.client_connected(self.name, self.address, self._port)
            return
        self.lookup = asyncio.get_running_loop().create_task(
            self._find_name(resolver, timeout_seconds)
        )

    async def _find_name(self, resolver: Resolver, timeout_seconds: float) -> None:
        try:
            name = await asyncio.wait_for(resolver.find_name(self.address), timeout_seconds)
        except TimeoutError:
            name = None
        self.name = name or "unknown"
        self._log.client_connected(self.name, self.address, self._port)

    # ------------------------------------------------------------------ what it said of itself

    def sender_text(self) -> str:
        """The reverse-path of the transaction; "" is the null one, or none."""
        sender = self._session.sender
        return "" if sender is None else sender.spelled

    def protocol(self) -> str:
        """The `with` keyword (RFC 3848, RFC 6531 §4.3)."""
        session = self._session
        if not session.esmtp:
            return "SMTP"
        name = "UTF8SMTP" if session.smtputf8 else "ESMTP"
        return name + "S" if session.tls else name

    def describe(self) -> Client:
        """What a message keeps of it; the same object while nothing changes."""
        session, protocol, known = self._session, self.protocol(), self._client
        if known is None or (
            known.protocol != protocol
            or known.helo is not session.helo  # each EHLO makes another
            or known.tls is not session.tls
            or known.name is not self.name
        ):
            known = self._client = Client(
                address=self.address,
                port=self._port,
                name=self.name,
                helo=session.helo,
                protocol=protocol,
                tls=session.tls,
            )
        return known

    # ------------------------------------------------------------------ what is logged of it

    def log_cut(self, why: str, command: str = "") -> None:
        """It went, or was sent away, before QUIT. command: "" is the last one it gave."""
        self._log.session_cut(self.name, self.address, command or self._session.last_command, why)

    def log_gone(self, messages: int) -> None:
        """It is gone. messages: those answered 250."""
        self._log.client_gone(
            self.name, self.address, commands=self._session.commands, messages=messages
        )

    def log_refusal(self, stage: str, reply: Reply) -> None:
        """A command, or the message at its end, was refused."""
        self._log.command_refused(
            self.name,
            self.address,
            stage,
            str(reply),
            self.protocol(),
            self._session.helo,
            self.sender_text(),
        )

    def log_recipient(self, reply: Reply, mailbox: Mailbox) -> None:
        """A recipient was refused."""
        self._log.recipient_refused(
            self.name,
            self.address,
            str(reply),
            mailbox.spelled,
            self.sender_text(),
            self.protocol(),
            self._session.helo,
        )
