"""`standby = "proxy"` over the turns that a client's session may take, and beside other gates."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Sequence
from pathlib import Path

import pytest
import trustme

from fakes.http_server import Certificate
from fakes.https_stage import write_certificate
from fakes.open_door import Talker, stored, until
from fakes.scripted_peer import DROP, STALL, Answer, ScriptedPeer
from fakes.standby_world import PROXY, bodies, client_of, world
from posthouse.domain.finding import Answer as Found
from posthouse.domain.finding import Finding
from posthouse.domain.verdict import Verdict
from posthouse.transports.tls import TlsServer


async def send(client: Talker, *recipients: str, body: str = "x") -> str:
    """One message; returns what was said to the dot, or to the first recipient refused."""
    await client.say("MAIL FROM:<s@b.example>")
    for recipient in recipients:
        reply = await client.say(f"RCPT TO:<{recipient}>")
        if not reply.startswith("250"):
            return reply
    await client.say("DATA")
    return await client.say(f"{body}\r\n.\r\n".encode())


async def test_starttls_between_and_within(tmp_path: Path) -> None:
    """STARTTLS begins the session anew (RFC 3207 §4.2): what was begun is gone at the primary, too."""
    certificate, key = write_certificate(tmp_path, Certificate(trustme.CA(), "127.0.0.1"))
    async with (
        ScriptedPeer() as primary,
        world(PROXY, {"example.com": primary.port}, tls=TlsServer(certificate, key)) as w,
        client_of(w) as client,
    ):
        assert await send(client, "alice@example.com", body="clear") == "250 2.0.0 taken\r\n"
        await client.say("MAIL FROM:<s@b.example>")
        await client.say("RCPT TO:<alice@example.com>")
        assert (await client.say("STARTTLS")).startswith("503")
        await client.say("RSET")
        assert (await client.say("STARTTLS")).startswith("220")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        await client.writer.start_tls(context)
        await client.say("EHLO client.example")
        assert await send(client, "bob@example.com", body="sealed") == "250 2.0.0 taken\r\n"
        assert [mail.recipients for mail in primary.messages] == [
            ("alice@example.com",),
            ("bob@example.com",),
        ]
        assert b"with ESMTPS" in primary.messages[1].content
        assert primary.connections == 1
        assert await stored(w.spool) == 0


@pytest.mark.parametrize("anew", ["RSET", "EHLO again.example", "HELO again.example"])
async def test_begun_anew_within_a_transaction(anew: str) -> None:
    """RSET or another EHLO forgets the recipients here and at the primary; the next ones count."""
    async with (
        ScriptedPeer() as primary,
        world(PROXY, {"example.com": primary.port}) as w,
        client_of(w) as client,
    ):
        await client.say("MAIL FROM:<old@b.example>")
        await client.say("RCPT TO:<alice@example.com>")
        assert (await client.say(anew)).startswith("250")
        assert (await client.say("RCPT TO:<bob@example.com>")).startswith("503")
        assert await send(client, "bob@example.com") == "250 2.0.0 taken\r\n"
        (mail,) = primary.messages
        assert (mail.sender, mail.recipients) == ("s@b.example", ("bob@example.com",))
        assert primary.commands.count("RSET") == 1


@pytest.mark.parametrize("how", [DROP, STALL, "421 4.3.2 going down", "500 what"], ids=str)
async def test_reset_that_fails(how: Answer) -> None:
    """A primary that fails at RSET costs one bounded wait: a new session, or the message is ours."""
    async with (
        ScriptedPeer({"RSET": how}) as primary,
        world(PROXY, {"example.com": primary.port}, reply_timeout=0.2) as w,
        client_of(w) as client,
    ):
        await client.say("MAIL FROM:<s@b.example>")
        await client.say("RCPT TO:<alice@example.com>")
        await client.say("RSET")
        async with asyncio.timeout(5):
            assert (await send(client, "bob@example.com")).startswith("250 2.0.0")
        assert all(mail.recipients == ("bob@example.com",) for mail in primary.messages)
        assert len(primary.messages) + await stored(w.spool) == 1


async def test_dropped_right_behind_the_go_ahead() -> None:
    """354 and gone: the message becomes ours before the client hears of anything."""
    async with (
        ScriptedPeer() as primary,
        world(PROXY, {"example.com": primary.port}) as w,
        client_of(w) as client,
    ):
        await client.say("MAIL FROM:<s@b.example>")
        await client.say("RCPT TO:<alice@example.com>")
        assert (await client.say("DATA")).startswith("354")
        await primary.wait_command("DATA")
        await primary.stop()
        assert (await client.say(b"mine\r\n.\r\n")).startswith("250 2.0.0 Ok: queued as")
        (body,) = await bodies(w.spool)
        assert body.endswith(b"\r\nmine\r\n")


class Full:
    """A domain that has all that it may have."""

    def refuses(self, domain: str, size_bytes: int) -> bool:
        return True

    def refuses_all(self, verdicts: Sequence[Verdict], size_bytes: int) -> bool:
        return True

    def accepted(self, verdicts: Sequence[Verdict], size_bytes: int) -> None:
        raise AssertionError("nothing is to be stored")


async def test_a_full_quota_is_no_matter_of_what_goes_through() -> None:
    """What the primary takes needs no room here; only what would become ours is refused."""
    async with (
        ScriptedPeer({".": ("250 2.0.0 taken", DROP)}) as primary,
        world(PROXY, {"example.com": primary.port}) as w,
    ):
        w.reception.quota = Full()
        async with client_of(w) as client:
            assert await send(client, "alice@example.com") == "250 2.0.0 taken\r\n"
            assert (await send(client, "alice@example.com")).startswith("452 4.3.1")
        await primary.stop()
        async with client_of(w) as client:
            assert (await send(client, "alice@example.com")).startswith("452 4.3.1")
        assert await stored(w.spool) == 0


class Asking:
    """Lists that ask the primary about everybody."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def find(self, domain: str, local_part: str, network: str = "") -> Awaitable[Found]:
        self.asked.append(local_part)

        async def later() -> Found:
            await asyncio.sleep(0)
            return Found(Finding.VOUCHED if local_part == "alice" else Finding.ABSENT)

        return later()


async def test_live_verification_beside() -> None:
    """While the primary answers for itself nobody asks it twice; where it cannot, the answer counts."""
    async with (
        ScriptedPeer() as primary,
        world(PROXY, {"example.com": primary.port}) as w,
    ):
        w.reception._directories = asking = Asking()
        async with client_of(w) as client:
            assert await send(client, "nobody@example.com") == "250 2.0.0 taken\r\n"
        assert asking.asked == []
        await primary.stop()
        async with client_of(w) as client:
            assert (await send(client, "nobody@example.com")).startswith("550 5.1.1")
            assert (await send(client, "alice@example.com")).startswith("250 2.0.0 Ok: queued")
        assert asking.asked == ["nobody", "alice"]
        await until(lambda: not w.gate._proxy._open)
