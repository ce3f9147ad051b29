"""The standby modes at a real door, with a scripted primary behind it."""

from __future__ import annotations

import pytest

from fakes.open_door import stored, until
from fakes.scripted_peer import DROP, STALL, Answer, ScriptedPeer
from fakes.standby_world import DEFER, MINUTE, PROXY, World, bodies, client_of, world
from posthouse.domain.standby import Standby
from posthouse.services.standby import StandbyRule

# --------------------------------------------------------------------------- proxy


async def test_proxy_gives_the_primarys_own_words() -> None:
    """Verdicts and the final reply are the primary's; nothing is queued; content is identical."""
    answers: dict[str, Answer] = {
        "RCPT:nobody@example.com": "550 5.1.1 never heard of",
        "RCPT:full@example.com": "452 4.2.2 mailbox full",
        ".": "250 2.0.0 stored as Q7",
    }
    async with ScriptedPeer(answers, extensions=("SIZE", "8BITMIME", "DSN")) as primary:
        async with world(PROXY, {"example.com": primary.port}) as w, client_of(w) as client:
            await client.say("MAIL FROM:<s@b.example> BODY=8BITMIME SIZE=900 ENVID=e1")
            assert (
                await client.say("RCPT TO:<nobody@example.com>") == "550 5.1.1 never heard of\r\n"
            )
            assert await client.say("RCPT TO:<full@example.com>") == "452 4.2.2 mailbox full\r\n"
            # our own list does not know carol; the primary does
            assert (await client.say("RCPT TO:<carol@example.com> NOTIFY=NEVER")).startswith("250")
            await client.say("DATA")
            reply = await client.say(b"Subject: x\r\n\r\n..dots\r\nend\r\n.\r\n")
            assert reply == "250 2.0.0 stored as Q7\r\n"
            assert await stored(w.spool) == 0
            (mail,) = primary.messages
            assert mail.content.endswith(b"\r\nSubject: x\r\n\r\n.dots\r\nend\r\n")
            assert mail.content.startswith(b"Received: from client.example")
            assert mail.mail_parameters == "SIZE=900 BODY=8BITMIME ENVID=e1"
            assert mail.rcpt_parameters == ("NOTIFY=NEVER",)
        await primary.wait_command("QUIT")


@pytest.mark.parametrize("final", ["554 5.7.1 spam", "451 4.3.0 later"])
async def test_proxy_passes_refusals_on(final: str) -> None:
    """A refusal at the dot is the client's to hear, once, and we keep nothing."""
    async with (
        ScriptedPeer({".": final}) as primary,
        world(PROXY, {"example.com": primary.port}) as w,
        client_of(w) as client,
    ):
        for _ in range(2):  # the session goes on
            await client.say("MAIL FROM:<s@b.example>")
            await client.say("RCPT TO:<alice@example.com>")
            await client.say("DATA")
            assert await client.say(b"x\r\n.\r\n") == f"{final}\r\n"
        assert await stored(w.spool) == 0


@pytest.mark.parametrize("at", ["MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize("how", [DROP, STALL, "421 4.3.2 going down"], ids=str)
async def test_primary_that_fails_midway(at: str, how: Answer) -> None:
    """Then the message becomes ours, whole, and the client hears one 250."""
    async with (
        ScriptedPeer({at: how}) as primary,
        world(PROXY, {"example.com": primary.port}) as w,
        client_of(w) as client,
    ):
        await client.say("MAIL FROM:<s@b.example>")
        assert (await client.say("RCPT TO:<alice@example.com>")).startswith("250")
        assert (await client.say("DATA")).startswith("354")
        reply = await client.say(b"Subject: x\r\n\r\nmine\r\n.\r\n")
        assert reply.startswith("250 2.0.0 Ok: queued as")
        (body,) = await bodies(w.spool)
        assert body.endswith(b"\r\nSubject: x\r\n\r\nmine\r\n")
        assert primary.messages == []


async def test_primary_killed_while_content_comes() -> None:
    """A large message whose primary dies in the middle of it is stored whole."""
    async with (
        ScriptedPeer() as primary,
        world(PROXY, {"example.com": primary.port}) as w,
        client_of(w) as client,
    ):
        await client.say("MAIL FROM:<s@b.example>")
        await client.say("RCPT TO:<alice@example.com>")
        await client.say("DATA")
        half = b"0123456789abcdef\r\n" * 10_000
        client.writer.write(half)
        await until(lambda: primary.octets_read > 1000)
        await primary.stop()
        assert (await client.say(half + b".\r\n")).startswith("250 2.0.0 Ok: queued")
        (body,) = await bodies(w.spool)
        assert body.endswith(half + half)
        assert primary.messages == []


async def test_our_own_verdict_when_the_primary_cannot_be_asked() -> None:
    """Nobody listens: it is as if the primary were down."""
    async with world(PROXY, {"example.com": 9}) as w, client_of(w) as client:
        await client.say("MAIL FROM:<s@b.example>")
        assert (await client.say("RCPT TO:<nobody@example.com>")).startswith("550 5.1.1")
        assert (await client.say("RCPT TO:<alice@example.com>")).startswith("250")
        await client.say("DATA")
        assert (await client.say(b"x\r\n.\r\n")).startswith("250 2.0.0 Ok: queued")
        assert await stored(w.spool) == 1


async def test_a_primary_that_turns_us_away_costs_nobody_mail() -> None:
    """554 at MAIL about us is no verdict on the sender; one about the sender is passed on."""
    answers: dict[str, Answer] = {"MAIL": "554 5.7.1 your host is blocked"}
    async with (
        ScriptedPeer(answers) as primary,
        world(PROXY, {"example.com": primary.port}) as w,
    ):
        async with client_of(w) as client:
            await client.say("MAIL FROM:<s@b.example>")
            assert (await client.say("RCPT TO:<alice@example.com>")).startswith("250")
        primary.answers["MAIL"] = "550 5.1.8 no such sender domain"
        async with client_of(w) as client:
            await client.say("MAIL FROM:<s@b.example>")
            reply = await client.say("RCPT TO:<alice@example.com>")
            assert reply == "550 5.1.8 no such sender domain\r\n"


async def test_one_destination_a_transaction() -> None:
    """A recipient whose mail goes elsewhere waits for a transaction of its own."""
    async with ScriptedPeer() as primary, ScriptedPeer() as other:
        rules = {**PROXY, "example.org": StandbyRule(mode=Standby.PROXY)}
        ports = {"example.com": primary.port, "example.org": other.port}
        async with world(rules, ports) as w, client_of(w) as client:
            await client.say("MAIL FROM:<s@b.example>")
            assert (await client.say("RCPT TO:<alice@example.com>")).startswith("250")
            assert (await client.say("RCPT TO:<bob@example.org>")).startswith("452 4.5.3")
            await client.say("DATA")
            assert (await client.say(b"x\r\n.\r\n")).startswith("250 2.0.0 taken")
            await client.say("MAIL FROM:<s@b.example>")
            assert (await client.say("RCPT TO:<bob@example.org>")).startswith("250")
            await client.say("DATA")
            assert (await client.say(b"x\r\n.\r\n")).startswith("250 2.0.0 taken")
            assert len(primary.messages) == len(other.messages) == 1
            assert await stored(w.spool) == 0


async def test_reset_and_leaving_tear_off_at_the_primary() -> None:
    """RSET of the client is one at the primary; a client lost within content delivers nothing."""
    async with ScriptedPeer() as primary:
        async with world(PROXY, {"example.com": primary.port}) as w:
            async with client_of(w) as client:
                await client.say("MAIL FROM:<s@b.example>")
                await client.say("RCPT TO:<alice@example.com>")
                await client.say("RSET")
                await client.say("MAIL FROM:<t@b.example>")
                await client.say("RCPT TO:<bob@example.com>")
                await client.say("DATA")
                client.writer.write(b"half\r\n")
                await until(lambda: primary.octets_read > 0)
            await until(lambda: not w.gate._proxy._open)
        assert primary.commands.count("RSET") == 1
        await primary.stop()
        assert primary.messages == []
        assert await stored(w.spool) == 0


async def test_more_clients_than_sessions() -> None:
    """Beyond the limit of sessions with primaries, mail is taken as in mode relay."""
    async with (
        ScriptedPeer() as primary,
        world(PROXY, {"example.com": primary.port}, max_sessions=1) as w,
    ):
        async with client_of(w) as one, client_of(w) as two:
            for client in (one, two):
                await client.say("MAIL FROM:<s@b.example>")
                assert (await client.say("RCPT TO:<alice@example.com>")).startswith("250")
                await client.say("DATA")
            assert (await two.say(b"x\r\n.\r\n")).startswith("250 2.0.0 Ok: queued")
            assert (await one.say(b"x\r\n.\r\n")).startswith("250 2.0.0 taken")
        assert await stored(w.spool) == 1


async def test_a_client_that_leaves_at_the_dot() -> None:
    """Once the primary has the final dot its answer is awaited, so that it is not sent again."""
    async with ScriptedPeer() as primary, world(PROXY, {"example.com": primary.port}) as w:
        async with client_of(w) as client:
            await client.say("MAIL FROM:<s@b.example>")
            await client.say("RCPT TO:<alice@example.com>")
            await client.say("DATA")
            client.writer.write(b"x\r\n.\r\n")
            await client.writer.drain()
        await primary.wait_messages(1)
        await until(lambda: not w.gate._proxy._open)
        assert await stored(w.spool) == 0


# --------------------------------------------------------------------------- defer


async def attempt(w: World, minute: float, *, sender: str = "s@b.example") -> str:
    w.now_us = int((1_000 + minute) * MINUTE)
    async with client_of(w) as client:
        await client.say(f"MAIL FROM:<{sender}>")
        return (await client.say("RCPT TO:<alice@example.com>"))[:9]


async def test_defer_until_it_is_plain() -> None:
    """A client is sent to the better MX, until it plainly cannot go there; then all of it is let in."""
    async with world(DEFER) as w:
        answers = [await attempt(w, minute) for minute in (0, 5, 10)]
        assert answers == ["451 4.3.2"] * 3
        assert await attempt(w, 14) == "451 4.3.2"
        assert await attempt(w, 16) == "250 2.1.5"
        assert await attempt(w, 17, sender="another@b.example") == "250 2.1.5"
        assert await attempt(w, 17 + 13 * 60, sender="third@b.example") == "451 4.3.2"


async def test_defer_of_bounces() -> None:
    """A bounce is turned away and in the end let in like all mail, but proves nothing of its network."""
    async with world(DEFER) as w:
        assert [await attempt(w, minute, sender="") for minute in (0, 5, 14)] == ["451 4.3.2"] * 3
        assert await attempt(w, 16, sender="") == "250 2.1.5"
        assert await attempt(w, 17, sender="other@b.example") == "451 4.3.2"


async def test_defer_only_while_the_primary_is_up() -> None:
    """When the primary goes down everybody is let in at once."""
    async with world(DEFER) as w:
        assert await attempt(w, 0) == "451 4.3.2"
        w.up = False
        assert await attempt(w, 1) == "250 2.1.5"


async def test_defer_tells_nothing_new() -> None:
    """Unknown users, foreign domains and the postmaster hear what they always hear."""
    async with world(DEFER) as w, client_of(w) as client:
        await client.say("MAIL FROM:<s@b.example>")
        assert (await client.say("RCPT TO:<nobody@example.com>")).startswith("550 5.1.1")
        assert (await client.say("RCPT TO:<x@elsewhere.example>")).startswith("550 5.7.1")
        assert (await client.say("RCPT TO:<postmaster@example.com>")).startswith("250")
        assert (await client.say("RCPT TO:<Postmaster>")).startswith("250")
        assert w.memory.known == {}


async def test_other_domains_are_not_touched() -> None:
    """A mode counts for its domain alone; recipients of both kinds share a transaction."""
    async with (
        ScriptedPeer() as primary,
        world(PROXY, {"example.com": primary.port}) as w,
        client_of(w) as client,
    ):
        await client.say("MAIL FROM:<s@b.example>")
        assert (await client.say("RCPT TO:<alice@xn--bcher-kva.example>")).startswith("250")
        assert (await client.say("RCPT TO:<alice@example.com>")).startswith("250")
        await client.say("DATA")
        assert (await client.say(b"x\r\n.\r\n")).startswith("250 2.0.0 Ok: queued")
        assert primary.connections == 0
        assert await stored(w.spool) == 1
