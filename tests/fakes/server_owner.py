"""A plain owner of a ServerSession: takes known users, keeps what was accepted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from fakes.memory_spool import MemorySpool
from posthouse.domain.verdict import WhenUnknown
from posthouse.mail.address import Mailbox
from posthouse.mail.reply import Reply
from posthouse.ports import Finding
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
from posthouse.services.reception import Reception, ReceptionSettings

USERS: Mapping[str, frozenset[str]] = {
    "example.com": frozenset({"alice", "bob", "carol", "josé"}),
    "xn--bcher-kva.example": frozenset({"alice"}),
}
QUEUED = re.compile(rb"queued as [0-9A-F]+")


class DictDirectories:
    """Recipient directories from a mapping; a domain without entry is unknown."""

    def __init__(self, users: Mapping[str, frozenset[str]] = USERS) -> None:
        self.users = users

    def find(self, domain: str, local_part: str) -> Finding:
        known = self.users.get(domain)
        if known is None:
            return Finding.UNKNOWN
        folded = local_part.lower()
        if folded in known or folded.partition("+")[0] in known:
            return Finding.VOUCHED
        return Finding.ABSENT


def make_reception(spool: MemorySpool, *, hostname: str = "mx2.example.net") -> Reception:
    """A reception for USERS' domains in front of `spool`."""
    return Reception(
        ReceptionSettings(hostname=hostname, domains=dict.fromkeys(USERS, WhenUnknown.DEFER)),
        spool=spool,
        directories=DictDirectories(),
        clock_us=lambda: 1_800_000_000_000_000,
    )


class Owner:
    """Drives a session without a socket. `messages` are those answered 250, without trace field."""

    def __init__(self, limits: ServerLimits) -> None:
        self.session = ServerSession(limits)
        self.reception = make_reception(MemorySpool(), hostname=limits.hostname)
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
                self.session.answer(self.reception.judge_recipient(event.recipient).reply)
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
