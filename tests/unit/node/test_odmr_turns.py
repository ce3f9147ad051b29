"""A primary that dials in and fetches its mail: the whole way, over real sockets."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from fakes.open_door import until
from fakes.scripted_peer import STALL, Answer, ScriptedPeer
from fakes.turned_line import DOMAINS, dialling, fetching, house, no_body
from fakes.work_source import ListSource, make_transaction
from posthouse.domain.nexthop import pull_socket_name
from posthouse.errors import NextHopFailure
from posthouse.interfaces.odmr_door import Line
from posthouse.node_odmr import Turns
from posthouse.transports.proxy_out import ProxySession
from posthouse.transports.smtp_out import OutSettings, SmtpConnector
from posthouse.transports.tls import TlsMode


async def test_mail_is_fetched(tmp_path: Path) -> None:
    """Two relays send over the one line that the primary opened; its replies are its own."""
    answers: dict[str, Answer] = {
        "RCPT:nobody@example.org": "550 5.1.1 nobody",
        ".": ("250 2.0.0 one", "250 2.0.0 two"),
    }
    async with (
        ScriptedPeer(answers, extensions=("PIPELINING", "SIZE 9000", "8BITMIME", "DSN")) as primary,
        house(tmp_path) as h,
        dialling(h.port) as dialler,
    ):
        assert (await dialler.log_in()).startswith("235")
        assert (await dialler.say("ATRN example.com,example.org")).startswith("250")
        spliced = asyncio.ensure_future(dialler.splice(primary.port))
        await until(lambda: h.retried == list(DOMAINS))
        connector = SmtpConnector(OutSettings(helo_name="mx2.example.net"), no_body)
        one = ListSource([make_transaction(queue_id=1, body=b"first\r\n.dot\r\n")])
        two = ListSource(
            [make_transaction("nobody@example.org", "bob@example.org", body=b"second\r\n")]
        )
        sessions = [
            await connector.connect(h.target("example.com"), one),
            await connector.connect(h.target("example.org"), two),
        ]
        await until(lambda: bool(one.finished_with) and bool(two.finished_with))
        for session in sessions:
            session.quit()
            assert (await session.wait_end()).failure is None
        h.pending = 0
        await asyncio.wait_for(spliced, 10)
        await primary.wait_command("QUIT")
        await connector.close()
    assert sorted(mail.content for mail in primary.messages) == [
        b"first\r\n.dot\r\n",
        b"second\r\n",
    ]
    codes = [[(r.code, r.stage) for r in source.finished_with[1]] for source in (one, two)]
    assert codes == [[(250, "dot")], [(550, "rcpt"), (250, "dot")]]
    assert primary.connections == 1


@pytest.mark.parametrize(
    ("pending", "command", "code"),
    [
        (2, "ATRN example.net", "450"),
        (2, "ATRN example.com,example.net", "450"),
        (0, "ATRN", "453"),
        (None, "ATRN", "451"),
        (2, "ETRN example.com", "250"),
    ],
)
async def test_turns_that_are_not_given(
    tmp_path: Path, pending: int | None, command: str, code: str
) -> None:
    """Foreign domains, no mail, or not now: each has its reply, and the session goes on."""
    async with house(tmp_path) as h, dialling(h.port) as dialler:
        h.pending = pending
        assert (await dialler.say("ATRN"))[:3] in ("220", "530")
        await dialler.log_in()
        assert (await dialler.say(command)).startswith(code)
        assert (await dialler.say("QUIT")).startswith("221")
        assert h.retried == []


async def test_wrong_secret(tmp_path: Path) -> None:
    """Three wrong secrets close the connection; who does not exist is told the same."""
    async with house(tmp_path) as h, dialling(h.port) as dialler:
        assert (await dialler.log_in(secret="guess")).startswith("535")
        for user in ("eve", "ada"):
            await dialler.say("AUTH CRAM-MD5")
            reply = await dialler.say(base64.b64encode(f"{user} 00".encode()).decode())
            assert reply.startswith("535")
        assert (await dialler.reader.readline()).startswith(b"421")
        assert await dialler.reader.read() == b""


async def test_tls_is_demanded(tmp_path: Path) -> None:
    """Where no mail may go in clear, none is turned in clear."""
    async with house(tmp_path, tls_required=True) as h, dialling(h.port) as dialler:
        await dialler.log_in()
        assert (await dialler.say("ATRN")).startswith("530")


async def test_one_line_a_user(tmp_path: Path) -> None:
    """A second call is told to wait; a primary that is lost sets the next hop free again."""
    async with ScriptedPeer() as primary, house(tmp_path) as h:
        async with dialling(h.port) as first:
            await first.log_in()
            await first.say("ATRN")
            spliced = asyncio.ensure_future(first.splice(primary.port))
            await until(lambda: (tmp_path / pull_socket_name("example.com")).exists())
            async with dialling(h.port) as second:
                await second.log_in()
                assert (await second.say("ATRN")).startswith("450 4.2.1")
        await primary.stop()
        await spliced
        await until(lambda: not list(tmp_path.iterdir()))
        connector = SmtpConnector(OutSettings(helo_name="mx2.example.net"), no_body)
        with pytest.raises(NextHopFailure):
            await connector.connect(h.target("example.com"), ListSource([]))
        await connector.close()


async def test_primary_lost_within_a_message(tmp_path: Path) -> None:
    """Nothing is delivered by half: the relay hears no 2xx and keeps the message."""
    async with (
        ScriptedPeer({".": STALL}) as primary,
        house(tmp_path) as h,
        dialling(h.port) as dialler,
    ):
        await dialler.log_in()
        await dialler.say("ATRN example.com")
        spliced = asyncio.ensure_future(dialler.splice(primary.port))
        await until(lambda: (tmp_path / pull_socket_name("example.com")).exists())
        connector = SmtpConnector(OutSettings(helo_name="mx2.example.net"), no_body)
        source = ListSource([make_transaction()])
        session = await connector.connect(h.target("example.com"), source)
        await primary.wait_command(".")
        await primary.stop()
        await spliced
        await session.wait_end()
        await connector.close()
    told = [result.code for results in source.finished_with.values() for result in results]
    assert not any(code < 300 for code in told)
    assert told or source.returned_with


async def test_a_relay_that_sits_on_a_refusal(tmp_path: Path) -> None:
    """A session that has nothing to send, or only what is refused, keeps nobody from the line."""
    answers: dict[str, Answer] = {"RCPT:nobody@example.com": "550 5.1.1 nobody"}
    async with (
        ScriptedPeer(answers) as primary,
        house(tmp_path) as h,
        fetching(h, primary) as connector,
    ):
        refused = ListSource([make_transaction("nobody@example.com")])
        sitting = await connector.connect(h.target("example.com"), refused)
        await until(lambda: bool(refused.finished_with))
        for number in (1, 2):
            good = ListSource([make_transaction("bob@example.org", body=b"x\r\n")])
            session = await connector.connect(h.target("example.org"), good)
            async with asyncio.timeout(1):
                await until(lambda: bool(good.finished_with))  # noqa: B023
            session.quit()
            assert len(primary.messages) == number
        sitting.quit()


@pytest.mark.parametrize("tls", ["required", "verified"])
async def test_tls_is_between_the_node_and_the_primary(tmp_path: Path, tls: TlsMode) -> None:
    """Where mail to next hops needs TLS, the relays still talk in clear to their own node."""
    async with (
        ScriptedPeer() as primary,
        house(tmp_path) as h,
        fetching(h, primary, tls=tls) as connector,
    ):
        assert await connector.probe(h.target("example.com"), ["bob@example.com"])
        source = ListSource([make_transaction()])
        session = await connector.connect(h.target("example.com"), source)
        await until(lambda: bool(source.finished_with))
        session.quit()
        assert len(primary.messages) == 1


async def test_a_message_that_takes_long(tmp_path: Path) -> None:
    """A primary that thinks about a message for longer than an idle line lasts is waited for."""
    async with (
        ScriptedPeer({".": STALL}) as primary,
        house(tmp_path, stuck_seconds=0.2) as h,
        fetching(h, primary) as connector,
    ):
        h.pending = 1
        source = ListSource([make_transaction()])
        await connector.connect(h.target("example.com"), source)
        await primary.wait_command(".")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await until(lambda: not list(tmp_path.iterdir()))
        assert not source.returned_with
        await primary.stop()


async def test_a_relay_that_leaves_while_it_is_answered(tmp_path: Path) -> None:
    """The answer it did not wait for is nobody's: the line ends, and nothing is delivered by it."""
    async with ScriptedPeer({"RCPT": (STALL,)}) as primary, house(tmp_path) as h:
        async with fetching(h, primary) as connector:
            source = ListSource([make_transaction()])
            await connector.connect(h.target("example.com"), source)
            await primary.wait_command("RCPT")
            await connector.close()
            await until(lambda: not list(tmp_path.iterdir()))
        assert primary.messages == []


@pytest.mark.parametrize("answers", [{"RCPT": "354 go"}, {"DATA": "250 ok"}, {".": "354 go"}])
async def test_a_primary_that_answers_nonsense(tmp_path: Path, answers: dict[str, Answer]) -> None:
    """Nothing counts as delivered by an answer that makes no sense there."""
    async with (
        ScriptedPeer(answers, strict=False) as primary,
        house(tmp_path) as h,
        fetching(h, primary) as connector,
    ):
        source = ListSource([make_transaction()])
        await connector.connect(h.target("example.com"), source)
        await until(lambda: bool(source.finished_with) or bool(source.returned_with))
        told = [result.code for results in source.finished_with.values() for result in results]
        assert not any(code < 300 for code in told)


async def test_the_greeting_comes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a quick primary says the instant after our 250 is heard: the line is ours by then."""
    readers: list[asyncio.BaseProtocol] = []
    take = Turns.take

    def noting(self: Turns, line: Line) -> None:
        take(self, line)
        readers.append(line.transport.get_protocol())

    monkeypatch.setattr(Turns, "take", noting)
    async with ScriptedPeer() as primary, house(tmp_path) as h, fetching(h, primary):
        (reader,) = readers
        assert isinstance(reader, ProxySession)
