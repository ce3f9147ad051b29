"""A conversation with a primary, one command at a time, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import pytest
import trustme

from fakes.raw_peer import raw_peer
from fakes.scripted_peer import DRIP, DROP, RESET, STALL, Answer, ScriptedPeer
from posthouse.errors import NextHopFailure
from posthouse.mail.envelope import Recipient
from posthouse.ports_relay import Target
from posthouse.transports.proxy_out import ProxyConnector, ProxySession
from posthouse.transports.smtp_out import OutSettings
from posthouse.transports.tls import TlsMode

CA = trustme.CA()
ALICE = Recipient(address="alice@example.com", domain="example.com", notify="NEVER")


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("peer.example").configure_cert(context)
    return context


@contextlib.asynccontextmanager
async def connecting(
    port: int, *, tls: TlsMode = "opportunistic", seconds: float = 5
) -> AsyncIterator[ProxySession]:
    settings = OutSettings(
        helo_name="mx2.example.net",
        tls=tls,
        connect_timeout=seconds,
        greeting_timeout=seconds,
        command_timeout=seconds,
        data_block_timeout=seconds,
        final_dot_timeout=seconds,
    )
    connector = ProxyConnector(settings)
    try:
        yield await connector.open(Target(host="peer.example", address="127.0.0.1", port=port))
    finally:
        connector.close()


async def say_mail(session: ProxySession) -> int:
    reply = await session.mail(
        "s@example.org", size=900, body="8BITMIME", smtputf8=True, ret="HDRS", envid="x1"
    )
    return reply.code


@pytest.mark.parametrize("secure", [False, True])
async def test_a_whole_conversation(secure: bool) -> None:
    """Each command gets the peer's own reply; content arrives octet for octet; QUIT ends it."""
    offers = ("SIZE 1000", "8BITMIME", "SMTPUTF8", "DSN")
    answers: dict[str, Answer] = {
        "RCPT:bob@example.com": "550 5.1.1 no bob here",
        ".": ("250 2.0.0 taken as 7", "554 5.7.1 not that"),
    }
    tls = server_context() if secure else None
    async with (
        ScriptedPeer(answers, extensions=offers, tls=tls) as peer,
        connecting(peer.port) as session,
    ):
        assert session.smtputf8
        assert session.size_limit == 1000
        assert await say_mail(session) == 250
        assert (await session.rcpt(ALICE)).code == 250
        bob = await session.rcpt(Recipient(address="bob@example.com", domain="example.com"))
        assert (bob.code, bob.text) == (550, "5.1.1 no bob here")
        assert (await session.data()).code == 354
        for piece in (b".first\r", b"\n.", b"second\r\n..third\r\nlast"):
            session.write(piece)
        await session.drain()
        assert (await session.end()).text == "2.0.0 taken as 7"
        (mail,) = await peer.wait_messages(1)
        assert mail.content == b".first\r\n.second\r\n..third\r\nlast\r\n"
        assert mail.recipients == ("alice@example.com",)
        assert mail.rcpt_parameters == ("NOTIFY=NEVER",)
        assert mail.mail_parameters == "SIZE=900 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=x1"
        assert mail.tls is secure
        await session.reset()
        assert await say_mail(session) == 250
        await session.rcpt(ALICE)
        await session.data()
        session.write(b"x\r\n")
        assert (await session.end()).code == 554
        session.close()
        await peer.wait_command("QUIT")


async def test_close_within_content_never_ends_the_message() -> None:
    """A message torn off by us is not delivered by half."""
    async with ScriptedPeer() as peer, connecting(peer.port) as session:
        await say_mail(session)
        await session.rcpt(ALICE)
        await session.data()
        session.write(b"half\r\n")
        session.close()
        with pytest.raises(NextHopFailure):
            await session.end()
        await peer.stop()
        assert peer.messages == []


@pytest.mark.parametrize(
    ("answers", "stage"),
    [
        pytest.param({"connect": "554 no"}, "greeting", id="greets 554"),
        pytest.param({"connect": DROP}, "session", id="closes at once"),
        pytest.param({"connect": STALL}, "session", id="says nothing"),
        pytest.param({"EHLO": STALL}, "session", id="stalls at EHLO"),
        pytest.param({"connect": b"what?\r\n"}, "session", id="garbage"),
        pytest.param({"connect": DRIP(b"220-x\r\n")}, "session", id="greeting without end"),
        pytest.param({"EHLO": "250 mx2.example.net"}, "ehlo", id="is ourselves"),
    ],
)
async def test_peers_that_cannot_be_talked_to(answers: dict[str, Answer], stage: str) -> None:
    """Opening fails with the stage, and in time."""
    async with ScriptedPeer(answers) as peer:
        with pytest.raises(NextHopFailure) as caught:
            async with connecting(peer.port, seconds=0.3):
                pass
        assert caught.value.stage == stage


@pytest.mark.parametrize("at", ["MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize("answer", [DROP, RESET, STALL, "421 4.3.2 bye", b"nonsense\r\n"], ids=str)
async def test_failing_midway(at: str, answer: Answer) -> None:
    """Whatever happens on the way is a failure for whoever waits, in time, and for good."""
    async with ScriptedPeer({at: answer}) as peer, connecting(peer.port, seconds=0.3) as session:
        with pytest.raises(NextHopFailure):
            await say_mail(session)
            await session.rcpt(ALICE)
            await session.data()
            session.write(b"x\r\n" * 1000)
            await session.drain()
            await session.end()
        assert session.write(b"more")
        await session.drain()
        with pytest.raises(NextHopFailure):
            await session.end()


async def test_a_reply_nobody_asked_for_ends_it() -> None:
    """A peer that talks out of turn is not believed afterwards."""
    answers: dict[str, Answer] = {"MAIL": "250 ok\r\n250 and this recipient, too"}
    async with ScriptedPeer(answers) as peer, connecting(peer.port) as session:
        await say_mail(session)
        with pytest.raises(NextHopFailure):
            await session.rcpt(ALICE)


async def test_peer_that_does_not_read() -> None:
    """Backpressure is told, and ends in a failure, not in memory."""

    over = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 x\r\n")
        for reply in (b"250 x", b"250 ok", b"250 ok", b"354 go"):
            await reader.readline()
            writer.write(reply + b"\r\n")
        await over.wait()

    async with raw_peer(silent) as port, connecting(port, seconds=0.5) as session:
        await say_mail(session)
        await session.rcpt(ALICE)
        await session.data()
        written = 0
        while session.write(b"x" * 65536) and written < 1000:
            written += 1
        assert written < 1000
        await session.drain()
        with pytest.raises(NextHopFailure, match="read"):
            await session.end()
        over.set()


async def test_starttls_injection() -> None:
    """Octets in clear behind the 220 to STARTTLS are an attack: nothing of them is believed."""
    answers: dict[str, Answer] = {
        "STARTTLS": b"220 go\r\n250-peer\r\n250 SMTPUTF8\r\n",
        "EHLO": "250-peer\r\n250 STARTTLS",
    }
    async with ScriptedPeer(answers) as peer:
        with pytest.raises(NextHopFailure, match="clear"):
            async with connecting(peer.port, tls="required"):
                pass


@pytest.mark.parametrize(("tls", "works"), [("opportunistic", True), ("required", False)])
async def test_handshake_that_fails(tls: TlsMode, works: bool) -> None:
    """Opportunistic TLS goes on in clear, required TLS does not."""
    answers: dict[str, Answer] = {
        "STARTTLS": "220 go",
        "EHLO": "250-peer\r\n250 STARTTLS",
    }
    async with ScriptedPeer(answers) as peer:  # says 220 and goes on in clear text
        if works:
            async with connecting(peer.port, tls=tls, seconds=1) as session:
                assert await say_mail(session) == 250
            return
        with pytest.raises(NextHopFailure):
            async with connecting(peer.port, tls=tls, seconds=1):
                pass
