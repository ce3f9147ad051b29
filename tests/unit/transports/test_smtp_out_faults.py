"""Peers that stall, vanish, lie or flood: nothing is lost, nothing grows, nothing hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from fakes.raw_peer import raw_peer
from fakes.scripted_peer import DRIP, DROP, RESET, STALL, Answer, ScriptedPeer
from fakes.work_source import ListSource, make_transaction
from posthouse.errors import NextHopFailure
from posthouse.ports_relay import SessionEnd, Target
from posthouse.ports_spool import Body
from posthouse.transports.smtp_out import OutSettings, SmtpConnector

# Short enough for a test, long enough for a busy machine where no time-out is meant.
IMPATIENT = OutSettings(
    helo_name="mx2.example.net",
    connect_timeout=20,
    greeting_timeout=0.4,
    command_timeout=0.4,
    data_block_timeout=0.4,
    final_dot_timeout=0.4,
)
PATIENT = OutSettings(helo_name="mx2.example.net")
PIPELINED = ("PIPELINING",)
CHUNKED = ("PIPELINING", "CHUNKING")


async def no_body(queue_id: int) -> Body:
    raise KeyError(queue_id)


@pytest.fixture
async def connectors() -> AsyncIterator[list[SmtpConnector]]:
    made: list[SmtpConnector] = []
    yield made
    for connector in made:
        await connector.close()


async def send(
    connectors: list[SmtpConnector],
    answers: dict[str, Answer],
    source: ListSource,
    *,
    extensions: tuple[str, ...] = PIPELINED,
    settings: OutSettings = PATIENT,
) -> SessionEnd:
    """Run one session to its end against a peer."""
    connector = SmtpConnector(settings, no_body)
    connectors.append(connector)
    async with ScriptedPeer(answers, extensions=extensions) as peer:
        session = await connector.connect(Target("peer.example", peer.host, peer.port), source)
        return await session.wait_end()


STAGES = [
    ("MAIL", (), False),
    ("RCPT", (), False),
    ("DATA", (), False),
    (".", (), True),
    ("MAIL", PIPELINED, False),
    ("RCPT", PIPELINED, False),
    ("DATA", PIPELINED, False),
    (".", PIPELINED, True),
    ("MAIL", CHUNKED, False),
    ("BDAT", CHUNKED, True),
]


@pytest.mark.parametrize("how", [DROP, RESET], ids=str)
@pytest.mark.parametrize(("stage", "extensions", "after_dot"), STAGES)
async def test_gone_at_any_stage(
    connectors: list[SmtpConnector],
    stage: str,
    extensions: tuple[str, ...],
    after_dot: bool,
    how: Answer,
) -> None:
    """A session lost at any stage gives its message back, and says whether it had gone whole."""
    source = ListSource([make_transaction()])
    end = await send(connectors, {stage: how}, source, extensions=extensions)
    [(why, after)] = source.returned_with.values()
    assert why.startswith("lost connection")
    assert after is after_dot
    assert end.failure == why
    assert source.finished_with == {}


@pytest.mark.parametrize(("stage", "extensions", "after_dot"), STAGES)
async def test_silent_at_any_stage(
    connectors: list[SmtpConnector], stage: str, extensions: tuple[str, ...], after_dot: bool
) -> None:
    """A peer that says nothing more is left after the time-out of that stage."""
    source = ListSource([make_transaction()])
    end = await send(connectors, {stage: STALL}, source, extensions=extensions, settings=IMPATIENT)
    [(why, after)] = source.returned_with.values()
    assert why.startswith("timed out waiting for ")
    assert after is after_dot
    assert end.failure == why


@pytest.mark.parametrize(
    ("stage", "named"), [("connect", "greeting"), ("EHLO", "ehlo"), ("HELO", "ehlo")]
)
async def test_silent_while_opening(
    connectors: list[SmtpConnector], stage: str, named: str
) -> None:
    """A peer that never greets or never answers EHLO is a NextHopFailure after its time-out."""
    answers: dict[str, Answer] = {"EHLO": "500 what?", stage: STALL}
    with pytest.raises(NextHopFailure, match="timed out") as caught:
        await send(connectors, answers, ListSource(), settings=IMPATIENT)
    assert caught.value.stage == named


async def test_a_peer_that_never_answers_quit(connectors: list[SmtpConnector]) -> None:
    """QUIT without an answer still ends in good order."""
    connector = SmtpConnector(IMPATIENT, no_body)
    connectors.append(connector)
    async with ScriptedPeer({"QUIT": STALL}) as peer:
        session = await connector.connect(
            Target("peer.example", peer.host, peer.port), ListSource()
        )
        session.quit()
        assert (await session.wait_end()).failure is None


@pytest.mark.parametrize(
    ("stage", "extensions"),
    [(stage, e) for e in ((), PIPELINED) for stage in ("MAIL", "RCPT", "DATA", ".")]
    + [(stage, CHUNKED) for stage in ("MAIL", "RCPT", "BDAT")],
)
async def test_421_anywhere(
    connectors: list[SmtpConnector], stage: str, extensions: tuple[str, ...]
) -> None:
    """421 refuses for now at its stage and ends the session; every message has one outcome."""
    source = ListSource(make_transaction(f"u{i}@x.example", queue_id=i) for i in range(1, 5))
    answers: dict[str, Answer] = {
        "RCPT:u1@x.example": "550 5.1.1 no",
        stage: ("354 go" if stage == "DATA" else "250 ok", "421 4.3.2 down"),
    }
    connector = SmtpConnector(PATIENT, no_body)
    connectors.append(connector)
    async with ScriptedPeer(answers, extensions=extensions) as peer:
        session = await connector.connect(Target("peer.example", peer.host, peer.port), source)
        end = await session.wait_end()
    assert set(source.given) == set(source.finished_with) | set(source.returned_with)
    codes = [r[0].code for r in source.finished_with.values()]
    assert codes[0] == 550
    assert codes[-1] == 421
    assert sum(code == 250 for code in codes) == len(peer.messages)
    assert end.reply_code == 421


async def test_421_to_rset(connectors: list[SmtpConnector]) -> None:
    """421 between two messages: the one that had not begun comes back."""
    source = ListSource(make_transaction(f"u{i}@x.example", queue_id=i) for i in (1, 2))
    answers: dict[str, Answer] = {"RCPT": "550 5.1.1 no", "RSET": "421 4.3.2 down"}
    end = await send(connectors, answers, source)
    assert list(source.finished_with) == [1]
    assert list(source.returned_with) == [2]
    assert end.reply_code == 421


@pytest.mark.parametrize(
    "flood",
    [
        b"250 more\r\n",
        b"250-and\r\n",
        b"x" * 1000,
        b"\r\n",
        b"220 2.0.0 x\r\n354 y\r\n",
        b"\x00\xff",
    ],
    ids=repr,
)
@pytest.mark.parametrize("stage", ["connect", "EHLO", "MAIL", "DATA", "."])
async def test_endless_talk_ends_the_session(
    connectors: list[SmtpConnector], stage: str, flood: bytes
) -> None:
    """A peer that talks for ever is cut off at once, wherever it begins."""
    source = ListSource([make_transaction()])
    connector = SmtpConnector(PATIENT, no_body)
    connectors.append(connector)
    async with ScriptedPeer({stage: DRIP(flood)}, extensions=()) as peer:
        target = Target("peer.example", peer.host, peer.port)
        if stage in ("connect", "EHLO"):
            with pytest.raises(NextHopFailure):
                await connector.connect(target, source)
            return
        session = await connector.connect(target, source)
        end = await session.wait_end()
    assert end.failure is not None
    assert set(source.given) == set(source.finished_with) | set(source.returned_with)


async def test_a_reply_that_drips_does_not_keep_a_session_alive(
    connectors: list[SmtpConnector],
) -> None:
    """The time-out is for the whole reply, not for its next octet."""
    connector = SmtpConnector(IMPATIENT, no_body)
    connectors.append(connector)
    source = ListSource([make_transaction()])

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        await reader.readline()
        writer.write(b"250 peer.example\r\n")
        await reader.readline()
        gone = asyncio.create_task(reader.read())
        while not gone.done():
            writer.write(b"2")
            await asyncio.wait([gone], timeout=0.05)
            if not gone.done():
                writer.write(b"50-x\r\n")
        await asyncio.gather(gone, return_exceptions=True)

    async with raw_peer(drip) as port:
        session = await connector.connect(Target("p.example", "127.0.0.1", port), source)
        end = await session.wait_end()
        assert end.failure == "timed out waiting for MAIL"


async def test_a_session_may_be_idle_for_longer_than_any_time_out(
    connectors: list[SmtpConnector],
) -> None:
    """Time-outs hold only while something is awaited."""
    connector = SmtpConnector(IMPATIENT, no_body)
    connectors.append(connector)
    source = ListSource([make_transaction(queue_id=1)])
    async with ScriptedPeer() as peer:
        session = await connector.connect(Target("p.example", peer.host, peer.port), source)
        await source.wait_outcomes(1)
        ended = asyncio.create_task(session.wait_end())
        await asyncio.wait([ended], timeout=1.0)
        assert not ended.done()
        source.waiting.append(make_transaction(queue_id=2))
        session.poke()
        await source.wait_outcomes(2)
        assert set(source.finished_with) == {1, 2}
        session.quit()
        await ended


@pytest.mark.parametrize("when", ["before", "after"])
async def test_hung_up_while_idle(connectors: list[SmtpConnector], when: str) -> None:
    """A peer that closes an idle session is healthy if mail had passed, else it is not."""
    connector = SmtpConnector(PATIENT, no_body)
    connectors.append(connector)
    source = ListSource([make_transaction()] if when == "after" else [])
    async with ScriptedPeer() as peer:
        session = await connector.connect(Target("p.example", peer.host, peer.port), source)
        if when == "after":
            await source.wait_outcomes(1)
        await peer.stop()
        end = await session.wait_end()
    assert (end.failure is None) is (when == "after")


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "."])
async def test_wrong_class_of_reply(connectors: list[SmtpConnector], stage: str) -> None:
    """354 where 250 is due and the other way round end the session; nothing is delivered."""
    source = ListSource([make_transaction()])
    end = await send(connectors, {stage: "250 x" if stage == "DATA" else "354 x"}, source)
    assert end.failure is not None
    [(_, after_dot)] = source.returned_with.values()
    assert after_dot is (stage == ".")


async def test_close_gives_everything_back(connectors: list[SmtpConnector]) -> None:
    """A connector that is closed drops its sessions and returns what was under way."""
    connector = SmtpConnector(PATIENT, no_body)
    source = ListSource([make_transaction()])
    async with ScriptedPeer({"MAIL": STALL}) as peer:
        session = await connector.connect(Target("p.example", peer.host, peer.port), source)
        await peer.wait_command("MAIL")
        await connector.close()
        assert source.returned_with == {1: ("shutting down", False)}
        assert (await session.wait_end()).failure == "shutting down"
        await connector.close()
