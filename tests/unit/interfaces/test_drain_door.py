"""The door for states of next hops, over a real socket, with the worker's line at the other end."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fakes.connector import FakeConnector
from fakes.follower import MemoryBook, NotingFollower
from fakes.relay_world import PRIMARY, fixed
from fakes.resolver import FakeResolver
from posthouse.domain.drain import Event, State
from posthouse.interfaces.drain_door import DrainDoor
from posthouse.ports_drain import (
    Experience,
    Pause,
    Resume,
    Show,
    Shown,
    decode_reply,
    encode_line,
)
from posthouse.services.nexthop_follow import SharedStates
from posthouse.services.nexthops import NextHopBoard
from posthouse.services.relay_settings import RelaySettings
from posthouse.transports.drain_line import UnixDrainLine

KEY = f"smtp://{PRIMARY}:25"
ROUTES = {"example.com": fixed(PRIMARY)}
SETTINGS = RelaySettings(own_names=frozenset({"mx2.example.net"}))


def clock_us() -> int:
    return 1_700_000_000_000_000


class Stage:
    """A board behind its door."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "drain.sock"
        self.connector = FakeConnector()
        self.board = NextHopBoard(
            connector=self.connector,
            resolver=FakeResolver(),
            settings=SETTINGS,
            clock_us=clock_us,
            dice=random.Random(7),
            book=MemoryBook(),
        )
        self.door = DrainDoor(self.board)

    async def open(self) -> None:
        self.board.set_routes(ROUTES, SETTINGS)
        await self.door.open(self.path)

    async def close(self) -> None:
        await self.door.close()
        await self.board.stop()

    def worker(self) -> SharedStates:
        shared = SharedStates(
            UnixDrainLine(self.path),
            connector=self.connector,
            resolver=FakeResolver(),
            clock_us=clock_us,
            dice=random.Random(7),
        )
        shared.set_routes(ROUTES, SETTINGS)
        return shared

    async def ask(self, request: Show | Pause | Resume) -> Shown:
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        writer.write(encode_line(request))
        reply = decode_reply(await reader.readline())
        writer.close()
        await writer.wait_closed()
        assert isinstance(reply, Shown)
        return reply


@pytest.fixture(name="stage")
async def open_stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    await stage.open()
    yield stage
    await stage.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # the suite's time-out bounds it
        await asyncio.sleep(0)


async def test_two_workers_share_one_state(stage: Stage) -> None:
    """Orders and experience go over the socket; one of two is the canary."""
    workers = [stage.worker(), stage.worker()]
    relays = [NotingFollower(), NotingFollower()]
    for worker, relay in zip(workers, relays, strict=True):
        worker.follow(KEY, relay)
        worker.start()
    await until(lambda: all(relay.orders and relay.state() is State.CANARY for relay in relays))
    canaries = [relay for relay in relays if relay.orders[-1].canary]
    assert len(canaries) == 1
    canary = relays.index(canaries[0])
    proof = Experience(
        next_hop=KEY, event=Event.PROVEN, round=relays[canary].orders[-1].health.round
    )
    workers[canary].tell(relays[canary], proof)
    await until(lambda: all(relay.state() is State.DRAINING for relay in relays))
    for worker in workers:
        await worker.stop()
    await until(lambda: not stage.board._followers)


async def test_the_control_process_is_replaced(tmp_path: Path) -> None:
    """The line is made anew by itself and the relay follows again."""
    first = Stage(tmp_path)
    await first.open()
    worker, relay = first.worker(), NotingFollower()
    worker.follow(KEY, relay)
    worker.start()
    await until(lambda: bool(relay.orders))
    await first.close()
    count = len(relay.orders)
    second = Stage(tmp_path)
    await second.open()
    await until(lambda: len(relay.orders) > count)
    await worker.stop()
    await second.close()


async def test_the_operator_pauses_and_resumes(stage: Stage) -> None:
    """What is answered is durable and in force."""
    shown = await stage.ask(Pause((KEY,), "works on the primary"))
    (view,) = shown.next_hops
    assert (view.state, view.why, shown.durable) == (State.SUSPENDED, "works on the primary", True)
    (view,) = (await stage.ask(Show())).next_hops
    assert view.state is State.SUSPENDED
    (view,) = (await stage.ask(Resume((KEY,), guarded=False))).next_hops
    assert view.state in (State.SUSPECT, State.CANARY)
    assert not view.guarded


@pytest.mark.parametrize(
    "octets",
    [
        b"nonsense\n",
        b'{"type":"follow"}\n',
        b"\xff\xfe\n",
        b'{"type":"pause","next_hops":["nobody"],"why":""}\n',
        b"x" * (2 << 20),
    ],
)
async def test_nonsense_costs_the_visitor_only(stage: Stage, octets: bytes) -> None:
    """A line that is none ends that connection; others are served."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.setblocking(False)
        visitor.connect(str(stage.path))
        try:
            await loop.sock_sendall(visitor, octets)
            assert await loop.sock_recv(visitor, 100) == b""
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert len((await stage.ask(Show())).next_hops) == 1
