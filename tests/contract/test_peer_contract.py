"""One suite for every Peer: the HTTPS client and the fake."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from fakes.http_server import Asked, RawHttp, http
from fakes.peer import FakePeer, refuse, respond
from posthouse.errors import PeerFailure
from posthouse.ports_https import MAX_JSON_BYTES, Peer
from posthouse.transports.peers import HttpsPeer

MakePeer = Callable[[], Awaitable[Peer]]
BIG = b"x" * (MAX_JSON_BYTES + 1)


def answer(asked: Asked) -> bytes:
    """What the server says, for both."""
    route = asked.target.partition("?")[0]
    if route == "/v1/echo":
        return http(200, asked.body, "Content-Type: application/json; charset=utf-8", 'ETag: "5"')
    if route == "/v1/gone":
        return http(404)
    if route == "/v1/later":
        return http(503, b"", "Retry-After: 120")
    if route == "/v1/same":
        return http(304, b"", 'ETag: "5"', length=False)
    return http(200, BIG)


@pytest.fixture(params=["https", "fake"])
async def make_peer(request: pytest.FixtureRequest) -> AsyncIterator[MakePeer]:
    if request.param == "fake":

        async def make_fake() -> Peer:
            peer = FakePeer("example.com", "http://127.0.0.1:1/")
            peer.answers = {
                "v1/echo": [
                    lambda call: respond(
                        200,
                        call.document,
                        content_type="application/json; charset=utf-8",
                        etag='"5"',
                    )
                ],
                "v1/later": [refuse(503, retry_after_seconds=120)],
                "v1/same": [respond(304, etag='"5"')],
                "v1/big": [respond(200, BIG)],
            }
            return peer

        yield make_fake
        return
    async with RawHttp(answer) as server:
        made: list[Peer] = []

        async def make() -> Peer:
            made.append(
                HttpsPeer(
                    "example.com",
                    server.base_url,
                    token="t",
                    spki_sha256=None,
                    now_us=lambda: 0,
                )
            )
            return made[-1]

        yield make
        for peer in made:
            await peer.close()


async def test_good_answers(make_peer: MakePeer) -> None:
    """Status, media type, ETag and body arrive."""
    peer = await make_peer()
    response = await peer.post("v1/echo", b'{"a": 1}')
    assert (response.status, response.body, response.size_bytes) == (200, b'{"a": 1}', 8)
    assert (response.media_type, response.etag) == ("application/json", '"5"')
    assert (await peer.post(peer.base_url + "v1/echo", b"x")).body == b"x"
    assert (await peer.get("v1/echo?a=1")).status == 200


async def test_not_modified_is_a_good_answer(make_peer: MakePeer) -> None:
    """304 is no failure and writes nothing."""
    peer = await make_peer()
    sink = io.BytesIO()
    response = await peer.download("v1/same", sink, max_bytes=10, headers={"If-None-Match": '"5"'})
    assert (response.status, response.etag, sink.getvalue()) == (304, '"5"', b"")


async def test_downloads(make_peer: MakePeer) -> None:
    """A large body goes into the sink whole, or is too large."""
    peer = await make_peer()
    sink = io.BytesIO()
    response = await peer.download("v1/big", sink, max_bytes=len(BIG))
    assert response.size_bytes == len(BIG)
    assert response.body == b""
    assert sink.getvalue() == BIG
    with pytest.raises(PeerFailure) as caught:
        await peer.download("v1/big", io.BytesIO(), max_bytes=len(BIG) - 1)
    assert caught.value.stage == "too_large"


async def test_other_answers_are_failures(make_peer: MakePeer) -> None:
    """404 and 503 come with their status, the latter with its Retry-After."""
    peer = await make_peer()
    with pytest.raises(PeerFailure) as caught:
        await peer.get("v1/gone")
    assert (caught.value.stage, caught.value.status) == ("status", 404)
    assert caught.value.retry_after_seconds is None
    with pytest.raises(PeerFailure) as caught:
        await peer.post("v1/later", b"{}")
    assert (caught.value.status, caught.value.retry_after_seconds) == (503, 120)


async def test_sizes_are_bounded(make_peer: MakePeer) -> None:
    """Neither a small answer nor our own document may pass 1 MiB."""
    peer = await make_peer()
    with pytest.raises(PeerFailure) as caught:
        await peer.get("v1/big")
    assert caught.value.stage == "too_large"
    with pytest.raises(PeerFailure) as caught:
        await peer.post("v1/echo", BIG)
    assert caught.value.stage == "too_large"


@pytest.mark.parametrize(
    "path",
    ["http://127.0.0.1:2/v1/x", "../x", "https://evil.example/v1", "v1/%2e%2e/x", "v1/x#y", "a b"],
)
async def test_nothing_outside_the_base_is_called(make_peer: MakePeer, path: str) -> None:
    """A URL that does not lie under base_url fails before anything is sent."""
    peer = await make_peer()
    with pytest.raises(PeerFailure) as caught:
        await peer.post(path, b"{}")
    assert caught.value.stage == "url"
