"""The HTTPS door under damaged requests; pairing documents under damage."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.https_stage import FakeParties, connected, open_door, party
from posthouse.interfaces.https_app import PeerRoute
from posthouse.mail.wire_text import encode_base64url
from posthouse.ports_https import PeerAnswer, PeerRequest
from posthouse.proto.base_url import parse_base_url
from posthouse.proto.pairing import format_primary_pairing, parse_primary_pairing

REQUEST = (
    b"POST /v1/policy?since=5 HTTP/1.1\r\nHost: mail.example.com\r\nAuthorization: Bearer good\r\n"
    b'Content-Type: application/json\r\nContent-Length: 13\r\n\r\n{"get": ["x"]}'[:-1]
)
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n")
# 500 is nobody's; 503 would be a fault of ours that a stranger can bring about.
ALLOWED = {200, 400, 401, 404, 405, 413, 415, 429}


async def echo(request: PeerRequest) -> PeerAnswer:
    return PeerAnswer(document=request.body)


class Door:
    """One door in a loop of its own, for all examples."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.port = 0

    def open(self) -> None:
        self.port = self.runner.run(self._open())

    async def _open(self) -> int:
        routes = [PeerRoute(method="POST", path="v1/policy", handler=echo)]
        parties = FakeParties(good=party("mx2.example.net"))
        _, port = await self.stack.enter_async_context(open_door(routes, parties))
        return port

    def close(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()

    def ask(self, octets: bytes, cut: int) -> bytes:
        """Everything that is answered to these octets, sent in two parts, until it closes."""
        return self.runner.run(self._ask(octets, cut))

    async def _ask(self, octets: bytes, cut: int) -> bytes:
        async with connected(self.port) as client:
            client.send(octets[:cut])
            await asyncio.sleep(0)
            client.send(octets[cut:])
            try:
                client.writer.write_eof()
            except OSError:
                pass  # it has closed already
            async with asyncio.timeout(20):
                return await client.rest()


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    door = Door()
    door.open()
    yield door
    door.close()


@given(
    at=st.integers(0, len(REQUEST)),
    remove=st.integers(0, 12),
    insert=st.binary(max_size=12) | st.sampled_from([b"\r\n", b"\r\n\r\n", b"\x00", b": ", b" "]),
    cut=st.integers(0, len(REQUEST) + 12),
)
def test_damaged_requests(door: Door, at: int, remove: int, insert: bytes, cut: int) -> None:
    """Each is answered with a known status or with nothing; none brings the door down."""
    octets = REQUEST[:at] + insert + REQUEST[at + remove :]
    said = door.ask(octets, cut)
    found = [int(status) for status in STATUS.findall(said)]
    assert set(found) <= ALLOWED, (octets, said)
    if octets == REQUEST:
        assert found == [200]


@given(st.binary(max_size=300), st.integers(0, 300))
def test_rubbish(door: Door, octets: bytes, cut: int) -> None:
    """What was never a request is a 400 or nothing."""
    found = {int(status) for status in STATUS.findall(door.ask(octets, cut))}
    assert found <= {400, 404, 405}


DOCUMENT = {
    "party": "example.com",
    "base_url": "https://mail.example.com:8447/",
    "public_key": encode_base64url(bytes(range(32))),
    "roster_key": encode_base64url(bytes(range(32, 64))),
    "token": "what-the-backup-presents",
    "domains": ["example.com"],
    "tls_spki_sha256": encode_base64url(bytes(32)),
}
TEXT = json.dumps(DOCUMENT).encode()


@given(st.integers(0, len(TEXT) - 1), st.binary(max_size=3), st.integers(0, 3))
def test_damaged_pairing_documents(at: int, insert: bytes, remove: int) -> None:
    """Each is refused, or is one that obeys every rule and can be written again."""
    damaged = TEXT[:at] + insert + TEXT[at + remove :]
    try:
        pairing = parse_primary_pairing(damaged)
    except ValueError:
        return
    assert parse_base_url(pairing.base_url).path.endswith("/")
    assert len(pairing.public_key) == len(pairing.roster_key) == 32
    assert pairing.domains
    assert parse_primary_pairing(format_primary_pairing(pairing)) == pairing
