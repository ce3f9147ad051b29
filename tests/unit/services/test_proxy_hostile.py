"""`standby = "proxy"` between a hostile primary and a client that is no better."""

from __future__ import annotations

import pytest

from fakes.open_door import stored
from fakes.scripted_peer import STALL, Answer, ScriptedPeer
from fakes.standby_world import PROXY, bodies, client_of, world


@pytest.mark.parametrize(
    "answers",
    [
        {"DATA": "250 2.0.0 thanks"},
        {"DATA": "221 2.0.0 bye"},
        {".": "354 go on"},
        {"MAIL": "354 go on"},
        {"RCPT": "354 go on"},
        {"MAIL": "334 "},
    ],
    ids=str,
)
async def test_an_answer_that_is_none(answers: dict[str, Answer]) -> None:
    """An answer that makes no sense there takes nothing over: the message becomes ours."""
    async with (
        ScriptedPeer(answers, strict=False) as primary,
        world(PROXY, {"example.com": primary.port}) as w,
        client_of(w) as client,
    ):
        await client.say("MAIL FROM:<s@b.example>")
        assert (await client.say("RCPT TO:<alice@example.com>")).startswith("250")
        assert (await client.say("DATA")).startswith("354")
        assert (await client.say(b"x\r\n.\r\n")).startswith("250 2.0.0 Ok: queued as")
        (body,) = await bodies(w.spool)
        assert body.endswith(b"\r\nx\r\n")


@pytest.mark.parametrize("at", ["connect", "EHLO", "MAIL", "RCPT", "RCPT:bob@example.com"])
async def test_silence_ends_before_the_doors_patience(at: str) -> None:
    """A primary that says nothing loses the message to us before the client hears 451."""
    async with (
        ScriptedPeer({at: STALL}) as primary,
        world(PROXY, {"example.com": primary.port}, reply_timeout=60, patience_seconds=0.2) as w,
        client_of(w) as client,
    ):
        await client.say("MAIL FROM:<s@b.example>")
        assert (await client.say("RCPT TO:<alice@example.com>")).startswith("250")
        assert (await client.say("RCPT TO:<bob@example.com>")).startswith("250")
        assert (await client.say("RCPT TO:<alice@example.com>")).startswith("250")
        assert (await client.say("DATA")).startswith("354")
        assert (await client.say(b"x\r\n.\r\n")).startswith("250")
        assert await stored(w.spool) == 1


async def test_refused_content_and_what_is_pipelined_behind() -> None:
    """Content we refuse ends at the primary, too, and the next message is told apart from it."""
    async with (
        ScriptedPeer() as primary,
        world(PROXY, {"example.com": primary.port}) as w,
        client_of(w) as client,
    ):
        for _ in range(3):
            await client.say("MAIL FROM:<s@b.example>")
            assert (await client.say("RCPT TO:<alice@example.com>")).startswith("250")
            assert (await client.say("DATA")).startswith("354")
            client.writer.write(
                b"bare\nlf\r\n.\r\nMAIL FROM:<t@b.example>\r\nRCPT TO:<alice@example.com>\r\n"
                b"RCPT TO:<nobody@example.com>\r\nDATA\r\n"
            )
            replies = [await client.hear() for _ in range(5)]
            assert [reply[:3] for reply in replies] == ["550", "250", "250", "250", "354"]
            assert (await client.say(b"y\r\n.\r\n")).startswith("250 2.0.0 taken")
        assert await stored(w.spool) == 0
        assert [mail.sender for mail in primary.messages] == ["t@b.example"] * 3


@pytest.mark.parametrize(
    "refusal",
    [
        "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using dnsbl.example",
        "550 5.7.1 Your host is on our list",
    ],
)
async def test_a_primary_that_turns_us_away_at_rcpt(refusal: str) -> None:
    """A refusal at RCPT that means us is no verdict on the recipient: ours counts, mail is kept."""
    async with (
        ScriptedPeer({"RCPT": refusal}) as primary,
        world(PROXY, {"example.com": primary.port}) as w,
        client_of(w) as client,
    ):
        await client.say("MAIL FROM:<s@b.example>")
        assert (await client.say("RCPT TO:<nobody@example.com>")).startswith("550 5.1.1")
        assert (await client.say("RCPT TO:<alice@example.com>")).startswith("250")
        await client.say("DATA")
        assert (await client.say(b"x\r\n.\r\n")).startswith("250 2.0.0 Ok: queued as")
        assert await stored(w.spool) == 1
