"""The HTTPS door on a loopback port, with parties of a test, and clients that write by hand."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fakes.http_server import Certificate
from posthouse.domain.buckets import Buckets
from posthouse.interfaces.https_app import PartyLimits, PeerRoute, make_app
from posthouse.interfaces.https_wire import HttpsLimits, Switchboard
from posthouse.ports_https import Parties, Party
from posthouse.ports_tls import TlsServer


class FakeParties:
    """Tokens in clear; see `posthouse.ports_https.Parties`."""

    def __init__(self, **tokens: Party) -> None:
        self.tokens = tokens

    def find(self, token: str) -> Party | None:
        return self.tokens.get(token)


def party(name: str, *domains: str, key_ids: tuple[str, ...] = ()) -> Party:
    return Party(name=name, domains=frozenset(domains), roster_key_ids=key_ids)


def generous() -> PartyLimits:
    """Limits that no test meets by chance."""
    clock = asyncio.get_running_loop().time
    return PartyLimits(
        requests=Buckets(per_minute=60_000, burst=1000, clock=clock),
        wrong_tokens=Buckets(per_minute=60_000, burst=1000, clock=clock),
    )


def bind() -> socket.socket:
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.setblocking(False)
    return listener


@asynccontextmanager
async def open_door(
    routes: Sequence[PeerRoute],
    parties: Parties,
    *,
    tls: TlsServer | None = None,
    limits: HttpsLimits | None = None,
    party_limits: PartyLimits | None = None,
    prefixes: Iterable[str] = ("/",),
    others: Sequence[Any] = (),
) -> AsyncIterator[tuple[Switchboard, int]]:
    """A door that serves; gives it with its port."""
    app = make_app(
        routes,
        parties=parties,
        limits=party_limits or generous(),
        prefixes=prefixes,
        others=others,
    )
    board = Switchboard(app, tls=tls, limits=limits or HttpsLimits())
    listener = bind()
    await board.open([listener])
    try:
        yield board, listener.getsockname()[1]
    finally:
        await board.close(5.0)


class Answer:
    """One HTTP answer as it came. headers: names in lower case."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        pairs = (line.partition(":") for line in lines[1:] if line)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def expect_problem(self, status: int) -> None:
        """It is application/problem+json with that status."""
        assert self.status == status, (self.status, self.body)
        assert self.headers["content-type"] == "application/problem+json"
        assert self.json["status"] == status
        assert self.json["title"]


class Client:
    """A connection that writes what a test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *pieces: bytes | str) -> None:
        for piece in pieces:
            self.writer.write(piece.encode() if isinstance(piece, str) else piece)

    def ask(
        self,
        method: str,
        path: str,
        *headers: str,
        token: str | None = "good",
        body: bytes | None = None,
    ) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
        if token is not None:
            lines.append(f"Authorization: Bearer {token}")
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
            if not any(header.lower().startswith("content-type:") for header in headers):
                lines.append("Content-Type: application/json")
        self.send("\r\n".join([*lines, "", ""]), body or b"")

    async def read(self, *, head: bool = False) -> Answer:
        """The next answer. head: it has no body."""
        top = await self.reader.readuntil(b"\r\n\r\n")
        answer = Answer(top, b"")
        if head or answer.status in (204, 304):
            return answer
        if answer.headers.get("transfer-encoding") == "chunked":
            pieces = []
            while size := int(await self.reader.readline(), 16):
                pieces.append((await self.reader.readexactly(size + 2))[:-2])
            await self.reader.readline()
            return Answer(top, b"".join(pieces))
        size = int(answer.headers["content-length"])
        return Answer(top, await self.reader.readexactly(size))

    async def rest(self) -> bytes:
        """What comes until the door closes; a reset counts as the end."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    async def close(self) -> None:
        self.writer.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def connected(port: int, *, context: ssl.SSLContext | None = None) -> AsyncIterator[Client]:
    """A client connected to the door."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    client = Client(reader, writer)
    try:
        yield client
    finally:
        await client.close()


def trusting(*, at_most: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A client context that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if at_most is not None:
        context.minimum_version = at_most
        context.maximum_version = at_most
        context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def write_certificate(folder: Path, certificate: Certificate) -> tuple[Path, Path]:
    """Its files, as a configuration names them."""
    chain, key = folder / "fullchain.pem", folder / "privkey.pem"
    chain.write_bytes(certificate.chain_pem)
    key.write_bytes(certificate.key_pem)
    return chain, key
