"""Alerts as signed POSTs, against real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from fakes.http_server import Answer, Asked, Certificate, RawHttp, http
from peers.processes import free_port
from posthouse.errors import TellingFailed
from posthouse.ports_alerts import Notice
from posthouse.transports.webhook import Webhook

CA = trustme.CA()
CERTIFICATE = Certificate(CA, "127.0.0.1")
NOTICE = Notice(node="mx2.example.net", number=4, alerts=(), made_us=1)
NOW_US = 1_700_000_000_000_000
SECRET = b"a shared secret"


@pytest.fixture(name="roots")
def make_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "roots.pem").write_bytes(CA.cert_pem.bytes())
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9/")  # must not be asked
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9/")
    return tmp_path / "roots.pem"


def hook(url: str, roots: Path, *, secret: bytes = SECRET, seconds: float = 30.0) -> Webhook:
    return Webhook(
        url,
        secret=secret,
        ca_file=roots,
        clock_us=lambda: NOW_US,
        document=lambda notice: {"node": notice.node, "ä": 1},
        exchange_seconds=seconds,
    )


async def test_the_receiver_can_tell_who_sent_it(roots: Path) -> None:
    """HMAC-SHA256 over time and body with the shared secret; the notice's number; JSON."""
    async with RawHttp(lambda _: http(204), certificate=CERTIFICATE) as server:
        await hook(f"{server.base_url}hook?x=1", roots).deliver(NOTICE)
    (asked,) = server.asked
    assert (asked.method, asked.target) == ("POST", "/hook?x=1")
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["posthouse-notice"] == "4"
    parts = dict(part.split("=") for part in asked.headers["posthouse-signature"].split(","))
    assert parts["t"] == "1700000000"
    wanted = hmac.new(SECRET, b"1700000000." + asked.body, hashlib.sha256).hexdigest()
    assert parts["v1"] == wanted
    assert json.loads(asked.body) == {"node": "mx2.example.net", "ä": 1}


async def test_without_a_secret_nothing_is_signed(roots: Path) -> None:
    """No header that would suggest otherwise."""
    async with RawHttp(lambda _: http(200, b"ok"), certificate=CERTIFICATE) as server:
        await hook(server.base_url, roots, secret=b"").deliver(NOTICE)
    assert "posthouse-signature" not in server.asked[0].headers


@pytest.mark.parametrize("status", [301, 307, 400, 404, 410, 500, 503])
async def test_anything_but_2xx_is_a_failure(roots: Path, status: int) -> None:
    """Redirects are not followed: the alert is for the place that was named."""
    answer = http(status, b"", "Location: /elsewhere")
    async with RawHttp(lambda _: answer, certificate=CERTIFICATE) as server:
        with pytest.raises(TellingFailed, match=str(status)):
            await hook(server.base_url, roots).deliver(NOTICE)
    assert len(server.asked) == 1


async def test_a_server_that_does_not_verify_gets_nothing(roots: Path) -> None:
    """Another authority, another name: not one octet of the notice leaves."""
    for certificate in (Certificate(trustme.CA(), "127.0.0.1"), Certificate(CA, "else.example")):
        async with RawHttp(lambda _: http(200), certificate=certificate) as server:
            with pytest.raises(TellingFailed):
                await hook(server.base_url, roots).deliver(NOTICE)
        assert server.asked == []


async def silence(_asked: Asked) -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def drip(_asked: Asked) -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    while True:
        yield b"x"
        await asyncio.sleep(0.01)


async def flood(_asked: Asked) -> AsyncIterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    while True:
        yield b"x" * 65536


async def test_time_is_bounded(roots: Path) -> None:
    """A receiver that is silent or drips is given up."""
    for answer in (silence, drip):
        async with RawHttp(answer, certificate=CERTIFICATE) as server:
            with pytest.raises(TellingFailed, match="no answer within"):
                await hook(server.base_url, roots, seconds=0.5).deliver(NOTICE)


async def test_an_endless_answer_is_not_read(roots: Path) -> None:
    """2xx is what counts; of the body no more is taken than a bound."""
    async with RawHttp(flood, certificate=CERTIFICATE) as server:
        await hook(server.base_url, roots).deliver(NOTICE)


@pytest.mark.parametrize("octets", [b"hello\r\n\r\n", b"HTTP/1.1 99999 x\r\n\r\n", b""])
async def test_what_is_not_http(roots: Path, octets: bytes) -> None:
    """A failure to tell, nothing worse."""

    async def odd(_asked: Asked) -> AsyncIterator[bytes]:
        yield octets

    answer: Answer = odd
    async with RawHttp(answer, certificate=CERTIFICATE) as server:
        with pytest.raises(TellingFailed):
            await hook(server.base_url, roots).deliver(NOTICE)


async def test_nobody_there(roots: Path) -> None:
    """A closed port is a failure to tell."""
    with pytest.raises(TellingFailed):
        await hook(f"https://127.0.0.1:{free_port()}/", roots).deliver(NOTICE)
