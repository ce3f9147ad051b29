"""An HTTP(S) server whose answers a test writes octet by octet, hostile ones too.

::

    async with RawHttp(lambda request: respond(200, b"{}"), certificate=cert) as server:
        … server.base_url …
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ssl
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

import trustme

from posthouse.proto.spki import hash_spki


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request as it came. headers: names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


# bytes are sent and the connection is kept; of an iterator every piece is sent, then it is closed.
Answer = Callable[[Asked], bytes | AsyncIterator[bytes]]


def http(status: int = 200, body: bytes = b"", *headers: str, length: bool = True) -> bytes:
    """One whole answer."""
    lines = [f"HTTP/1.1 {status} Told", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Certificate:
    """A certificate for 127.0.0.1 with its server context and its pin."""

    def __init__(self, ca: trustme.CA, *names: str) -> None:
        leaf = ca.issue_cert(*names)
        self.chain_pem = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        self.key_pem = leaf.private_key_pem.bytes()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(self.context)
        der = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
        self.pin = hash_spki(der)


class RawHttp:
    """Serves on 127.0.0.1 until left; `asked` has every request, `connections` counts."""

    def __init__(self, answer: Answer, *, certificate: Certificate | None = None) -> None:
        self._answer = answer
        self._certificate = certificate
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.asked: list[Asked] = []
        self.connections = 0
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http{'s' if self._certificate else ''}://127.0.0.1:{self.port}/"

    async def __aenter__(self) -> Self:
        context = self._certificate.context if self._certificate else None
        self._server = await asyncio.start_server(self._greet, "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
                while True:
                    await self._serve_one(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        pairs = (line.partition(":") for line in lines[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        asked = Asked(method=method, target=target, headers=headers, body=body)
        self.asked.append(asked)
        answer = self._answer(asked)
        if isinstance(answer, bytes):
            writer.write(answer)
            await writer.drain()
            return
        async for piece in answer:
            writer.write(piece)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        raise ConnectionResetError
