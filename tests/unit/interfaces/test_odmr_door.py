"""The door for ATRN against strangers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
from collections.abc import AsyncIterator

import pytest

from fakes.open_door import Talker, talk, until
from posthouse.interfaces import odmr_door
from posthouse.interfaces.odmr_door import Line, OdmrDesk, OdmrKeeper
from posthouse.mail.reply import Reply
from posthouse.ports_session import SessionFacts

SECRET = "tanstaaftanstaaf"


@contextlib.asynccontextmanager
async def odmr(go: asyncio.Event) -> AsyncIterator[tuple[OdmrKeeper, int]]:
    """A door whose answer to ATRN waits for `go`."""

    async def turn(user: str, domains: tuple[str, ...], tls: str) -> Reply:
        await go.wait()
        return Reply(453, "4.0.0", "You have no mail")

    async def etrn(node: str, session: SessionFacts) -> Reply:
        return Reply(250, "2.0.0", "OK")

    def take(line: Line) -> None:
        raise AssertionError("nothing is turned here")

    desk = OdmrDesk(
        hostname="mx2.example.net",
        secrets={"ada": SECRET},
        challenge=lambda: "<1.2@mx2.example.net>",
        turn=turn,
        take=take,
        etrn=etrn,
    )
    keeper = OdmrKeeper(desk, pause_seconds=0)
    server = await asyncio.get_running_loop().create_server(keeper.make_session, "127.0.0.1", 0)
    try:
        yield keeper, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        keeper.close()
        await server.wait_closed()


async def log_in(client: Talker) -> None:
    await client.hear()
    await client.say("EHLO primary.example")
    challenge = base64.b64decode((await client.say("AUTH CRAM-MD5"))[4:])
    digest = hmac.new(SECRET.encode(), challenge, hashlib.md5).hexdigest()
    assert (await client.say(base64.b64encode(f"ada {digest}".encode()).decode())).startswith("235")


async def test_little_is_read_ahead() -> None:
    """Who pours in octets while an answer is awaited is not read any further."""
    go = asyncio.Event()
    async with odmr(go) as (keeper, port), talk(port) as client:
        await log_in(client)
        client.writer.write(b"ATRN\r\n" + b"NOOP\r\n" * 10)
        poured = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while poured < 60_000_000:
                    client.writer.write(b"NOOP\r\n" * 20_000)
                    poured += 120_000
                    await client.writer.drain()
        (door,) = keeper.sessions
        assert door._server.buffered_bytes < 1_000_000
        go.set()
        assert (await client.hear()).startswith("453")
        assert (await client.hear()).startswith("250")


async def test_a_stranger_does_not_keep_a_primary_out() -> None:
    """One network has few connections of all; they come free as they leave."""
    async with odmr(asyncio.Event()) as (keeper, port), contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(talk(port)) for _ in range(10)]
        for client in clients:
            assert (await client.hear()).startswith("220")
        async with talk(port) as late:
            assert (await late.hear()).startswith("421 4.7.0")
        clients[0].writer.close()
        await until(lambda: len(keeper.sessions) == 9)
        async with talk(port) as late:
            assert (await late.hear()).startswith("220")


async def test_who_has_not_logged_in_is_not_kept_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small talk keeps no connection; a login does."""
    monkeypatch.setattr(odmr_door, "UNKNOWN_SECONDS", 0.2)
    async with odmr(asyncio.Event()) as (_, port), talk(port) as known, talk(port) as stranger:
        await log_in(known)
        await stranger.hear()
        while not (reply := await stranger.say("NOOP")).startswith("421"):
            await asyncio.sleep(0.02)
        assert "timeout" in reply
        assert (await known.say("NOOP")).startswith("250")
