"""A provider's door for ATRN on loopback, and primaries that dial in there."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path

from fakes.open_door import until
from fakes.scripted_peer import ScriptedPeer
from fakes.stored_body import StoredBody
from posthouse.domain.nexthop import pull_socket_name
from posthouse.interfaces.odmr_door import OdmrDesk, OdmrKeeper
from posthouse.mail.reply import Reply
from posthouse.node_odmr import Turns
from posthouse.ports_relay import Target
from posthouse.ports_session import SessionFacts
from posthouse.ports_spool import Body
from posthouse.transports.smtp_out import OutSettings, SmtpConnector
from posthouse.transports.tls import TlsMode

SECRET = "tanstaaftanstaaf"
DOMAINS = ("example.com", "example.org")


async def no_body(queue_id: int) -> Body:
    return StoredBody(b"")


@dataclass
class House:
    """A provider's door for ATRN; `pending` is what waits in its queues."""

    port: int
    run: Path
    turns: Turns
    pending: int | None = 2
    retried: list[str] = field(default_factory=list)

    def target(self, domain: str) -> Target:
        path = str(self.run / pull_socket_name(domain))
        return Target(host=path, address=path, port=0)


@contextlib.asynccontextmanager
async def house(
    run: Path,
    *,
    tls_required: bool = False,
    stuck_seconds: float = 5,
    patience_seconds: float = 2,
) -> AsyncIterator[House]:
    made: list[House] = []

    async def count(domains: Collection[str]) -> int | None:
        assert set(domains) <= set(DOMAINS)
        return made[0].pending

    async def etrn(node: str, session: SessionFacts) -> Reply:
        return Reply(250, "2.0.0", f"{node} for {session.identity}")

    turns = Turns(
        run,
        {"ada": DOMAINS},
        out=OutSettings(
            helo_name="mx2.example.net",
            command_timeout=patience_seconds,
            greeting_timeout=patience_seconds,
        ),
        tls_required=tls_required,
        count=count,
        retry=lambda domain: made[0].retried.append(domain),
        quiet_seconds=0.3,
        stuck_seconds=stuck_seconds,
    )
    desk = OdmrDesk(
        hostname="mx2.example.net",
        secrets={"ada": SECRET},
        challenge=lambda: "<1.2@mx2.example.net>",
        turn=turns.decide,
        take=turns.take,
        etrn=etrn,
    )
    keeper = OdmrKeeper(desk, pause_seconds=0)
    server = await asyncio.get_running_loop().create_server(keeper.make_session, "127.0.0.1", 0)
    made.append(House(port=server.sockets[0].getsockname()[1], run=run, turns=turns))
    try:
        yield made[0]
    finally:
        server.close()
        keeper.close()
        await turns.close()
        await server.wait_closed()
        assert not list(run.iterdir())


@dataclass
class Dialler:
    """A primary's side: dials in, then lets its own mail server have the connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, line: str) -> str:
        self.writer.write(line.encode() + b"\r\n")
        while (reply := (await self.reader.readline()).decode())[3:4] == "-":
            pass
        return reply

    async def log_in(self, *, secret: str = SECRET, user: str = "ada") -> str:
        await self.reader.readline()
        await self.say("EHLO primary.example")
        challenge = base64.b64decode((await self.say("AUTH CRAM-MD5"))[4:])
        digest = hmac.new(secret.encode(), challenge, hashlib.md5).hexdigest()
        return await self.say(base64.b64encode(f"{user} {digest}".encode()).decode())

    async def splice(self, port: int) -> None:
        """Connect the turned line with a mail server, as fetchmail does."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(self.reader, writer), pump(reader, self.writer))


@contextlib.asynccontextmanager
async def dialling(port: int) -> AsyncIterator[Dialler]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Dialler(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def fetching(
    h: House,
    primary: ScriptedPeer,
    *,
    tls: TlsMode = "opportunistic",
    patience_seconds: float = 300,
) -> AsyncIterator[SmtpConnector]:
    """A primary on the line, and who sends over it; at the end the line is given up."""
    async with dialling(h.port) as dialler:
        await dialler.log_in()
        await dialler.say("ATRN")
        spliced = asyncio.ensure_future(dialler.splice(primary.port))
        await until(lambda: h.retried == list(DOMAINS))
        out = OutSettings(
            helo_name="mx2.example.net",
            tls=tls,
            command_timeout=patience_seconds,
            data_block_timeout=patience_seconds,
            final_dot_timeout=patience_seconds,
        )
        connector = SmtpConnector(out, no_body)
        try:
            yield connector
        finally:
            h.pending = 0
            await connector.close()
            await asyncio.wait_for(spliced, 10)
