"""The wire side of the HTTPS door: TLS, slow and greedy clients, and the way out."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from fakes.http_server import Certificate
from fakes.https_stage import (
    FakeParties,
    connected,
    open_door,
    party,
    trusting,
    write_certificate,
)
from peers.processes import until
from posthouse.interfaces.https_app import PeerRoute
from posthouse.interfaces.https_wire import HttpsLimits, Switchboard
from posthouse.ports_https import Flow, PeerAnswer, PeerRequest
from posthouse.proto.spki import hash_spki
from posthouse.transports.tls import TlsServer

CA = trustme.CA()
PARTIES = FakeParties(good=party("mx2.example.net", "example.com"))
STRICT = HttpsLimits(handshake=0.1, request=0.1, unread=0.1, idle=1, watch=0.02)


async def hello(_request: PeerRequest) -> PeerAnswer:
    return PeerAnswer(document=b'"hello"')


ROUTES = [PeerRoute(method="GET", path="v1/x", handler=hello)]


@pytest.fixture
def tls(tmp_path: Path) -> TlsServer:
    return TlsServer(*write_certificate(tmp_path, Certificate(CA, "127.0.0.1")))


async def ask_once(port: int, context: ssl.SSLContext | None = None) -> bytes:
    """One request on a connection of its own; the pin of the certificate seen, if any."""
    async with connected(port, context=context) as client:
        client.ask("GET", "/v1/x")
        assert (await client.read()).body == b'"hello"'
        shown = client.writer.get_extra_info("ssl_object")
        return hash_spki(shown.getpeercert(binary_form=True)) if shown is not None else b""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls(tls: TlsServer, version: ssl.TLSVersion) -> None:
    """TLS 1.2 and 1.3 are spoken, several requests a connection."""
    async with (
        open_door(ROUTES, PARTIES, tls=tls) as (_, port),
        connected(port, context=trusting(at_most=version)) as client,
    ):
        for _ in range(3):
            client.ask("GET", "/v1/x")
            assert (await client.read()).status == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_tls(tls: TlsServer) -> None:
    """TLS 1.1 is refused in the handshake."""
    async with open_door(ROUTES, PARTIES, tls=tls) as (_, port):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await ask_once(port, trusting(at_most=ssl.TLSVersion.TLSv1_1))
        await ask_once(port, trusting())


async def test_a_new_certificate(tmp_path: Path, tls: TlsServer) -> None:
    """After a reload new connections see the new certificate; open ones go on."""
    second = Certificate(CA, "127.0.0.1")
    async with (
        open_door(ROUTES, PARTIES, tls=tls) as (_, port),
        connected(port, context=trusting()) as client,
    ):
        assert await ask_once(port, trusting()) != second.pin
        write_certificate(tmp_path, second)
        tls.reload()
        assert await ask_once(port, trusting()) == second.pin
        client.ask("GET", "/v1/x")
        assert (await client.read()).status == 200


@pytest.mark.parametrize("octets", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" * 50, b""])
async def test_what_is_no_tls(tls: TlsServer, octets: bytes) -> None:
    """Clear text, rubbish and silence end; the door serves on."""
    async with open_door(ROUTES, PARTIES, tls=tls, limits=STRICT) as (board, port):
        async with connected(port) as client:
            client.send(octets)
            assert b"HTTP" not in await client.rest()
        await until(lambda: board.count == 0, what="the connection to be forgotten")
        await ask_once(port, trusting())


@pytest.mark.parametrize(
    "octets",
    [
        b"EHLO client.example\r\n\r\n",
        b"\x00\x01\x02\r\n\r\n",
        b"GET /v1/x HTTP/1.1\r\n\r\n",
        b"GET /v1/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v1/x\x80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"GET /v1/x HTTP/1.1\r\nHost: x\r\n broken\x00: y\r\n\r\n",
        b"GET /v1/x HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_no_http(octets: bytes) -> None:
    """400 as problem+json, and the connection ends; smuggling has no second request to hide."""
    async with open_door(ROUTES, PARTIES) as (_, port), connected(port) as client:
        client.send(octets)
        answer = await client.read()
        answer.expect_problem(400)
        assert await client.rest() == b""


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"GET /v1/x HT",
        b"GET /v1/x HTTP/1.1\r\nHost: x\r\n",
        (
            b"POST /v1/y HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer good\r\nContent-Length: 100\r\n\r\n{"
        ),
    ],
)
async def test_requests_that_never_end(octets: bytes) -> None:
    """A request that is not whole in time is cut, wherever it stops."""
    routes = [*ROUTES, PeerRoute(method="POST", path="v1/y", handler=hello)]
    async with open_door(routes, PARTIES, limits=STRICT) as (board, port):
        async with connected(port) as client:
            client.send(octets)
            await client.rest()
        await until(lambda: board.count == 0, what="the connection to be forgotten")


async def test_requests_that_drip() -> None:
    """Octets one by one do not buy time."""
    async with (
        open_door(ROUTES, PARTIES, limits=STRICT) as (board, port),
        connected(port) as client,
    ):
        client.send("GET /v1/x HTTP/1.1\r\nX: ")
        await until(lambda: board.count == 1, what="the connection")

        def cut() -> bool:
            client.send("y")
            return board.count == 0

        await until(cut, what="the connection to be cut")


class Endless:
    """A body without end, and whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def __iter__(self) -> Endless:
        return self

    def __next__(self) -> bytes:
        return b"x" * 65536

    def close(self) -> None:
        self.closed = True


async def test_a_client_that_does_not_read(tls: TlsServer) -> None:
    """Its connection is cut and what was being read is closed."""
    body = Endless()

    async def endless(_request: PeerRequest) -> PeerAnswer:
        return PeerAnswer(document=Flow(size_bytes=1 << 50, pieces=body))

    routes = [PeerRoute(method="GET", path="v1/x", handler=endless)]
    async with (
        open_door(routes, PARTIES, tls=tls, limits=STRICT) as (board, port),
        connected(port, context=trusting()) as client,
    ):
        client.ask("GET", "/v1/x")
        await until(lambda: board.count == 1, what="the connection")
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: board.count == 0, what="the connection to be cut")
        await until(lambda: body.closed, what="the body to be closed")


async def test_too_many_connections() -> None:
    """Past the limit new ones are cut at once, and let in again when others left."""
    limits = HttpsLimits(max_connections=10, max_connections_per_client=2)
    async with open_door(ROUTES, PARTIES, limits=limits) as (board, port):
        async with connected(port) as first, connected(port):
            await until(lambda: board.count == 2, what="two connections")
            async with connected(port) as third:
                assert await third.rest() == b""
            first.ask("GET", "/v1/x")
            assert (await first.read()).status == 200
        await until(lambda: board.count == 0, what="room")
        await ask_once(port)


async def test_idle_connections_end() -> None:
    """A client that asks nothing more is sent away."""
    limits = HttpsLimits(idle=0)
    async with open_door(ROUTES, PARTIES, limits=limits) as (_, port), connected(port) as client:
        client.ask("GET", "/v1/x")
        assert (await client.read()).status == 200
        assert await client.rest() == b""


async def test_the_way_out(tls: TlsServer) -> None:
    """At the end idle connections are closed, an answer under way is given whole."""
    go = asyncio.Event()
    begun = asyncio.Event()

    async def slow(_request: PeerRequest) -> PeerAnswer:
        begun.set()
        await go.wait()
        return PeerAnswer(document=b'"late"')

    routes = [*ROUTES, PeerRoute(method="GET", path="v1/slow", handler=slow)]
    async with (
        open_door(routes, PARTIES, tls=tls) as (board, port),
        connected(port, context=trusting()) as idle,
        connected(port, context=trusting()) as busy,
    ):
        idle.ask("GET", "/v1/x")
        await idle.read()
        busy.ask("GET", "/v1/slow")
        await begun.wait()
        leaving = asyncio.get_running_loop().create_task(board.close(10.0))
        assert await idle.rest() == b""
        go.set()
        answer = await busy.read()
        assert answer.body == b'"late"'
        assert await busy.rest() == b""
        await leaving
        with pytest.raises(OSError):
            await ask_once(port, trusting())


async def test_what_does_not_end_is_cut() -> None:
    """A handler that goes on for ever holds the door open no longer than the grace."""

    async def never(_request: PeerRequest) -> PeerAnswer:
        await asyncio.Event().wait()
        return PeerAnswer()

    routes = [PeerRoute(method="GET", path="v1/x", handler=never)]
    async with open_door(routes, PARTIES) as (board, port), connected(port) as client:
        client.ask("GET", "/v1/x")
        await until(lambda: len(board.state.tasks) == 1, what="the request")
        await board.close(0.05)
        assert await client.rest() == b""
        assert _is_empty(board)


def _is_empty(board: Switchboard) -> bool:
    return board.count == 0 and not board.state.tasks
