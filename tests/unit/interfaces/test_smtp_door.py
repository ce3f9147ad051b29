"""The SMTP door on real sockets: limits, time-outs, TLS, trouble with the disk."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
from pathlib import Path

import pytest
import trustme

from fakes.memory_spool import MemorySpool
from fakes.open_door import SlowSpool, first_session, open_door, stored, talk, until
from fakes.resolver import FakeResolver
from posthouse.errors import StorageBroken, StorageFull
from posthouse.interfaces.smtp_door import SmtpDoor
from posthouse.ports_spool import Selection
from posthouse.proto.server_events import ServerLimits
from posthouse.transports.tls import TlsServer as RealTlsServer


async def test_connection_limits() -> None:
    """One session too many, in all or from one network, hears 421 and the others go on."""
    async with (
        open_door(MemorySpool(), max_connections=5, max_connections_per_client=1) as (_, port),
        talk(port) as first,
    ):
        assert (await first.hear()).startswith("220 ")
        async with talk(port) as second:
            assert (await second.hear()).startswith("421 4.7.0 ")
            assert await second.reader.read() == b""
        assert (await first.say("QUIT")).startswith("221")
    async with open_door(MemorySpool(), max_connections=0) as (_, port), talk(port) as client:
        assert "too many connections" in await client.hear()


async def test_a_place_is_given_back() -> None:
    """A session that ended makes room for the next one."""
    async with open_door(MemorySpool(), max_connections=1) as (keeper, port):
        for _ in range(3):
            async with talk(port) as client:
                assert (await client.hear()).startswith("220 ")
            await until(lambda: not keeper.sessions)


async def test_an_ended_session_is_freed_at_once() -> None:
    """A session that stored a message and ended leaves no cycle to the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        async with open_door(MemorySpool()) as (keeper, port):
            async with talk(port) as client:
                await client.hear()
                await client.to_content()
                assert (await client.say(b"x\r\n.\r\n")).startswith("250")
                assert (await client.say("QUIT")).startswith("221")
            await until(lambda: not keeper.sessions)
            await until(lambda: not any(isinstance(one, SmtpDoor) for one in gc.get_objects()))
    finally:
        gc.enable()


async def test_idle_and_total_time() -> None:
    """An idle session and one that lasts too long end with 421."""
    async with open_door(MemorySpool(), idle_timeout=0.0) as (_, port), talk(port) as client:
        await client.hear()
        assert (await client.hear()).startswith("421 4.4.2 ")
    async with open_door(MemorySpool(), total_timeout=0.0) as (_, port), talk(port) as client:
        await client.hear()
        assert "time limit" in await client.hear()


async def test_no_room_is_said_at_mail_and_passes() -> None:
    """A full disk is 452 before DATA, and intake comes back by itself."""
    spool = MemorySpool()
    async with open_door(spool) as (_, port), talk(port) as client:
        await client.hear()
        await client.say("EHLO c")
        spool.trouble = StorageFull("no space left")
        assert await client.say("MAIL FROM:<a@b.example>") == (
            "452 4.3.1 Insufficient system storage\r\n"
        )
        spool.trouble = None
        assert (await client.say("MAIL FROM:<a@b.example>")).startswith("250")


async def test_failing_disk_after_data_is_temporary() -> None:
    """When the commit fails the client hears 451, never 250 and never 5xx; the session goes on."""
    spool = MemorySpool()
    async with open_door(spool) as (_, port), talk(port) as client:
        await client.hear()
        await client.to_content()
        spool.trouble = StorageBroken("fsync failed")
        assert await client.say(b"x\r\n.\r\n") == (
            "451 4.3.0 Message could not be stored, try again later\r\n"
        )
        spool.trouble = None
        assert await stored(spool) == 0
        assert (await client.say("MAIL FROM:<a@b.example>")).startswith("250")
        await client.say("RCPT TO:<alice@example.com>")
        spool.trouble = StorageBroken("cannot open")
        assert (await client.say("DATA")).startswith("452 4.3.1")
        assert (await client.say(b"BDAT 3 LAST\r\n" + b"x\r\n")).startswith("503")


async def test_no_250_before_the_commit() -> None:
    """The final reply waits for the disk, and so does everything pipelined behind it."""
    spool = SlowSpool()
    async with open_door(spool) as (keeper, port), talk(port) as client:
        await client.hear()
        await client.to_content()
        client.writer.write(b"x\r\n.\r\nNOOP\r\nQUIT\r\n")
        session = first_session(keeper)
        await until(lambda: session.busy)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.05)
        spool.go.set()
        assert (await client.hear()).startswith("250 2.0.0 Ok: queued as ")
        assert (await client.hear()).startswith("250 2.0.0 Ok")
        assert (await client.hear()).startswith("221")


async def test_half_closed_client_hears_the_end() -> None:
    """A client that shuts its sending side still gets the reply to its message."""
    spool = SlowSpool()
    async with open_door(spool) as (keeper, port), talk(port) as client:
        await client.hear()
        await client.to_content()
        client.writer.write(b"x\r\n.\r\n")
        client.writer.write_eof()
        session = first_session(keeper)
        await until(lambda: session._unread)
        spool.go.set()
        assert b"250 2.0.0 Ok: queued as" in await client.reader.read()


async def test_vanished_client_leaves_nothing() -> None:
    """A client that goes away inside its message leaves no message and no session."""
    spool = MemorySpool()
    async with open_door(spool) as (keeper, port):
        async with talk(port) as client:
            await client.hear()
            await client.to_content()
            client.writer.write(b"half a message\r\n")
            await client.writer.drain()
        await until(lambda: not keeper.sessions)
        assert await stored(spool) == 0


async def test_client_that_does_not_read_is_not_read() -> None:
    """Replies do not pile up for a client that sends and never reads."""
    limits = ServerLimits(hostname="mx2.example.net", max_idle_commands=10**9)
    async with open_door(MemorySpool(), limits=limits) as (keeper, port), talk(port) as client:
        await client.hear()
        session = first_session(keeper)

        async def flood() -> None:
            while True:
                client.writer.write(b"HELP\r\n" * 20000)
                await client.writer.drain()

        task = asyncio.create_task(flood())
        await until(lambda: session._writing_paused and session._stalled)
        transport = session._transport
        assert transport is not None
        size = transport.get_write_buffer_size()
        assert size < 1 << 20
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        client.writer.transport.abort()


async def test_many_pipelined_commands_let_others_in() -> None:
    """A long pipelined group is answered whole, in order, in turns."""
    limits = ServerLimits(hostname="mx2.example.net", max_idle_commands=10**9)
    async with open_door(MemorySpool(), limits=limits) as (_, port), talk(port) as client:
        await client.hear()
        client.writer.write(b"NOOP\r\n" * 5000 + b"QUIT\r\n")
        data = await client.reader.read(-1)
        assert data.count(b"250 2.0.0 Ok\r\n") == 5000
        assert data.endswith(b"221 2.0.0 Bye\r\n")


async def test_leaving_waits_for_messages() -> None:
    """At the end idle sessions hear 421 at once; one inside a message may finish it first."""
    spool = MemorySpool()
    async with open_door(spool) as (keeper, port), talk(port) as idle, talk(port) as busy:
        await idle.hear()
        await busy.hear()
        await busy.to_content()
        leaving = asyncio.create_task(keeper.leave(10))
        assert (await idle.hear()).startswith("421 4.3.2 ")
        assert (await busy.say(b"x\r\n.\r\n")).startswith("250 2.0.0 Ok: queued")
        assert (await busy.hear()).startswith("421 4.3.2 ")
        await leaving
        async with talk(port) as late:
            assert (await late.hear()).startswith("421 4.3.2 ")
    assert await stored(spool) == 1


@pytest.fixture(name="tls")
def make_tls(tmp_path: Path) -> tuple[RealTlsServer, ssl.SSLContext]:
    authority = trustme.CA()
    issued = authority.issue_cert("mx2.example.net")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return RealTlsServer(chain, key), context


async def test_starttls(tls: tuple[RealTlsServer, ssl.SSLContext]) -> None:
    """STARTTLS is offered once, forgets what was said in clear, and carries mail as ESMTPS."""
    server, context = tls
    limits = ServerLimits(hostname="mx2.example.net", offer_starttls=True)
    spool = MemorySpool()
    async with open_door(spool, limits=limits, tls=server) as (_, port), talk(port) as client:
        await client.hear()
        assert "250-STARTTLS\r\n" in await client.say("EHLO c")
        await client.say("MAIL FROM:<a@b.example>")
        assert (await client.say("STARTTLS")).startswith("503")
        await client.say("RSET")
        assert (await client.say("STARTTLS")).startswith("220")
        await client.writer.start_tls(context, server_hostname="mx2.example.net")
        assert (await client.say("MAIL FROM:<a@b.example>")).startswith("503")
        assert "STARTTLS" not in await client.say("EHLO c")
        assert (await client.say("STARTTLS")).startswith("503")
        await client.to_content()
        body = b"".join(b"line %d\r\n" % number for number in range(50_000))
        assert (await client.say(body + b".\r\n")).startswith("250")
        assert (await client.say("QUIT")).startswith("221")
    (message,) = await spool.list_messages(Selection(), after=None, limit=2)
    assert message.client.protocol == "ESMTPS"
    assert message.client.tls.startswith("TLSv1.3 ")
    stored_body = await (await spool.open_body(message.queue_id)).read(1 << 24)
    assert stored_body.endswith(body)
    assert b"(using TLSv1.3 with cipher" in stored_body[:300]


async def test_starttls_injection(tls: tuple[RealTlsServer, ssl.SSLContext]) -> None:
    """Commands sent in clear behind STARTTLS are dropped, not obeyed inside TLS (CVE-2011-0411)."""
    server, context = tls
    limits = ServerLimits(hostname="mx2.example.net", offer_starttls=True)
    async with (
        open_door(MemorySpool(), limits=limits, tls=server) as (_, port),
        talk(port) as client,
    ):
        await client.hear()
        await client.say("EHLO c")
        assert (await client.say(b"STARTTLS\r\nEHLO evil\r\nNOOP\r\n")).startswith("220")
        await client.writer.start_tls(context, server_hostname="mx2.example.net")
        assert (await client.say("MAIL FROM:<a@b.example>")).startswith("503")


async def test_broken_handshake_ends_the_session(
    tls: tuple[RealTlsServer, ssl.SSLContext],
) -> None:
    """Octets that are no TLS end this session and no other."""
    server, _ = tls
    limits = ServerLimits(hostname="mx2.example.net", offer_starttls=True)
    async with (
        open_door(MemorySpool(), limits=limits, tls=server) as (keeper, port),
        talk(port) as client,
    ):
        await client.hear()
        await client.say("EHLO c")
        await client.say("STARTTLS")
        client.writer.write(b"EHLO this is no handshake at all\r\n" * 3)
        await client.reader.read()
        await until(lambda: not keeper.sessions)
        async with talk(port) as other:
            assert (await other.hear()).startswith("220")


STARTTLS_LIMITS = ServerLimits(hostname="mx2.example.net", offer_starttls=True)


async def test_silent_handshake_stops_no_clock(
    tls: tuple[RealTlsServer, ssl.SSLContext],
) -> None:
    """A client silent inside its handshake is closed in time, and so is everyone after it."""
    async with open_door(MemorySpool(), limits=STARTTLS_LIMITS, tls=tls[0], total_timeout=0.5) as (
        _,
        port,
    ):
        async with talk(port) as client:
            await client.hear()
            assert (await client.say("STARTTLS")).startswith("220")
            assert await client.reader.read() == b""
        async with talk(port) as client:
            await client.hear()
            assert "time limit" in await client.hear()


async def test_leaving_during_a_handshake(tls: tuple[RealTlsServer, ssl.SSLContext]) -> None:
    """A session inside its handshake does not keep the worker, nor the others' 421, back."""
    async with (
        open_door(MemorySpool(), limits=STARTTLS_LIMITS, tls=tls[0]) as (keeper, port),
        talk(port) as client,
        talk(port) as other,
    ):
        await other.hear()
        await client.hear()
        assert (await client.say("STARTTLS")).startswith("220")
        leaving = asyncio.create_task(keeper.leave(10))
        assert await client.reader.read() == b""
        assert (await other.hear()).startswith("421 4.3.2")
        await leaving
        assert not keeper.sessions


async def test_one_failing_session_stops_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that cannot be ended in order is torn down; the next one is still timed."""

    def fail(self: SmtpDoor, why: str) -> None:
        monkeypatch.undo()
        raise RuntimeError(why)

    async with open_door(MemorySpool(), idle_timeout=0.0) as (_, port):
        monkeypatch.setattr(SmtpDoor, "cut", fail)
        async with talk(port) as client:
            await client.hear()
            with contextlib.suppress(ConnectionError):
                assert await client.reader.read() == b""
        async with talk(port) as client:
            await client.hear()
            assert (await client.hear()).startswith("421 4.4.2 ")


async def test_certificate_taken_away(tls: tuple[RealTlsServer, ssl.SSLContext]) -> None:
    """A session that was offered STARTTLS gets it; one begun without a certificate is not."""
    server, context = tls
    async with (
        open_door(MemorySpool(), limits=STARTTLS_LIMITS, tls=server) as (keeper, port),
        talk(port) as client,
        talk(port) as late,
    ):
        await client.hear()
        keeper.tls = None
        assert (await client.say("STARTTLS")).startswith("220")
        await client.writer.start_tls(context, server_hostname="mx2.example.net")
        assert (await client.say("EHLO c")).startswith("250")
        await late.hear()
    async with (
        open_door(MemorySpool(), limits=STARTTLS_LIMITS, tls=None) as (_, port),
        talk(port) as client,
    ):
        await client.hear()
        assert "STARTTLS" not in await client.say("EHLO c")
        assert (await client.say("STARTTLS")).startswith("502")


async def test_last_commands_with_the_close_notify(
    tls: tuple[RealTlsServer, ssl.SSLContext],
) -> None:
    """A message that comes in one piece with the close_notify is stored and answered."""
    server, context = tls
    spool = MemorySpool()
    async with (
        open_door(spool, limits=STARTTLS_LIMITS, tls=server) as (_, port),
        talk(port) as client,
    ):
        await client.hear()
        await client.say("STARTTLS")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        shaken = context.wrap_bio(incoming, outgoing, server_hostname="mx2.example.net")
        while True:
            try:
                shaken.do_handshake()
                break
            except ssl.SSLWantReadError:
                client.writer.write(outgoing.read())
                incoming.write(await client.reader.read(1 << 16))
        shaken.write(
            b"EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<alice@example.com>\r\n"
            b"DATA\r\nx\r\n.\r\n"
        )
        with contextlib.suppress(ssl.SSLWantReadError):
            shaken.unwrap()
        client.writer.write(outgoing.read())
        incoming.write(await client.reader.read())
        shaken.read(1 << 16)  # up to the 354
        assert b"queued as" in shaken.read(1 << 16)
    assert await stored(spool) == 1


async def test_client_that_never_reads_is_torn_down() -> None:
    """A time limit ends a session whose replies nobody fetches, without waiting for them."""
    limits = ServerLimits(hostname="mx2.example.net", max_idle_commands=10**9)
    async with (
        open_door(MemorySpool(), limits=limits, total_timeout=0.5) as (keeper, port),
        talk(port) as client,
    ):
        await client.hear()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        session = first_session(keeper)
        with contextlib.suppress(ConnectionError):
            while not session._writing_paused and keeper.sessions:
                client.writer.write(b"HELP\r\n" * 20000)
                await asyncio.wait({asyncio.ensure_future(client.writer.drain())}, timeout=0.01)
        await until(lambda: not keeper.sessions)
        client.writer.transport.abort()


async def test_closing_is_bounded() -> None:
    """A closed session whose last octets nobody fetches is torn down some seconds later."""
    async with open_door(MemorySpool()) as (keeper, port), talk(port) as client:
        await client.hear()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        session = first_session(keeper)
        assert session._transport is not None
        session._transport.write(b"x" * (1 << 25))
        session._close()
        now = asyncio.get_running_loop().time()
        session.check_time(now)
        assert session._transport.get_write_buffer_size()
        session.check_time(now + 60)
        await until(lambda: not keeper.sessions)
        client.writer.transport.abort()


async def test_end_of_the_grace_waits_for_the_disk() -> None:
    """A message being stored when the grace ends is answered 250, and the session then closed."""
    spool = SlowSpool()
    async with open_door(spool) as (keeper, port), talk(port) as client:
        await client.hear()
        await client.to_content()
        client.writer.write(b"x\r\n.\r\nMAIL FROM:<a@b.example>\r\n")
        session = first_session(keeper)
        await until(lambda: session.transactions.committing)
        leaving = asyncio.create_task(keeper.leave(0))
        await until(lambda: session._parting)
        spool.go.set()
        assert (await client.hear()).startswith("250 2.0.0 Ok: queued as ")
        assert (await client.hear()).startswith("421 4.3.2")
        assert await client.reader.read() == b""
        await leaving
    assert await stored(spool) == 1


async def test_no_turn_while_an_answer_is_awaited() -> None:
    """A client that reads again while its message is being stored hears nothing early."""
    spool = SlowSpool()
    async with open_door(spool) as (keeper, port), talk(port) as client:
        await client.hear()
        await client.to_content()
        client.writer.write(b"x\r\n.\r\nNOOP\r\n")
        session = first_session(keeper)
        await until(lambda: session.transactions.committing)
        session.pause_writing()
        session.resume_writing()
        session._next_turn()
        await until(lambda: session._turn is None)
        assert session.transactions.committing
        assert session._session.buffered_bytes == len(b"NOOP\r\n")
        spool.go.set()
        assert (await client.hear()).startswith("250 2.0.0 Ok: queued as ")
        assert (await client.hear()).startswith("250 2.0.0 Ok")


async def test_reverse_name_is_in_the_trace() -> None:
    """MAIL waits for the reverse name, and the trace field shows it."""
    resolver = FakeResolver(
        names={"127.0.0.1": "client.example"}, addresses={"client.example": ["127.0.0.1"]}
    )
    spool = MemorySpool()
    async with open_door(spool, resolver=resolver) as (_, port), talk(port) as client:
        await client.hear()
        await client.to_content()
        assert (await client.say(b"x\r\n.\r\n")).startswith("250")
    (message,) = await spool.list_messages(Selection(), after=None, limit=2)
    assert message.client.name == "client.example"
    text = await (await spool.open_body(message.queue_id)).read(1 << 16)
    assert text.startswith(b"Received: from c (client.example [127.0.0.1])\r\n")
