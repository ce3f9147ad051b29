"""Whom a proxied message is vouched for with SMTP AUTH, and what a refusal costs: nothing."""

from __future__ import annotations

import base64
import contextlib
import ssl
from collections.abc import AsyncIterator

import pytest
import trustme

from fakes.agreement_secrets import FakeSecrets
from fakes.open_door import stored
from fakes.scripted_peer import DROP, STALL, Answer, ScriptedPeer
from fakes.standby_world import PROXY, World, client_of, world
from posthouse.services.relay_vouching import Vouching

PLAIN = "AUTH PLAIN " + base64.b64encode(b"\0a-alice\0one").decode()


@contextlib.asynccontextmanager
async def demanding(
    answers: dict[str, Answer], secrets: FakeSecrets, *, tls: bool = True
) -> AsyncIterator[tuple[World, ScriptedPeer]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("p.example").configure_cert(context)
    extensions = ("PIPELINING", "AUTH PLAIN LOGIN")
    async with (
        ScriptedPeer(answers, extensions=extensions, tls=context if tls else None) as primary,
        world(PROXY, {"example.com": primary.port}) as w,
    ):
        w.proxy._vouching = Vouching(secrets, lambda: 0)
        yield w, primary


async def send(w: World, *users: str) -> list[str]:
    """One session, a message for each; what was said to each dot."""
    said = []
    async with client_of(w) as client:
        for user in users:
            await client.say("MAIL FROM:<s@b.example>")
            await client.say(f"RCPT TO:<{user}@example.com>")
            await client.say("DATA")
            said.append(await client.say(b"x\r\n.\r\n"))
    return said


async def test_vouched_once_a_session() -> None:
    """AUTH before the first message under an agreement; the next one without says so."""
    secrets = FakeSecrets(alice="one")
    async with demanding({}, secrets) as (w, primary):
        assert await send(w, "alice", "bob", "alice") == ["250 2.0.0 taken\r\n"] * 3
        assert [c for c in primary.commands if c.startswith("AUTH")] == [PLAIN]
        mails = [c for c in primary.commands if c.startswith("MAIL")]
        assert [c.partition(" AUTH=")[2] for c in mails] == ["", "<>", ""]


async def test_never_in_clear() -> None:
    """No password without TLS."""
    secrets = FakeSecrets(alice="one")
    async with demanding({}, secrets, tls=False) as (w, primary):
        assert await send(w, "alice") == ["250 2.0.0 taken\r\n"]
        assert not any("AUTH" in command for command in primary.commands)


@pytest.mark.parametrize(
    "refusal", ["535 5.7.8 no", "454 4.7.0 later", "534 5.7.9 too weak", "334 "]
)
async def test_refused(refusal: str) -> None:
    """Mail goes without, and it is not tried again with what was refused."""
    secrets = FakeSecrets(alice="one")
    async with demanding({"AUTH": refusal}, secrets) as (w, primary):
        assert await send(w, "alice") == ["250 2.0.0 taken\r\n"]
        assert await send(w, "alice") == ["250 2.0.0 taken\r\n"]
        assert [c for c in primary.commands if c.startswith("AUTH")] == [PLAIN]
        assert bool(secrets.reported) == refusal.startswith("535")


@pytest.mark.parametrize("how", [DROP, STALL, "421 4.3.2 bye"], ids=str)
async def test_broken(how: Answer) -> None:
    """A session that breaks at AUTH makes the message ours; the next goes without."""
    async with demanding({"AUTH": how}, FakeSecrets(alice="one")) as (w, primary):
        (said,) = await send(w, "alice")
        assert said.startswith("250 2.0.0 Ok: queued")
        assert await stored(w.spool) == 1
        assert await send(w, "alice") == ["250 2.0.0 taken\r\n"]
        assert len(primary.messages) == 1


async def test_demanded_by_the_primary_of_who_has_none() -> None:
    """530 at MAIL is said to us, not to the client: the message becomes ours."""
    answers: dict[str, Answer] = {"MAIL": "530 5.7.0 Authentication required"}
    async with demanding(answers, FakeSecrets()) as (w, primary):
        (said,) = await send(w, "alice")
        assert said.startswith("250 2.0.0 Ok: queued")
        assert primary.messages == []
