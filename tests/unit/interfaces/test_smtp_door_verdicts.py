"""Verdicts that take their time, who hears of commits, and who stands between door and letter."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable
from pathlib import Path

import pytest

from fakes.directory import ANSWERS
from fakes.memory_spool import MemorySpool
from fakes.open_door import SlowSpool, Talker, first_session, open_door, stored, talk, until
from fakes.server_owner import DictDirectories, make_reception
from posthouse import observe
from posthouse.domain.finding import Answer, Finding
from posthouse.domain.verdict import UNVOUCHED, Verdict, WhenUnknown
from posthouse.errors import StorageBroken
from posthouse.mail.address import Mailbox
from posthouse.mail.envelope import Client, Envelope
from posthouse.mail.reply import Reply
from posthouse.ports_session import Accepted, OpenLetter, SessionFacts
from posthouse.ports_spool import Selection, State
from posthouse.proto.server_events import ServerLimits
from posthouse.services.reception import Reception


class HeldDirectories(DictDirectories):
    """Local parts that begin with "slow" are answered when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, asyncio.Future[Answer]] = {}

    def find(  # type: ignore[override]
        self, domain: str, local_part: str, network: str = ""
    ) -> Answer | Awaitable[Answer]:
        if not local_part.startswith("slow"):
            return super().find(domain, local_part)
        return self.asked.setdefault(local_part, asyncio.get_running_loop().create_future())


def make_held(spool: MemorySpool) -> tuple[HeldDirectories, Reception]:
    directories = HeldDirectories()
    return directories, make_reception(spool, directories=directories)


async def to_rcpt(client: Talker) -> None:
    assert (await client.hear()).startswith("220")
    assert (await client.say("EHLO c.example")).startswith("250")
    assert (await client.say("MAIL FROM:<a@b.example>")).startswith("250")


def vanish(client: Talker) -> None:
    """Reset the connection, as a client that died does; a mere FIN may be a half-close."""
    raw: socket.socket = client.writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


async def test_pipelined_replies_keep_their_order() -> None:
    """Recipients behind one that is still being checked are answered after it."""
    spool = MemorySpool()
    directories, reception = make_held(spool)
    async with open_door(spool, reception=reception) as (_, port), talk(port) as client:
        await to_rcpt(client)
        client.writer.write(
            b"RCPT TO:<alice@example.com>\r\nRCPT TO:<slow1@example.com>\r\n"
            b"RCPT TO:<nobody@example.com>\r\nRCPT TO:<slow2@example.com>\r\n"
            b"RCPT TO:<bob@example.com>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n"
        )
        assert (await client.hear()).startswith("250 2.1.5")  # what was due is not kept back
        await until(lambda: "slow1" in directories.asked)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.05)
        assert list(directories.asked) == ["slow1"]
        directories.asked["slow1"].set_result(ANSWERS[Finding.VOUCHED])
        assert (await client.hear()).startswith("250 2.1.5")
        assert (await client.hear()).startswith("550 5.1.1 <nobody@")
        await until(lambda: "slow2" in directories.asked)
        directories.asked["slow2"].set_result(ANSWERS[Finding.ABSENT])
        assert (await client.hear()).startswith("550 5.1.1 <slow2@")
        assert (await client.hear()).startswith("250 2.1.5")
        assert (await client.hear()).startswith("354")
        assert (await client.hear()).startswith("250 2.0.0 Ok: queued as")
        assert (await client.hear()).startswith("221")
    (message,) = await spool.list_messages(Selection(), after=None, limit=2)
    assert [row.address for row in message.recipients] == [
        "alice@example.com",
        "slow1@example.com",
        "bob@example.com",
    ]


async def test_client_leaves_while_it_waits() -> None:
    """A verdict nobody waits for any more is cancelled, and the session is gone."""
    spool = MemorySpool()
    directories, reception = make_held(spool)
    async with open_door(spool, reception=reception) as (keeper, port), talk(port) as client:
        await to_rcpt(client)
        before = len(asyncio.all_tasks())
        client.writer.write(b"RCPT TO:<slow@example.com>\r\nDATA\r\n")
        await until(lambda: "slow" in directories.asked)
        vanish(client)
        await until(lambda: not keeper.sessions)
        await until(directories.asked["slow"].cancelled)
        await until(lambda: len(asyncio.all_tasks()) < before + 1)


async def test_half_closed_client_hears_a_late_verdict() -> None:
    """A client that shut its sending side still gets every reply."""
    spool = MemorySpool()
    directories, reception = make_held(spool)
    async with open_door(spool, reception=reception) as (keeper, port), talk(port) as client:
        await to_rcpt(client)
        client.writer.write(b"RCPT TO:<slow@example.com>\r\nDATA\r\nx\r\n.\r\n")
        client.writer.write_eof()
        session = first_session(keeper)
        await until(lambda: session._unread)
        directories.asked["slow"].set_result(ANSWERS[Finding.VOUCHED])
        assert b"queued as" in await client.reader.read()
    assert await stored(spool) == 1


async def test_failing_verdict_is_our_fault(tmp_path: Path) -> None:
    """A check that fails is 451 4.3.0, goes into the log, and the session goes on."""
    spool = MemorySpool()
    directories, reception = make_held(spool)
    observe.configure(to=str(tmp_path / "log"))
    async with open_door(spool, reception=reception) as (_, port), talk(port) as client:
        await to_rcpt(client)
        client.writer.write(b"RCPT TO:<slow@example.com>\r\n")
        await until(lambda: "slow" in directories.asked)
        directories.asked["slow"].set_exception(StorageBroken("no digest"))
        assert (await client.hear()).startswith("451 4.3.0 ")
        assert (await client.say("RCPT TO:<alice@example.com>")).startswith("250")
    observe.configure()
    text = (tmp_path / "log").read_text()
    assert "error: no verdict for <slow@example.com>: StorageBroken: " in text
    assert "reject: RCPT from unknown[127.0.0.1]: 451 4.3.0" in text


async def test_endless_verdict_is_cut_short() -> None:
    """A check that takes too long is cancelled and answered 451; an idle time-out does not count."""
    spool = MemorySpool()
    directories, reception = make_held(spool)
    async with (
        open_door(spool, reception=reception, verdict_timeout=10.0) as (keeper, port),
        talk(port) as client,
    ):
        await to_rcpt(client)
        client.writer.write(b"RCPT TO:<slow@example.com>\r\n")
        session = first_session(keeper)
        await until(lambda: session.transactions.judging is not None)
        now = asyncio.get_running_loop().time()
        keeper.reload(
            keeper.settings.__class__(
                limits=keeper.settings.limits, idle_timeout=0.0, verdict_timeout=10.0
            ),
            resolver=None,
        )
        session.check_time(now + 5)
        assert not directories.asked["slow"].cancelled()
        session.check_time(now + 11)
        assert (await client.hear()).startswith("451 4.3.0 ")
        assert directories.asked["slow"].cancelled()


@pytest.mark.parametrize("how", ["total time", "shutdown"])
async def test_session_ended_while_it_waits(how: str) -> None:
    """The end of a session's time, or of the worker's, is one 421 and nothing after it."""
    spool = MemorySpool()
    directories, reception = make_held(spool)
    async with open_door(spool, reception=reception) as (keeper, port), talk(port) as client:
        await to_rcpt(client)
        client.writer.write(b"RCPT TO:<slow@example.com>\r\nNOOP\r\n")
        session = first_session(keeper)
        await until(lambda: session.transactions.judging is not None)
        if how == "shutdown":
            await keeper.leave(0)
        else:
            session.check_time(asyncio.get_running_loop().time() + 1e6)
        assert directories.asked["slow"].cancelled() or session.transactions.judging is not None
        assert (await client.hear()).startswith("421 4.")
        assert await client.reader.read() == b""
        await until(directories.asked["slow"].cancelled)
        await until(lambda: not keeper.sessions)


async def test_sending_ahead_is_bounded() -> None:
    """While a verdict is awaited a client may not fill our memory."""
    spool = MemorySpool()
    directories, reception = make_held(spool)
    limits = ServerLimits(hostname="mx2.example.net", max_idle_commands=10**9)
    async with (
        open_door(spool, reception=reception, limits=limits) as (keeper, port),
        talk(port) as client,
    ):
        await to_rcpt(client)
        client.writer.write(b"RCPT TO:<slow@example.com>\r\n" + b"NOOP\r\n" * 200_000)
        session = first_session(keeper)
        await until(lambda: session._stalled)
        assert session._session.buffered_bytes < 1 << 20
        assert session.transactions.judging is not None
        directories.asked["slow"].set_result(ANSWERS[Finding.VOUCHED])
        assert (await client.hear()).startswith("250 2.1.5")
        assert (await client.hear()).startswith("250 2.0.0")
        await until(lambda: not session._stalled)
        client.writer.transport.abort()


class ByName(Reception):
    """Vouches for everybody by name, as a roster does, and keeps what it was told of sessions."""

    facts: SessionFacts

    def judge_recipient(
        self, mailbox: Mailbox, session: SessionFacts
    ) -> Verdict | Awaitable[Verdict]:
        self.facts = session
        session.scratch["asked"] = session.scratch.get("asked", 0) + 1
        return Verdict(Reply(250, "2.1.5", "Ok"), mailbox.domain, mailbox.spelled.lower())


def make_by_name(spool: MemorySpool) -> ByName:
    plain = make_reception(spool)
    return ByName(
        plain._settings, spool=spool, directories=DictDirectories(), clock_us=plain._clock_us
    )


async def test_facts_of_a_session() -> None:
    """A verdict sees who asks, in which transaction, and finds what it wrote down before."""
    reception = make_by_name(MemorySpool())
    async with open_door(MemorySpool(), reception=reception) as (_, port), talk(port) as client:
        await to_rcpt(client)
        await client.say("RCPT TO:<alice@example.com>")
        facts = reception.facts
        assert (facts.address, facts.network) == ("127.0.0.1", "127.0.0")
        assert (facts.name, facts.helo, facts.tls) == ("unknown", "c.example", "")
        assert (facts.identity, facts.sender) == ("", "a@b.example")
        await client.say("RSET")
        await client.say("MAIL FROM:<>")
        await client.say("RCPT TO:<alice@example.com>")
        assert reception.facts is facts
        assert facts.sender == ""
        assert facts.scratch == {"asked": 2}


async def test_hooks_hear_of_commits() -> None:
    """Who asked to hears of every durable message with its verdicts, whoever fails before."""
    spool = MemorySpool()
    reception = make_by_name(spool)
    heard: list[Accepted] = []

    def fail(_accepted: Accepted) -> None:
        raise ValueError("a hook that fails")

    reception.after_commit += [fail, heard.append]
    async with open_door(spool, reception=reception) as (_, port), talk(port) as client:
        await to_rcpt(client)
        await client.say("RCPT TO:<Carol@example.com>")
        await client.say("RSET")
        await client.say("MAIL FROM:<a@b.example>")
        await client.say("RCPT TO:<Alice@example.com>")
        await client.say("RCPT TO:<BOB@example.com>")
        await client.say("DATA")
        assert (await client.say(b"x\r\n.\r\n")).startswith("250 2.0.0 Ok: queued as ")
        spool.trouble = StorageBroken("no")
        assert (await client.say("MAIL FROM:<a@b.example>")).startswith("452")
    (accepted,) = heard
    assert [r.address for r in accepted.envelope.recipients] == [
        "Alice@example.com",
        "BOB@example.com",
    ]
    assert [v.canonical for v in accepted.verdicts] == ["alice@example.com", "bob@example.com"]
    (message,) = await spool.list_messages(Selection(), after=None, limit=2)
    assert message.queue_id == accepted.queue_id


async def test_hooks_hear_when_the_client_has_gone() -> None:
    """A message whose client left during the commit is told of too: it is durable."""
    spool = SlowSpool()
    reception = make_by_name(spool)
    heard: list[Accepted] = []
    reception.after_commit.append(heard.append)
    async with open_door(spool, reception=reception) as (keeper, port):
        async with talk(port) as client:
            await client.hear()
            await client.to_content()
            client.writer.write(b"x\r\n.\r\n")
            session = first_session(keeper)
            await until(lambda: session.transactions.committing)
            vanish(client)
        await until(lambda: not keeper.sessions)
        assert not heard
        spool.go.set()
        await until(lambda: bool(heard))


class Tap:
    """Sees the content go by and has the last word."""

    def __init__(self, inner: OpenLetter, envelope: Envelope, facts: SessionFacts) -> None:
        self.inner = inner
        self.queue_id, self.trace = inner.queue_id, inner.trace
        self.seen: list[bytes | str] = [envelope.sender, facts.helo]

    def write(self, data: bytes) -> bool:
        self.seen.append(data)
        return self.inner.write(data)

    async def drain(self) -> None:
        await self.inner.drain()

    def discard(self) -> None:
        self.inner.discard()

    def refusal(self) -> Reply | None:
        return self.inner.refusal()

    async def commit(self) -> None:
        self.inner.discard()

    def accepted(self) -> Reply:
        return Reply(554, "5.7.1", "The primary does not want it")


async def test_who_stands_between() -> None:
    """What wraps a letter sees its content, may keep it from the spool, and gives the reply."""
    spool = MemorySpool()
    reception = make_reception(spool)
    taps: list[Tap] = []

    def wrap(
        inner: OpenLetter, envelope: Envelope, _client: Client, facts: SessionFacts
    ) -> OpenLetter:
        taps.append(Tap(inner, envelope, facts))
        return taps[-1]

    reception.wrap_letter = wrap
    async with open_door(spool, reception=reception) as (keeper, port), talk(port) as client:
        await client.hear()
        await client.to_content()
        assert await client.say(b"x\r\n.\r\n") == "554 5.7.1 The primary does not want it\r\n"
        assert (await client.say("MAIL FROM:<a@b.example>")).startswith("250")
        assert first_session(keeper).transactions.messages == 0
    assert taps[0].seen == ["a@b.example", "c", b"x\r\n"]
    assert await stored(spool) == 0


async def test_a_client_that_goes_on_guessing_is_sent_away() -> None:
    """Whose network has guessed too much hears 451 three times, then one 421 and the end."""
    spool = MemorySpool()
    directories, reception = make_held(spool)
    withheld = Answer(finding=Finding.UNKNOWN, withheld="guessed")
    async with open_door(spool, reception=reception) as (keeper, port), talk(port) as client:
        await to_rcpt(client)
        for number in range(4):
            client.writer.write(b"RCPT TO:<slow%d@example.com>\r\n" % number)
            await until(lambda number=number: f"slow{number}" in directories.asked)  # type: ignore[misc]
            directories.asked[f"slow{number}"].set_result(withheld)
            reply = await client.hear()
            assert reply.startswith("451 4.7.1" if number < 3 else "421 4.7.0")
        assert await client.reader.read() == b""
        await until(lambda: not keeper.sessions)


async def test_a_held_recipient_is_stored_on_hold() -> None:
    """A recipient nobody vouches for yet gets its 250 and waits on hold, the other is queued."""
    spool = MemorySpool()

    class Unsure(DictDirectories):
        def find(self, domain: str, local_part: str, network: str = "") -> Answer:
            if local_part == "who":
                return Answer(finding=Finding.ABSENT, stale=True, when_stale="hold")
            return super().find(domain, local_part)

    reception = make_reception(spool, directories=Unsure(), when_unknown=WhenUnknown.HOLD)
    async with open_door(spool, reception=reception) as (_, port), talk(port) as client:
        await to_rcpt(client)
        for address in ("who", "alice"):
            reply = await client.say(f"RCPT TO:<{address}@example.com>")
            assert reply == "250 2.1.5 Ok\r\n"
        assert (await client.say("DATA")).startswith("354")
        assert (await client.say("x\r\n.")).startswith("250")
    (message,) = await spool.list_messages(Selection(), after=None, limit=2)
    assert [(row.address, row.state, row.reason) for row in message.recipients] == [
        ("who@example.com", State.HELD, UNVOUCHED),
        ("alice@example.com", State.QUEUED, ""),
    ]
