"""The HTTPS client against real sockets: hostile, slow and broken servers."""

from __future__ import annotations

import asyncio
import gzip
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from fakes.http_server import Asked, Certificate, RawHttp, http
from peers.processes import free_port
from posthouse.errors import PeerFailure
from posthouse.transports.peers import HttpsPeer, Patience

CA = trustme.CA()
CERTIFICATE = Certificate(CA, "127.0.0.1")
OTHER = Certificate(CA, "127.0.0.1")
ELSEWHERE = Certificate(CA, "elsewhere.example")
# Short for what must fail by it; no test passes because a time ran out by chance.
HASTY = Patience(connect=5.0, read=0.2, exchange=0.5, pace=10_000_000)
NOW_US = 1_796_000_000_000_000  # 2026-11-30T00:53:20Z


def ok(_asked: Asked) -> bytes:
    return http(200, b"{}")


@pytest.fixture(autouse=True)
def _roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's CA in place of the system's roots."""
    (tmp_path / "roots.pem").write_bytes(CA.cert_pem.bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    # A proxy of the environment must not be asked.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9/")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9/")


@asynccontextmanager
async def peer_of(
    base_url: str, *, pin: bytes | None = None, patience: Patience | None = None
) -> AsyncIterator[HttpsPeer]:
    peer = HttpsPeer(
        "example.com",
        base_url,
        token="secret-token",
        spki_sha256=pin,
        now_us=lambda: NOW_US,
        patience=patience or Patience(),
    )
    try:
        yield peer
    finally:
        await peer.close()


async def fail(peer: HttpsPeer, path: str = "v1/x") -> PeerFailure:
    with pytest.raises(PeerFailure) as caught:
        await peer.get(path)
    assert "secret-token" not in caught.value.detail
    return caught.value


# --------------------------------------------------------------------------- who it is


async def test_a_verified_server_gets_the_token() -> None:
    """The request is ours to the letter: bearer token, no content coding, no cookies kept."""

    def answer(_asked: Asked) -> bytes:
        return http(200, b"{}", "Set-Cookie: a=b")

    async with (
        RawHttp(answer, certificate=CERTIFICATE) as server,
        peer_of(server.base_url) as peer,
    ):
        await peer.post("v1/agreements", b'{"a":1}')
        await peer.get("v1/rosters/example.com?since=5", headers={"If-None-Match": '"5"'})
        first, second = server.asked
        assert server.connections == 1
    assert (first.method, first.target, first.body) == ("POST", "/v1/agreements", b'{"a":1}')
    assert first.headers["authorization"] == "Bearer secret-token"
    assert first.headers["accept-encoding"] == "identity"
    assert first.headers["content-type"] == "application/json"
    assert (second.method, second.target) == ("GET", "/v1/rosters/example.com?since=5")
    assert second.headers["if-none-match"] == '"5"'
    assert "cookie" not in second.headers


@pytest.mark.parametrize("case", ["name", "authority"])
async def test_a_server_that_does_not_verify_gets_nothing(case: str) -> None:
    """Neither another name nor another authority; not one request arrives."""
    certificate = ELSEWHERE if case == "name" else Certificate(trustme.CA(), "127.0.0.1")
    async with RawHttp(ok, certificate=certificate) as server, peer_of(server.base_url) as peer:
        failure = await fail(peer)
        assert failure.stage == "tls"
        assert "verif" in failure.detail
        assert server.asked == []


async def test_with_a_pin_chain_and_name_do_not_count() -> None:
    """A certificate of nobody's authority for another name is right when its key is."""
    certificate = Certificate(trustme.CA(), "elsewhere.example")
    async with (
        RawHttp(ok, certificate=certificate) as server,
        peer_of(server.base_url, pin=certificate.pin) as peer,
    ):
        assert (await peer.get("v1/x")).status == 200
        assert server.asked[0].headers["authorization"] == "Bearer secret-token"


async def test_a_wrong_pin_stops_everything_before_the_first_octet() -> None:
    """A certificate that would verify is refused when its key is not the pinned one."""
    async with (
        RawHttp(ok, certificate=CERTIFICATE) as server,
        peer_of(server.base_url, pin=OTHER.pin) as peer,
    ):
        failure = await fail(peer)
        assert failure.stage == "tls"
        assert "not the one of the pairing file" in failure.detail
        assert server.asked == []


async def test_the_token_is_not_sent_before_the_pin_fits() -> None:
    """Seen from below TLS: with a wrong pin the server reads no plain text at all."""
    read: list[bytes] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            read.append(await reader.read(100))
        finally:
            writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=CERTIFICATE.context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        async with peer_of(f"https://127.0.0.1:{port}/", pin=OTHER.pin) as peer:
            await fail(peer)
    assert b"".join(read) == b""


# --------------------------------------------------------------------------- what it says


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 300])
async def test_redirects_are_not_followed(status: int) -> None:
    """Not even to the same server."""

    def answer(asked: Asked) -> bytes:
        return http(status, b"", "Location: /v1/y")

    async with RawHttp(answer) as server, peer_of(server.base_url) as peer:
        failure = await fail(peer)
        assert (failure.stage, failure.status) == ("redirect", status)
        assert [asked.target for asked in server.asked] == ["/v1/x"]


async def test_problem_documents_are_told() -> None:
    """Title and detail arrive as clean lines, Retry-After in both its forms and capped."""
    headers = ["Content-Type: application/problem+json"]
    body = b'{"title": "Too many\\u001b[31m", "detail": "slow\\ndown", "status": 429}'
    told = iter(["Retry-After: 7", "Retry-After: 999999", "Retry-After: soon"])
    dates = iter(["Mon, 30 Nov 2026 01:53:19 GMT", "Mon, 23 Nov 2026 00:00:00 GMT"])

    def answer(_asked: Asked) -> bytes:
        extra = next(told, None) or f"Retry-After: {next(dates)}"
        return http(429, body, *headers, extra)

    async with RawHttp(answer) as server, peer_of(server.base_url) as peer:
        failure = await fail(peer)
        assert (failure.stage, failure.status) == ("status", 429)
        assert failure.title == "Too many?1B[31m"
        assert failure.problem == "slow?0Adown"
        assert failure.retry_after_seconds == 7
        assert (await fail(peer)).retry_after_seconds == 3600
        assert (await fail(peer)).retry_after_seconds is None
        assert (await fail(peer)).retry_after_seconds == 3599
        assert (await fail(peer)).retry_after_seconds == 0


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'{"title": 5}', b"[" * 10_000, b"x" * 100_000]
)
async def test_odd_problem_documents_do_no_harm(body: bytes) -> None:
    """The status is what counts."""

    def answer(_asked: Asked) -> bytes:
        return http(403, body, "Content-Type: application/problem+json")

    async with RawHttp(answer) as server, peer_of(server.base_url) as peer:
        failure = await fail(peer)
        assert (failure.stage, failure.status, failure.title) == ("status", 403, "")


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", "x"])
async def test_content_codings_are_refused(coding: str) -> None:
    """A small coded body can be a very large one."""

    def answer(_asked: Asked) -> bytes:
        return http(200, gzip.compress(b"{}"), f"Content-Encoding: {coding}")

    async with RawHttp(answer) as server, peer_of(server.base_url) as peer:
        assert (await fail(peer)).stage == "protocol"


@pytest.mark.parametrize(
    "octets",
    [
        b"220 mail.example.com ESMTP\r\n",
        b"\x00" * 200,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\ncut short",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"",
    ],
)
async def test_what_is_not_http(octets: bytes) -> None:
    """Rubbish, cut answers and floods of headers are failures of the protocol."""

    def answer(_asked: Asked) -> AsyncIterator[bytes]:
        async def once() -> AsyncIterator[bytes]:
            yield octets

        return once()

    async with RawHttp(answer) as server, peer_of(server.base_url) as peer:
        assert (await fail(peer)).stage in ("protocol", "status")


# --------------------------------------------------------------------------- how long it takes


def forever(piece: bytes, *, every: float) -> AsyncIterator[bytes]:
    async def drip() -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        while True:
            yield b"%x\r\n%s\r\n" % (len(piece), piece)
            await asyncio.sleep(every)

    return drip()


async def test_a_server_that_says_nothing() -> None:
    """Silence after the request ends in a time-out."""

    def answer(_asked: Asked) -> AsyncIterator[bytes]:
        async def silence() -> AsyncIterator[bytes]:
            await asyncio.Event().wait()
            yield b""

        return silence()

    async with RawHttp(answer) as server, peer_of(server.base_url, patience=HASTY) as peer:
        assert (await fail(peer)).stage == "timeout"


async def test_a_server_that_does_not_shake_hands() -> None:
    """A port that accepts and says nothing ends in a time-out too."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        hasty = Patience(connect=0.2)
        async with peer_of(f"https://127.0.0.1:{port}/", patience=hasty) as peer:
            assert (await fail(peer)).stage == "timeout"


async def test_a_server_that_drips() -> None:
    """Octets that come one by one, each in time, do not hold us for ever."""
    async with (
        RawHttp(lambda _: forever(b"x", every=0.01)) as server,
        peer_of(server.base_url, patience=HASTY) as peer,
    ):
        assert (await fail(peer)).stage == "timeout"
        with pytest.raises(PeerFailure) as caught:
            await peer.download("v1/x", io.BytesIO(), max_bytes=1 << 30)
        assert caught.value.stage == "timeout"


async def test_headers_that_drip() -> None:
    """A header that never ends is given up as well."""

    def answer(_asked: Asked) -> AsyncIterator[bytes]:
        async def drip() -> AsyncIterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nX: "
            while True:
                yield b"y"
                await asyncio.sleep(0.01)

        return drip()

    async with RawHttp(answer) as server, peer_of(server.base_url, patience=HASTY) as peer:
        assert (await fail(peer)).stage == "timeout"


async def test_a_download_that_keeps_its_pace_may_take_longer() -> None:
    """Progress buys time: an exchange longer than a small one may last ends well."""
    pieces = 20

    def answer(_asked: Asked) -> AsyncIterator[bytes]:
        async def steady() -> AsyncIterator[bytes]:
            yield http(200, b"x" * 1000 * pieces)[: -1000 * pieces]
            for _ in range(pieces):
                yield b"x" * 1000
                await asyncio.sleep(0.05)

        return steady()

    patience = Patience(read=5.0, exchange=0.5, pace=1000)
    sink = io.BytesIO()
    async with RawHttp(answer) as server, peer_of(server.base_url, patience=patience) as peer:
        response = await peer.download("v1/x", sink, max_bytes=1000 * pieces)
    assert response.size_bytes == len(sink.getvalue()) == 1000 * pieces


# --------------------------------------------------------------------------- how much it sends


async def test_endless_bodies_are_cut() -> None:
    """Neither memory nor disk fills: what passes the limit is not read on."""
    async with (
        RawHttp(lambda _: forever(b"x" * 60_000, every=0)) as server,
        peer_of(server.base_url) as peer,
    ):
        assert (await fail(peer)).stage == "too_large"
        sink = io.BytesIO()
        with pytest.raises(PeerFailure) as caught:
            await peer.download("v1/x", sink, max_bytes=100_000)
        assert caught.value.stage == "too_large"
        assert len(sink.getvalue()) <= 100_000


async def test_a_declared_size_is_believed_when_it_is_too_large() -> None:
    """Nothing is read of a body that says it is too large."""

    def answer(_asked: Asked) -> AsyncIterator[bytes]:
        async def head() -> AsyncIterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n"
            await asyncio.Event().wait()

        return head()

    async with RawHttp(answer) as server, peer_of(server.base_url) as peer:
        assert (await fail(peer)).stage == "too_large"


# --------------------------------------------------------------------------- nobody there


async def test_nobody_there() -> None:
    """A closed port and a name without address are told apart."""
    async with peer_of(f"http://127.0.0.1:{free_port()}/") as peer:
        failure = await fail(peer)
        assert failure.stage == "connect"
        assert failure.temporary
    async with peer_of("https://nobody.invalid/") as peer:
        assert (await fail(peer)).stage == "dns"


async def test_a_server_without_tls() -> None:
    """Clear text where TLS is due fails, and no request is sent in clear."""
    async with (
        RawHttp(ok) as server,
        peer_of(f"https://127.0.0.1:{server.port}/", patience=Patience(connect=2.0)) as peer,
    ):
        assert (await fail(peer)).stage in ("tls", "timeout")
        assert server.asked == []


async def test_it_goes_on_after_failures() -> None:
    """A server that was broken and comes back is used again."""
    answers = iter([b"rubbish\r\n\r\n", http(200, b"{}")])
    async with RawHttp(lambda _: next(answers)) as server, peer_of(server.base_url) as peer:
        assert (await fail(peer)).stage == "protocol"
        assert (await peer.get("v1/x")).body == b"{}"


def test_plain_http_elsewhere_is_refused() -> None:
    """A base_url that the protocol does not allow makes no peer."""
    with pytest.raises(ValueError, match="loopback"):
        HttpsPeer("x", "http://mail.example.com/", token="t", spki_sha256=None, now_us=lambda: 0)
