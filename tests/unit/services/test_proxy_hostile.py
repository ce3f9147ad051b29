"""`standby = "proxy"` between a hostile primary and a client that is no better."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from fakes.open_door import stored, until
from fakes.scripted_peer import STALL, Answer, ScriptedPeer
from fakes.standby_world import PROXY, bodies, client_of, world

MAIL = "MAIL FROM:<s@b.example>"
ALICE = "RCPT TO:<alice@example.com>"
BOB = "RCPT TO:<bob@example.com>"


@pytest.fixture(name="complaints", autouse=True)
def hear_complaints(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever happens, no task dies unseen ("exception was never retrieved")."""
    yield
    assert [r.getMessage() for r in caplog.records if r.name == "asyncio"] == []


@pytest.mark.parametrize(
    "answers",
    [
        {"DATA": "250 2.0.0 thanks"},
        {"DATA": "221 2.0.0 bye"},
        {".": "354 go on"},
        {"MAIL": "354 go on"},
        {"MAIL": "334 "},
        {"RCPT": "354 go on"},
    ],
    ids=str,
)
async def test_an_answer_that_is_none(answers: dict[str, Answer]) -> None:
    """An answer that makes no sense where it comes takes nothing over: the message becomes ours."""
    async with (
        ScriptedPeer(answers, strict=False) as primary,
        world(PROXY, {"example.com": primary.port}) as w,
        client_of(w) as client,
    ):
        await client.say(MAIL)
        assert (await client.say(ALICE)).startswith("250")
        assert (await client.say("DATA")).startswith("354")
        assert (await client.say(b"x\r\n.\r\n")).startswith("250 2.0.0 Ok: queued as")
        (body,) = await bodies(w.spool)
        assert body.endswith(b"\r\nx\r\n")


@pytest.mark.parametrize("at", ["connect", "EHLO", "MAIL", "RCPT", "RCPT:bob@example.com"])
async def test_silence_ends_before_the_doors_patience(at: str) -> None:
    """A primary that says nothing costs one wait a transaction, then the message is ours."""
    async with (
        ScriptedPeer({at: STALL}) as primary,
        world(PROXY, {"example.com": primary.port}, reply_timeout=60, patience_seconds=0.2) as w,
        client_of(w) as client,
    ):
        await client.say(MAIL)
        for rcpt in (ALICE, BOB, ALICE):
            assert (await client.say(rcpt)).startswith("250")
        assert (await client.say("DATA")).startswith("354")
        assert (await client.say(b"x\r\n.\r\n")).startswith("250 2.0.0 Ok: queued as")
        assert await stored(w.spool) == 1
        assert not w.proxy._open


async def test_a_verdict_called_off() -> None:
    """What the door does not wait for any longer is not taken for the next command's answer."""
    async with (
        ScriptedPeer({"RCPT:bob@example.com": STALL}) as primary,
        world(PROXY, {"example.com": primary.port}, reply_timeout=60, verdict_timeout=0.1) as w,
        client_of(w) as client,
    ):
        await client.say(MAIL)
        assert (await client.say(ALICE)).startswith("250")
        assert (await client.say(BOB)).startswith("451")
        assert (await client.say("RCPT TO:<carol@example.com>")).startswith("250")
        assert (await client.say("DATA")).startswith("354")
        assert (await client.say(b"x\r\n.\r\n")).startswith("250 2.0.0 Ok: queued as")
        assert await stored(w.spool) == 1
        assert primary.messages == []


@pytest.mark.parametrize(
    ("refusal", "ours"),
    [
        ("554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using b.example", True),
        ("550 5.7.1 Client host rejected: cannot find your reverse hostname", True),
        ("554 5.7.1 <s@b.example>: Sender address rejected: Access denied", False),
        ("450 4.2.0 <alice@example.com>: Recipient address rejected: Greylisted", False),
    ],
)
async def test_refused_at_rcpt_because_of_us(refusal: str, ours: bool) -> None:
    """A primary that refuses this backup costs no client its mail; all else is passed on."""
    async with (
        ScriptedPeer({"RCPT": refusal}) as primary,
        world(PROXY, {"example.com": primary.port}) as w,
        client_of(w) as client,
    ):
        await client.say(MAIL)
        assert (await client.say(ALICE))[:3] == ("250" if ours else refusal[:3])


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"bare\nlf\r\n.\r\n", "550 5.6.11"),
        (b"\n.\nMAIL FROM:<smuggled@b.example>\n\r\n.\r\n", "550 5.6.11"),
        (b"Received: from x\r\n" * 120 + b"\r\nbody\r\n.\r\n", "554 5.4.6"),
    ],
    ids=["bare-lf", "smuggling", "hops"],
)
async def test_refused_by_us_and_more_behind_the_dot(content: bytes, code: str) -> None:
    """Content that we refuse is torn off at the primary; what is pipelined behind it goes on."""
    async with (
        ScriptedPeer() as primary,
        world(PROXY, {"example.com": primary.port}) as w,
        client_of(w) as client,
    ):
        for _ in range(3):
            for line in (MAIL, ALICE, "DATA"):
                await client.say(line)
            behind = f"MAIL FROM:<t@b.example>\r\n{ALICE}\r\nDATA\r\n"
            assert (await client.say(content + behind.encode())).startswith(code)
            assert [(await client.hear())[:3] for _ in range(3)] == ["250", "250", "354"]
            assert (await client.say(b"y\r\n.\r\n")).startswith("250 2.0.0 taken")
        assert await stored(w.spool) == 0
        assert [mail.sender for mail in primary.messages] == ["t@b.example"] * 3
        assert not any("smuggled" in command for command in primary.commands)


async def test_chunks() -> None:
    """BDAT: the primary has the same octets; a torn or refused one leaves nothing behind."""
    async with (
        ScriptedPeer({".": ("554 5.7.1 spam", "250 2.0.0 taken")}) as primary,
        world(PROXY, {"example.com": primary.port}) as w,
        client_of(w) as client,
    ):
        for final in ("554 5.7.1 spam", "250 2.0.0 taken"):
            for line in (MAIL, ALICE):
                await client.say(line)
            assert (await client.say(b"BDAT 7\r\nA: b\r\n\r")).startswith("250")
            assert (await client.say(b"BDAT 5 LAST\r\n\n.x\r\n")).startswith(final)
        await client.say(MAIL)
        await client.say(ALICE)
        assert (await client.say(b"BDAT 3\r\nabc")).startswith("250")
        assert (await client.say("RSET")).startswith("250")
        await client.say(MAIL)
        await client.say(ALICE)
        assert (await client.say(b"BDAT 3 LAST\r\na\nb")).startswith("550 5.6.11")
        (mail,) = primary.messages
        assert mail.content.endswith(b"\r\nA: b\r\n\r\n.x\r\n")
        assert await stored(w.spool) == 0


async def test_a_client_that_leaves_while_the_go_ahead_is_awaited() -> None:
    """Nothing is left of it: no session, no letter, nothing stored, once the primary had its time."""
    async with (
        ScriptedPeer({"DATA": STALL}) as primary,
        world(PROXY, {"example.com": primary.port}) as w,
    ):
        async with client_of(w) as client:
            for line in (MAIL, ALICE, "DATA"):
                await client.say(line)
            client.writer.write(b"half\r\n")
            await client.writer.drain()
            await primary.wait_command("DATA")
        await until(lambda: not w.proxy._open and not w.connector._sessions)
        assert await stored(w.spool) == 0


async def test_a_client_that_leaves_as_it_says_the_dot() -> None:
    """Said and gone in one breath: the primary has the message, once, and we do not."""
    async with ScriptedPeer() as primary, world(PROXY, {"example.com": primary.port}) as w:
        for turn in range(5):
            async with client_of(w) as client:
                for line in (MAIL, ALICE, "DATA"):
                    await client.say(line)
                client.writer.write(b"x\r\n.\r\n")
                client.writer.close()
            await until(lambda: not w.proxy._open)
            assert len(primary.messages) + await stored(w.spool) == turn + 1


async def test_bounded_while_the_primary_does_not_answer() -> None:
    """A client that pours in content before the 354 is stopped, and so is one behind a full pipe."""
    async with (
        ScriptedPeer({"DATA": STALL}) as primary,
        world(PROXY, {"example.com": primary.port}, reply_timeout=1) as w,
    ):
        async with client_of(w) as client:
            for line in (MAIL, ALICE, "DATA"):
                await client.say(line)
            piece = b"x" * 998 + b"\r\n"
            poured = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    while poured < 60_000_000:
                        client.writer.write(piece * 100)
                        poured += 100_000
                        await client.writer.drain()
            assert poured < 20_000_000
        await until(lambda: not w.proxy._open)


async def test_a_session_the_primary_closed_meanwhile() -> None:
    """Between two messages of a slow client the primary closes; the next goes over a new one."""
    async with (
        ScriptedPeer() as primary,
        world(PROXY, {"example.com": primary.port}) as w,
        client_of(w) as client,
    ):
        for _ in range(3):
            for line in (MAIL, ALICE, "DATA"):
                await client.say(line)
            assert (await client.say(b"x\r\n.\r\n")).startswith("250 2.0.0 taken")
            await primary.stop()
            await primary.start()
            await until(lambda: not w.connector._sessions)
        assert await stored(w.spool) == 0
        assert primary.connections == 3


async def test_who_may_not_come_in_at_all_is_not_told_to_come_later() -> None:
    """Behind a proxied recipient a foreign domain is refused for good, not asked to try again."""
    async with (
        ScriptedPeer() as primary,
        world(PROXY, {"example.com": primary.port}) as w,
        client_of(w) as client,
    ):
        await client.say(MAIL)
        await client.say(ALICE)
        assert (await client.say("RCPT TO:<x@elsewhere.example>")).startswith("550 5.7.1")
        assert (await client.say("RCPT TO:<no@xn--bcher-kva.example>")).startswith("550 5.1.1")
        assert (await client.say("RCPT TO:<alice@xn--bcher-kva.example>")).startswith("452 4.5.3")


async def test_rules_that_change_under_way() -> None:
    """A reload that ends proxying within a transaction makes its message ours, and leaks nothing."""
    async with (
        ScriptedPeer() as primary,
        world(PROXY, {"example.com": primary.port}) as w,
    ):
        async with client_of(w) as client:
            await client.say(MAIL)
            await client.say(ALICE)
            w.gate.rules = {}
            assert (await client.say(BOB)).startswith("250")
            await client.say("DATA")
            assert (await client.say(b"x\r\n.\r\n")).startswith("250 2.0.0 Ok: queued as")
        await until(lambda: not w.proxy._open and not w.connector._sessions)
        assert await stored(w.spool) == 1
        assert primary.messages == []
