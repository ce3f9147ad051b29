"""Primaries that misbehave in every way: nothing lost, nothing sent twice without need.

The whole relay over real sockets against a scripted peer. Each peer misbehaves for a
while, then comes to its senses; the operator releases what was held and resumes, and
every message must have come home exactly once. Meanwhile no turn of the event loop may
use 50 ms of CPU, and memory must not grow with what the peer says.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

from fakes.memory_spool import MemorySpool
from fakes.relay_world import CLIENT
from fakes.resolver import FakeResolver
from fakes.scripted_peer import DRIP, DROP, RESET, STALL, Answer, ScriptedPeer
from posthouse.domain.drain import State
from posthouse.domain.nexthop import HostPort, next_hop_key
from posthouse.mail.envelope import Envelope, Recipient
from posthouse.ports_spool import OperatorAction, Selection
from posthouse.ports_spool import State as RowState
from posthouse.services import nexthop_probe, relay_queue, relay_walk
from posthouse.services.relay import Relay
from posthouse.services.relay_settings import RelaySettings, RouteSettings
from posthouse.transports.smtp_out import OutSettings, SmtpConnector

COUNT: Final = 40
EVERYTHING: Final = (
    *("PIPELINING", "SIZE 10485760", "8BITMIME", "BINARYMIME", "CHUNKING", "SMTPUTF8", "DSN"),
    *("ENHANCEDSTATUSCODES", "AUTH PLAIN LOGIN", "STARTTLS", "ETRN", "DELIVERBY", "VRFY"),
)
TEN: Final = ("250 2.1.0 ok",) * 10


def clock_us() -> int:
    return time.time_ns() // 1000


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class Watchdog:
    """The most CPU one turn of the loop has used. Time this machine gave to others counts not.

    As in a node, the collector does not look at what was there before (`Process.serve`).
    """

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()
        self.worst = 0.0
        self._last = time.thread_time()
        self._on = True
        asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        now = time.thread_time()
        self.worst = max(self.worst, now - self._last)
        self._last = now
        if self._on:
            asyncio.get_running_loop().call_soon(self._turn)

    def stop(self) -> None:
        self._on = False
        gc.unfreeze()


class Stage:
    """A relay with COUNT messages, and a peer that will misbehave."""

    def __init__(self, peer: ScriptedPeer) -> None:
        self.peer = peer
        self.spool = MemorySpool(0, clock_us)
        self.connector = SmtpConnector(
            OutSettings(
                helo_name="mx2.example.net",
                connect_timeout=1,
                greeting_timeout=0.15,
                command_timeout=0.15,
                data_block_timeout=0.15,
                final_dot_timeout=0.15,
            ),
            self.spool.open_body,
        )
        hops = (HostPort(peer.host, peer.port),)
        self.key = next_hop_key("example.com", hops)
        self.relay = Relay(
            spool=self.spool,
            connector=self.connector,
            resolver=FakeResolver(),
            routes={"example.com": RouteSettings(hops=hops)},
            settings=RelaySettings(
                own_names=frozenset({"mx2.example.net"}),
                probe_interval_us=100_000,
                retry_us=(200_000,),
                concurrency=4,
                idle_seconds=0.1,
            ),
            clock_us=clock_us,
            dice=random.Random(7),
        )

    async def accept(self, number: int) -> None:
        incoming = self.spool.begin()
        incoming.write(b"Subject: %d\r\n\r\n%b" % (number, b"text of the message\r\n" * 50))
        user = Recipient(address=f"user{number}@example.com", domain="example.com")
        envelope = Envelope(sender=f"from{number}@client.example", recipients=(user,))
        await self.spool.commit(incoming, envelope=envelope, client=CLIENT)

    async def rows(self) -> Counter[RowState]:
        messages = await self.spool.list_messages(Selection(), after=None, limit=10_000)
        return Counter(r.state for m in messages for r in m.recipients)

    async def wait_rows(self, expected: dict[RowState, int]) -> None:
        """Wait until exactly these are left: outcomes gather for a moment before they are stored."""
        async with asyncio.timeout(20):
            while await self.rows() != expected:
                await asyncio.sleep(0.005)

    @property
    def state(self) -> State:
        return self.relay.status()[0].state

    def arrived(self) -> Counter[bytes]:
        return Counter(mail.content.split(b"\r\n", 1)[0] for mail in self.peer.messages)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.005)

    async def come_to_senses(self) -> None:
        """The peer behaves; what was held is released; the operator resumes."""
        self.peer.answers.clear()
        assert self.relay.board is not None
        async with asyncio.timeout(20):
            while sum((await self.rows()).values()):
                await self.spool.act(
                    Selection(state=RowState.HELD), OperatorAction.RELEASE, now_us=clock_us()
                )
                if self.state in (State.SURGE_STOPPED, State.BLOCKED):
                    self.relay.board.resume([self.key], guarded=False)
                elif self.state is State.UP:
                    self.relay.retry()
                await asyncio.sleep(0.1)

    async def close(self) -> None:
        await self.relay.stop(1)
        await self.connector.close()
        await self.spool.close()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience of tenths of seconds."""
    for module in (relay_walk, nexthop_probe):
        monkeypatch.setattr(module, "patience_seconds", lambda interval_us: 0.3)
    monkeypatch.setattr(relay_queue, "MIN_DUE_SECONDS", 0.05)


@pytest.fixture(name="peer")
async def make_peer() -> AsyncIterator[ScriptedPeer]:
    async with ScriptedPeer() as peer:
        yield peer


PEERS: dict[str, tuple[Mapping[str, Answer], set[State]]] = {
    "closes at once": ({"connect": DROP}, {State.DOWN}),
    "resets at once": ({"connect": RESET}, {State.DOWN}),
    "greets 554": ({"connect": "554 5.7.1 go away"}, {State.BLOCKED}),
    "greets 421": ({"connect": "421 4.3.2 not now"}, {State.DOWN}),
    "stalls at connect": ({"connect": STALL}, {State.DOWN}),
    "stalls at EHLO": ({"EHLO": STALL}, {State.DOWN}),
    "stalls at MAIL": ({"MAIL": STALL}, {State.DOWN}),
    "stalls at RCPT": ({"RCPT": STALL}, {State.DOWN}),
    "stalls at DATA": ({"DATA": STALL}, {State.DOWN}),
    "stalls at the dot": ({".": STALL}, {State.DOWN}),
    "garbage at connect": ({"connect": b"\x00\xff\x80 what\r\n"}, {State.DOWN}),
    "garbage at EHLO": ({"EHLO": b"\xff\xff\xff\r\n"}, {State.DOWN}),
    "garbage at MAIL": ({"MAIL": b"25x yes\r\n"}, {State.DOWN}),
    "garbage at RCPT": ({"RCPT": b"\r\n\r\n\r\n"}, {State.DOWN}),
    "garbage at DATA": ({"DATA": b"-1 go\r\n"}, {State.DOWN}),
    "garbage at the dot": ({".": b"\x1b[31m250 ok\r\n"}, {State.DOWN}),
    "endless greeting": ({"connect": DRIP(b"220-and so on\r\n")}, {State.DOWN}),
    "endless line": ({"connect": DRIP(b"2" * 1000)}, {State.DOWN}),
    "endless EHLO": ({"EHLO": DRIP(b"250-X-EXTENSION some words\r\n")}, {State.DOWN}),
    "endless MAIL": ({"MAIL": DRIP(b"250-ok\r\n")}, {State.DOWN}),
    "endless RCPT": ({"RCPT": DRIP(b"550-no\r\n")}, {State.DOWN}),
    "endless dot": ({".": DRIP(b"250-taken\r\n")}, {State.DOWN}),
    "many replies at once": ({"MAIL": DRIP(b"250 2.1.0 ok\r\n")}, {State.DOWN}),
    "a reply without end": ({"EHLO": "250-peer.example\r\n250-PIPELINING"}, {State.DOWN}),
    "drops after the dot": ({".": DROP}, {State.DOWN}),
    "resets after the dot": ({".": RESET}, {State.DOWN}),
    "drops at RCPT": ({"RCPT": DROP}, {State.DOWN}),
    "refuses MAIL": ({"MAIL": "550 5.7.1 you are blocked"}, {State.BLOCKED}),
    "puts MAIL off": ({"MAIL": "452 4.3.1 disk full"}, {State.DOWN}),
    "puts all off at the dot": ({".": "451 4.3.0 error"}, {State.DOWN}),
    "250 to everything": ({"DATA": "250 ok", "connect": "220 ok"}, {State.DOWN}),
    "has our own name": ({"EHLO": "250 mx2.example.net"}, {State.DOWN}),
}


@pytest.mark.parametrize("name", PEERS)
async def test_a_peer_that_never_works(peer: ScriptedPeer, name: str) -> None:
    """It is found out, costs neither the loop nor memory, and every message comes home later."""
    answers, states = PEERS[name]
    peer.answers.update(answers)
    stage = Stage(peer)
    for number in range(COUNT):
        await stage.accept(number)
    before = resident_bytes()
    watchdog = Watchdog()
    stage.relay.start()
    await stage.until(lambda: stage.state in states)
    connections = peer.connections
    await asyncio.sleep(0.5)  # what it costs while it lasts
    watchdog.stop()
    assert watchdog.worst < 0.05
    assert resident_bytes() - before < 16 << 20
    assert peer.connections - connections <= 30  # one a tenth of a second, and its places
    assert peer.messages == []
    rows = await stage.rows()
    assert sum(rows.values()) == COUNT
    assert rows[RowState.HELD] == 0
    await stage.come_to_senses()
    assert set(stage.arrived().values()) == {1}
    assert len(stage.arrived()) == COUNT
    await stage.close()


async def test_a_peer_that_offers_everything_and_refuses_it(peer: ScriptedPeer) -> None:
    """STARTTLS, BDAT and parameters of MAIL come to nothing there: the mail goes without."""
    peer.extensions = EVERYTHING
    peer.answers |= {"STARTTLS": "454 4.7.0 not now", "BDAT": "502 5.5.1 no such command"}
    stage = Stage(peer)
    for number in range(COUNT):
        await stage.accept(number)
    stage.relay.start()
    await stage.until(lambda: len(peer.messages) == COUNT)
    assert set(stage.arrived().values()) == {1}
    assert {mail.by for mail in peer.messages} == {"DATA"}
    await stage.until(lambda: stage.state is State.UP)
    await stage.wait_rows({})
    await stage.close()


async def comes_back(peer: ScriptedPeer) -> Stage:
    """A stage whose peer was down; it is up again with the answers it has now."""
    port = peer.port
    await peer.stop()
    peer.port = port
    stage = Stage(peer)
    for number in range(COUNT):
        await stage.accept(number)
    stage.relay.start()
    await stage.until(lambda: stage.state is State.DOWN)
    await peer.start()
    return stage


async def test_a_peer_that_changes_its_mind(peer: ScriptedPeer) -> None:
    """Ten are taken, then everything is refused: the drain stops, the rest waits."""
    peer.answers["."] = ("250 2.0.0 ok",) * 10 + ("554 5.7.1 no",)
    stage = await comes_back(peer)
    await stage.until(lambda: stage.state is State.SURGE_STOPPED)
    async with asyncio.timeout(20):
        while (rows := await stage.rows())[RowState.HELD] < 5:
            await asyncio.sleep(0)  # what the sessions heard is being settled
    assert rows[RowState.QUEUED] + rows[RowState.HELD] == COUNT - 10
    assert 5 <= rows[RowState.HELD] <= 5 + 4 + 4  # sessions with one more under way each
    await stage.come_to_senses()
    assert set(stage.arrived().values()) == {1}
    assert len(stage.arrived()) == COUNT
    await stage.close()


async def test_a_peer_that_refuses_the_canary_only(peer: ScriptedPeer) -> None:
    """One is held, the others come home without anybody's help."""
    peer.answers["."] = ("554 5.7.1 not this one", "250 2.0.0 ok")
    stage = await comes_back(peer)
    await stage.until(lambda: len(peer.messages) == COUNT - 1)
    await stage.until(lambda: stage.state is State.UP)
    await stage.wait_rows({RowState.HELD: 1})
    assert set(stage.arrived().values()) == {1}
    await stage.close()


async def test_a_peer_that_ends_every_session_after_ten(peer: ScriptedPeer) -> None:
    """421 after every tenth message is a limit of a session: another one is opened, nobody waits."""
    peer.answers["MAIL"] = (*TEN, "421 4.7.0 enough for now") * 20
    stage = await comes_back(peer)
    await stage.until(lambda: len(peer.messages) == COUNT)
    await stage.until(lambda: stage.state is State.UP)
    await stage.wait_rows({})
    assert set(stage.arrived().values()) == {1}
    assert peer.connections <= 30
    await stage.close()


async def test_a_peer_that_takes_and_hangs_up(peer: ScriptedPeer) -> None:
    """Every other message is taken and the connection dropped in the same breath: once each."""
    peer.answers["."] = ("250 2.0.0 ok", DROP) * 10 + ("250 2.0.0 ok",)
    stage = await comes_back(peer)
    await stage.until(lambda: len(peer.messages) >= COUNT)
    await stage.come_to_senses()
    assert set(stage.arrived().values()) == {1}
    assert len(stage.arrived()) == COUNT
    await stage.close()
