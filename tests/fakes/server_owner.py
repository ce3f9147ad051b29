"""A plain owner of a ServerSession: takes known users, keeps what was accepted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Mapping

from fakes.directory import ANSWERS
from fakes.memory_spool import MemorySpool
from posthouse.domain.finding import Answer, Finding
from posthouse.domain.verdict import Verdict, WhenUnknown
from posthouse.mail.address import Mailbox
from posthouse.mail.reply import Reply
from posthouse.ports_session import SessionFacts
from posthouse.proto.server_events import (
    Closing,
    Content,
    ContentEnd,
    DataRequest,
    Mail,
    Rcpt,
    ServerLimits,
)
from posthouse.proto.smtp_server import ServerSession
from posthouse.services.reception import Directories, Reception, ReceptionSettings

USERS: Mapping[str, frozenset[str]] = {
    "example.com": frozenset({"alice", "bob", "carol", "josé"}),
    "xn--bcher-kva.example": frozenset({"alice"}),
}
QUEUED = re.compile(rb"queued as [0-9A-F]+")


class DictDirectories:
    """Recipient directories from a mapping; a domain without entry is unknown."""

    def __init__(self, users: Mapping[str, frozenset[str]] = USERS) -> None:
        self.users = users

    def find(self, domain: str, local_part: str, network: str = "") -> Answer:
        known = self.users.get(domain)
        if known is None:
            return ANSWERS[Finding.UNKNOWN]
        folded = local_part.lower()
        if folded in known or folded.partition("+")[0] in known:
            return ANSWERS[Finding.VOUCHED]
        return ANSWERS[Finding.ABSENT]


class LateDirectories(DictDirectories):
    """The same, but every answer takes a few turns of the loop."""

    def find(  # type: ignore[override]
        self, domain: str, local_part: str, network: str = ""
    ) -> Awaitable[Answer]:
        answer = super().find(domain, local_part)

        async def later() -> Answer:
            for _ in range(3):
                await asyncio.sleep(0)
            return answer

        return later()


def make_reception(
    spool: MemorySpool,
    *,
    hostname: str = "mx2.example.net",
    directories: Directories | None = None,
    when_unknown: WhenUnknown = WhenUnknown.DEFER,
) -> Reception:
    """A reception for USERS' domains in front of `spool`."""
    return Reception(
        ReceptionSettings(hostname=hostname, domains=dict.fromkeys(USERS, when_unknown)),
        spool=spool,
        directories=directories or DictDirectories(),
        clock_us=lambda: 1_800_000_000_000_000,
    )


class Owner:
    """Drives a session without a socket. `messages` are those answered 250, without trace field."""

    def __init__(self, limits: ServerLimits) -> None:
        self.session = ServerSession(limits)
        self.reception = make_reception(MemorySpool(), hostname=limits.hostname)
        self.facts = SessionFacts(address="192.0.2.1", network="192.0.2")
        self.messages: list[bytes] = []
        self.pieces: list[bytes] = []
        self.received = 0
        self.closed = False
        self.output = b""
        self.session.greet()
        self.output += self.session.take_output()

    def feed(self, data: bytes) -> None:
        """Give octets and handle what comes of them."""
        if self.closed:
            return
        self.session.receive(data)
        while (event := self.session.next_event()) is not None:
            if isinstance(event, Content):
                self.pieces.append(event.data)
            elif isinstance(event, Mail):
                self.session.answer(Reply(250, "2.1.0", "Ok"))
            elif isinstance(event, Rcpt):
                assert isinstance(event.recipient, Mailbox)
                verdict = self.reception.judge_recipient(event.recipient, self.facts)
                assert isinstance(verdict, Verdict)
                self.session.answer(verdict.reply)
            elif isinstance(event, DataRequest):
                self.pieces = []
                self.session.open_data()
            elif isinstance(event, ContentEnd):
                self.session.answer(self._judge(event))
            elif isinstance(event, Closing):
                self.closed = True
        self.output += self.session.take_output()

    def _judge(self, event: ContentEnd) -> Reply:
        if event.defect is not None:
            return event.defect
        from posthouse.mail.trace import MAX_RECEIVED, HeaderScan
        from posthouse.services.reception import TOO_MANY_HOPS

        scan = HeaderScan()
        for piece in self.pieces:
            scan.feed(piece)
        scan.finish()
        if scan.received >= MAX_RECEIVED:
            return TOO_MANY_HOPS
        self.messages.append(b"".join(self.pieces))
        return Reply(250, "2.0.0", "Ok: queued as ABC")


async def read_until_quiet(reader: asyncio.StreamReader, wanted: int) -> bytes:
    """Read `wanted` octets from a server, or until it closes."""
    data = b""
    while len(data) < wanted:
        piece = await reader.read(wanted - len(data))
        if not piece:
            break
        data += piece
    return data
