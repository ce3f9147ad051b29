"""Sessions with a next hop over real sockets: work, outcomes, order, ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from fakes.raw_peer import raw_peer
from fakes.scripted_peer import ScriptedPeer
from fakes.work_source import ListSource, make_transaction
from posthouse import ports_relay
from posthouse.errors import NextHopFailure
from posthouse.ports_relay import Target
from posthouse.ports_spool import Body
from posthouse.transports.smtp_out import OutSettings, SmtpConnector

MakeConnector = Callable[..., SmtpConnector]


async def no_body(queue_id: int) -> Body:
    """For tests whose messages are all in memory."""
    raise KeyError(queue_id)


def target_of(peer: ScriptedPeer, host: str = "peer.example") -> Target:
    return Target(host, peer.host, peer.port)


@pytest.fixture
async def connector() -> AsyncIterator[SmtpConnector]:
    made = SmtpConnector(OutSettings(helo_name="mx2.example.net"), no_body)
    yield made
    await made.close()


def test_it_is_what_the_port_asks_for(connector: SmtpConnector) -> None:
    """The connector and its sessions have the shape the relay relies on."""
    made: ports_relay.Connector = connector
    assert made is connector


@pytest.mark.parametrize(
    "extensions", [(), ("PIPELINING",), ("CHUNKING",), ("PIPELINING", "CHUNKING", "SIZE 0")]
)
async def test_messages_arrive_as_they_are(
    connector: SmtpConnector, extensions: tuple[str, ...]
) -> None:
    """Every way of sending brings every octet of every message, in order."""
    bodies = [
        b"",
        b".\r\n",
        b"\r\n",
        b"..\r\n.\r\n.x\r\n",
        b"A: b\r\n\r\n\xff\x00\r\n",
        b"x" * 70_000 + b"\r\n",
    ]
    source = ListSource(
        make_transaction("u@example.com", "v@example.com", body=body, queue_id=i)
        for i, body in enumerate(bodies)
    )
    async with ScriptedPeer(extensions=extensions) as peer:
        session = await connector.connect(target_of(peer), source)
        await source.wait_outcomes(len(bodies))
        session.quit()
        assert (await session.wait_end()).failure is None
        assert [m.content for m in peer.messages] == bodies
        assert {m.recipients for m in peer.messages} == {("u@example.com", "v@example.com")}
        assert {m.by for m in peer.messages} == {"BDAT" if "CHUNKING" in extensions else "DATA"}
        assert peer.connections == 1
    for results in source.finished_with.values():
        assert [(r.code, r.stage, r.text) for r in results] == [(250, "dot", "2.0.0 taken")] * 2
    assert peer.commands[-1] == "QUIT"


async def test_the_source_is_asked_after_connect_returned(connector: SmtpConnector) -> None:
    """Nobody hears of a transaction before the caller of `connect` holds the session."""
    source = ListSource([make_transaction()])
    async with ScriptedPeer() as peer:
        session = await connector.connect(target_of(peer), source)
        assert source.given == []
        await source.wait_outcomes(1)
        assert session.target == target_of(peer)


async def test_poke_brings_new_work_and_idle_is_told(connector: SmtpConnector) -> None:
    """An idle session asks again when poked; `idle_since` says since when it is idle."""
    source = ListSource()
    async with ScriptedPeer() as peer:
        session = await connector.connect(target_of(peer), source)
        session.poke()
        idle = session.idle_since()
        assert idle is not None
        assert idle <= asyncio.get_running_loop().time()
        source.waiting.append(make_transaction())
        session.poke()
        assert session.idle_since() is None
        await source.wait_outcomes(1)
        await asyncio.sleep(0)
        assert session.idle_since() is not None
        session.quit()
        await session.wait_end()
        assert session.idle_since() is None


async def test_a_source_may_poke_and_quit_from_inside(connector: SmtpConnector) -> None:
    """Calls back into the session while it calls the source are harmless."""

    class Eager(ListSource):
        def next_transaction(self) -> ports_relay.Transaction | None:
            session.poke()
            return super().next_transaction()

        def finished(self, transaction: ports_relay.Transaction, results: object) -> None:
            session.poke()
            super().finished(transaction, results)  # type: ignore[arg-type]
            if len(self.finished_with) == 3:
                session.quit()

    source = Eager(make_transaction(queue_id=i) for i in range(3))
    async with ScriptedPeer() as peer:
        session = await connector.connect(target_of(peer), source)
        assert (await session.wait_end()).failure is None
        assert len(peer.messages) == 3


async def test_many_local_refusals_do_not_hold_the_loop(connector: SmtpConnector) -> None:
    """A queue full of what this next hop cannot take is gone through in turns."""
    count = 500
    source = ListSource(make_transaction(size_bytes=100, queue_id=i) for i in range(count))
    async with ScriptedPeer(extensions=("SIZE 10",)) as peer:
        session = await connector.connect(target_of(peer), source)
        session.poke()
        assert 0 < len(source.finished_with) < count
        await source.wait_outcomes(count)
        assert {r[0].stage for r in source.finished_with.values()} == {"local"}
        assert not any(c.startswith("MAIL") for c in peer.commands)


async def test_per_recipient_answers(connector: SmtpConnector) -> None:
    """Each recipient gets the answer meant for it."""
    source = ListSource([make_transaction("a@x.example", "b@x.example", "c@x.example")])
    answers = {"RCPT:b@x.example": "550 5.1.1 no b", "RCPT:c@x.example": "451 4.2.0 later"}
    async with ScriptedPeer(answers) as peer:
        await connector.connect(target_of(peer), source)
        await source.wait_outcomes(1)
        assert peer.messages[0].recipients == ("a@x.example",)
    assert [(r.seq, r.code, r.text, r.stage) for r in source.finished_with[1]] == [
        (0, 250, "2.0.0 taken", "dot"),
        (1, 550, "5.1.1 no b", "rcpt"),
        (2, 451, "4.2.0 later", "rcpt"),
    ]


async def test_pipelining_keeps_the_next_envelope_behind_the_dot(
    connector: SmtpConnector,
) -> None:
    """While a final reply is due the next envelope has already gone, but not the one after."""
    source = ListSource(make_transaction(queue_id=i) for i in range(1, 4))
    held = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 peer.example\r\n")
        await reader.readline()
        writer.write(b"250-peer.example\r\n250 PIPELINING\r\n")
        await reader.readuntil(b"DATA\r\n")
        writer.write(b"250 ok\r\n250 ok\r\n354 go\r\n")
        await reader.readuntil(b"\r\n.\r\n")
        await reader.readuntil(b"DATA\r\n")
        held.set()
        await reader.read()

    async with raw_peer(play) as port:
        await connector.connect(Target("peer.example", "127.0.0.1", port), source)
        await held.wait()
        assert source.given == [1, 2]
        await connector.close()
        assert source.returned_with == {1: ("shutting down", True), 2: ("shutting down", False)}


# --------------------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("answers", "stage", "code"),
    [
        ({"connect": "554 5.7.1 listed"}, "greeting", 554),
        ({"connect": "421 4.3.2 full"}, "greeting", 421),
        ({"EHLO": "500 what", "HELO": "550 5.7.1 no"}, "ehlo", 550),
        ({"EHLO": "451 4.3.0 busy"}, "ehlo", 451),
        ({"connect": b"SSH-2.0-OpenSSH_9.2\r\n"}, "greeting", 0),
    ],
)
async def test_refusals_to_talk(
    connector: SmtpConnector, answers: dict[str, str], stage: str, code: int
) -> None:
    """A refusal before mail is a NextHopFailure with its stage and reply."""
    async with ScriptedPeer(answers) as peer:
        with pytest.raises(NextHopFailure) as caught:
            await connector.connect(target_of(peer), ListSource())
    assert (caught.value.stage, caught.value.reply_code) == (stage, code)
    assert caught.value.permanent is (code >= 500)
    assert "peer.example[127.0.0.1]" in caught.value.detail


async def test_nobody_listens(connector: SmtpConnector) -> None:
    """A closed port is a failure at "connect"."""
    peer = ScriptedPeer()
    await peer.start()
    await peer.stop()
    with pytest.raises(NextHopFailure, match="Connection refused") as caught:
        await connector.connect(target_of(peer), ListSource())
    assert caught.value.stage == "connect"


async def test_an_address_that_cannot_be_is_a_failure_too(connector: SmtpConnector) -> None:
    """What the network refuses at once is a failure at "connect" as well."""
    with pytest.raises(NextHopFailure) as caught:
        await connector.connect(Target("x.example", "255.255.255.255", 25), ListSource())
    assert caught.value.stage == "connect"


async def test_cancelled_while_opening(connector: SmtpConnector) -> None:
    """A caller that gives up leaves no connection behind."""
    from fakes.scripted_peer import STALL

    async with ScriptedPeer({"connect": STALL}) as peer:
        attempt = asyncio.create_task(connector.connect(target_of(peer), ListSource()))
        await peer.wait_connections(1)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt


async def test_quit_before_any_work(connector: SmtpConnector) -> None:
    """A session that is quit at once says QUIT and ends in good order."""
    async with ScriptedPeer() as peer:
        source = ListSource([make_transaction()])
        session = await connector.connect(target_of(peer), source)
        session.quit()
        assert (await session.wait_end()).failure is None
        assert peer.commands == ["EHLO mx2.example.net", "QUIT"]
        assert source.given == []


# --------------------------------------------------------------------------- probe


async def test_probe_asks_for_mail_and_leaves(connector: SmtpConnector) -> None:
    """A probe goes as far as MAIL FROM:<>, then leaves in good order."""
    async with ScriptedPeer() as peer:
        await connector.probe(target_of(peer))
        await peer.wait_command("QUIT")
        assert peer.commands == ["EHLO mx2.example.net", "MAIL FROM:<>", "RSET", "QUIT"]


async def test_probe_tells_what_recipients_are_answered(connector: SmtpConnector) -> None:
    """Replies to RCPT come back in order, whatever they are; one not in ASCII is not asked for."""
    async with ScriptedPeer({"RCPT:b@example.com": "550 5.1.1 no"}) as peer:
        asked = ["a@example.com", "b@example.com", "ü@example.com"]
        replies = await connector.probe(target_of(peer), asked)
        await peer.wait_command("QUIT")
    assert [code for code, _ in replies] == [250, 550]
    assert replies[1][1].endswith("5.1.1 no")


@pytest.mark.parametrize(
    ("answers", "stage", "code"),
    [
        ({"MAIL": "550 5.7.1 blocked"}, "mail", 550),
        ({"MAIL": "451 4.3.0 disk full"}, "mail", 451),
        ({"MAIL": "421 4.3.2 going down"}, "mail", 421),
        ({"connect": "554 no"}, "greeting", 554),
        ({"MAIL": b"x\r\n"}, "mail", 0),
    ],
)
async def test_probe_tells_where_mail_is_not_taken(
    connector: SmtpConnector, answers: dict[str, str], stage: str, code: int
) -> None:
    """A refusal at any point of a probe is a NextHopFailure with stage and reply."""
    async with ScriptedPeer(answers) as peer:
        with pytest.raises(NextHopFailure) as caught:
            await connector.probe(target_of(peer))
    assert (caught.value.stage, caught.value.reply_code) == (stage, code)
