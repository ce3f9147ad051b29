"""The HTTPS door of a process: opened, shut while its certificate is bad, reloaded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from fakes.http_server import Certificate
from fakes.https_stage import bind, connected, trusting, write_certificate
from posthouse.interfaces.https_app import PeerRoute
from posthouse.node_https import HttpsHouse, HttpsPlan
from posthouse.ports_https import PeerAnswer, PeerRequest
from posthouse.proto.pairing import hash_token
from posthouse.services.parties import Account

CA = trustme.CA()


async def hello(_request: PeerRequest) -> PeerAnswer:
    return PeerAnswer(document=b'"hello"')


class Stage:
    """A house on a loopback port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: list[str | None] = []
        listener = bind()
        self.port = listener.getsockname()[1]
        self.house = HttpsHouse([listener], folder, tell=self.told.append)

    def plan(self, *tokens: str, tls: bool = True, path: str = "v1/x") -> HttpsPlan:
        return HttpsPlan(
            certificate=self.folder / "fullchain.pem" if tls else None,
            private_key=self.folder / "privkey.pem" if tls else None,
            accounts=(
                Account(
                    name="mx2.example.net",
                    domains=frozenset(),
                    token_hashes=tuple(map(hash_token, tokens)),
                ),
            ),
            routes=(PeerRoute(method="GET", path=path, handler=hello),),
            base_urls=("https://mail.example.com/deep/",),
        )

    async def ask(self, token: str, path: str = "/v1/x", *, tls: bool = True) -> int:
        async with connected(self.port, context=trusting() if tls else None) as client:
            client.ask("GET", path, token=token)
            return (await client.read()).status


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    await stage.house.close(1.0)


async def test_it_opens(stage: Stage) -> None:
    """It serves below every path it is known by."""
    write_certificate(stage.folder, Certificate(CA, "127.0.0.1"))
    assert await stage.house.set_plan(stage.plan("t"))
    assert await stage.ask("t") == 200
    assert await stage.ask("t", "/deep/v1/x") == 200
    assert await stage.ask("other") == 401
    assert stage.told == [None]


async def test_without_a_certificate_it_speaks_in_clear(stage: Stage) -> None:
    """The configuration sees to it that this is on loopback."""
    assert await stage.house.set_plan(stage.plan("t", tls=False))
    assert await stage.ask("t", tls=False) == 200


async def test_a_bad_certificate_keeps_it_shut(stage: Stage) -> None:
    """It is told, and opens once the certificate can be used."""
    assert not await stage.house.set_plan(stage.plan("t"))
    assert "fullchain.pem" in (stage.told[-1] or "")
    write_certificate(stage.folder, Certificate(CA, "127.0.0.1"))
    assert await stage.house.set_plan(stage.plan("t"))
    assert await stage.ask("t") == 200
    assert stage.told[-1] is None


async def test_a_reload_under_a_bad_certificate(stage: Stage) -> None:
    """The certificate in force stays; accounts and routes change all the same."""
    write_certificate(stage.folder, Certificate(CA, "127.0.0.1"))
    await stage.house.set_plan(stage.plan("old"))
    (stage.folder / "privkey.pem").write_text("rubbish")
    assert not await stage.house.set_plan(stage.plan("old", "new", path="v1/y"))
    assert await stage.ask("new", "/v1/y") == 200
    assert await stage.ask("new", "/v1/x") == 404


async def test_uses_are_remembered(stage: Stage) -> None:
    """Which token was shown lies in data_dir; a damaged memory keeps the door shut."""
    await stage.house.set_plan(stage.plan("old", "new", tls=False))
    assert await stage.ask("new", tls=False) == 200
    assert await stage.ask("old", tls=False) == 401
    uses = stage.folder / "tokens.used"
    assert hash_token("new").hex() in uses.read_text()
    uses.write_text("rubbish")
    listener = bind()
    other = HttpsHouse([listener], stage.folder)
    assert not await other.set_plan(stage.plan("old", tls=False))
    await other.close(1.0)
