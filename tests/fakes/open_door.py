"""A real door on a real socket, in front of a spool in memory, and a client that talks to it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from fakes.memory_spool import MemorySpool
from fakes.resolver import FakeResolver
from fakes.server_owner import make_reception
from posthouse.interfaces.doorkeeper import Doorkeeper, DoorSettings
from posthouse.interfaces.smtp_door import SmtpDoor
from posthouse.mail.envelope import Client, Envelope
from posthouse.ports_spool import Incoming, Selection
from posthouse.ports_tls import TlsServer
from posthouse.proto.server_events import ServerLimits
from posthouse.services.reception import Reception

LIMITS = ServerLimits(hostname="mx2.example.net")


@contextlib.asynccontextmanager
async def open_door(
    spool: MemorySpool,
    *,
    limits: ServerLimits = LIMITS,
    tls: TlsServer | None = None,
    resolver: FakeResolver | None = None,
    reception: Reception | None = None,
    **settings: float,
) -> AsyncIterator[tuple[Doorkeeper, int]]:
    """A door on a free port of loopback, gone at the end: (its keeper, the port)."""
    keeper = Doorkeeper(
        DoorSettings(limits=limits, reverse_dns=resolver is not None, **settings),  # type: ignore[arg-type]
        reception=reception or make_reception(spool),
        resolver=resolver,
        tls=tls,
    )
    keeper.start()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(SmtpDoor, keeper), "127.0.0.1", 0)
    try:
        yield keeper, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await keeper.leave(0)
        await server.wait_closed()


class Talker:
    """A client that says lines and reads whole replies."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def hear(self) -> str:
        """One whole reply."""
        lines = []
        while True:
            line = (await self.reader.readline()).decode()
            lines.append(line)
            if line[3:4] != "-":
                return "".join(lines)

    async def say(self, text: str | bytes) -> str:
        """Send a line, or octets as they are; the reply."""
        self.writer.write(text if isinstance(text, bytes) else text.encode() + b"\r\n")
        return await self.hear()

    async def to_content(self) -> None:
        """Go on until content is expected."""
        assert (await self.say("EHLO c")).startswith("250")
        assert (await self.say("MAIL FROM:<a@b.example>")).startswith("250")
        assert (await self.say("RCPT TO:<alice@example.com>")).startswith("250")
        assert (await self.say("DATA")).startswith("354")


@contextlib.asynccontextmanager
async def talk(port: int) -> AsyncIterator[Talker]:
    """A client of the door."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Talker(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something is so (the test's time-out bounds it)."""
    while not condition():
        await asyncio.sleep(0.001)


def first_session(keeper: Doorkeeper) -> SmtpDoor:
    """One of the sessions that are open."""
    session = next(iter(keeper.sessions))
    assert isinstance(session, SmtpDoor)
    return session


async def stored(spool: MemorySpool) -> int:
    """How many messages lie in the spool."""
    return len(await spool.list_messages(Selection(), after=None, limit=1000))


class SlowSpool(MemorySpool):
    """Commits only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    def commit(self, incoming: Incoming, *, envelope: Envelope, client: Client) -> Awaitable[None]:
        async def later() -> None:
            await self.go.wait()
            await super(SlowSpool, self).commit(incoming, envelope=envelope, client=client)

        return later()
