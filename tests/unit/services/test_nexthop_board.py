"""Who decides the states of next hops: alone, for many workers, and over a restart."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest

from fakes.connector import FakeConnector, refusing, unreachable
from fakes.follower import MemoryBook, NotingFollower
from fakes.relay_world import PRIMARY, fixed
from fakes.resolver import FakeResolver
from fakes.timers import Timers, turn_over
from posthouse.domain.drain import Event, Health, State
from posthouse.ports_drain import (
    DrainLine,
    Experience,
    Follow,
    NextHopBook,
    NextHopRecord,
    NextHopView,
    Ordered,
    Reply,
    Request,
    Told,
)
from posthouse.services.nexthop_entry import START_SECONDS
from posthouse.services.nexthop_follow import ALONE_SECONDS, SharedStates
from posthouse.services.nexthops import NextHopBoard
from posthouse.services.relay_settings import RelaySettings
from posthouse.storage.nexthop_book import NextHopFile

KEY = f"smtp://{PRIMARY}:25"
ROUTES = {"example.com": fixed(PRIMARY)}
SETTINGS = RelaySettings(own_names=frozenset({"mx2.example.net"}))


class Stage:
    """A board over a scripted next hop."""

    def __init__(self, book: NextHopBook | None = None, *, expected: int = 1) -> None:
        self.timers = Timers()
        self.connector = FakeConnector()
        self.book = book
        self.board = self.make(expected)

    def make(self, expected: int = 1) -> NextHopBoard:
        return NextHopBoard(
            connector=self.connector,
            resolver=FakeResolver(),
            settings=SETTINGS,
            clock_us=self.timers.clock_us,
            dice=random.Random(7),
            later=self.timers.later,
            book=self.book,
            expected=expected,
        )

    async def start(self) -> None:
        self.board.set_routes(ROUTES, SETTINGS)
        await turn_over()

    def view(self) -> NextHopView:
        view = self.board.state_of(KEY)
        assert view is not None
        return view

    def tell(self, follower: NotingFollower, event: Event | None, **more: object) -> None:
        current = follower.orders[-1].health.round
        experience = Experience(next_hop=KEY, event=event, round=current, **more)  # type: ignore[arg-type]
        self.board.tell(follower, experience)


async def test_a_start_begins_with_a_probe() -> None:
    """Nothing flows before the next hop has answered; with nothing to send it is up then."""
    stage = Stage()
    worker = NotingFollower()
    stage.board.follow(KEY, worker)
    await stage.start()
    assert stage.connector.peer(PRIMARY).probes == 1
    assert [order.health.state for order in worker.orders] == [State.SUSPECT, State.CANARY]
    assert worker.orders[-1].canary
    stage.tell(worker, Event.DRAINED)
    assert worker.state() is State.UP
    assert stage.view().takes_mail


async def test_nothing_is_drained_before_all_workers_are_there() -> None:
    """A backlog in the worker that comes last gets its canary too."""
    stage = Stage(expected=2)
    first, second = NotingFollower(), NotingFollower()
    await stage.start()
    stage.board.follow(KEY, first)
    stage.tell(first, Event.DRAINED)
    assert stage.view().state is State.CANARY
    stage.board.follow(KEY, second)
    assert second.orders[-1].canary
    stage.tell(second, Event.PROVEN)
    assert first.state() is second.state() is State.DRAINING


async def test_a_worker_that_never_comes_is_not_waited_for() -> None:
    """A shard that cannot be opened holds nobody up for longer than the start may take."""
    stage = Stage(expected=2)
    worker = NotingFollower()
    await stage.start()
    stage.board.follow(KEY, worker)
    stage.tell(worker, Event.DRAINED)
    await stage.timers.advance(START_SECONDS + 1)
    assert worker.state() is State.UP


async def test_what_speaks_against_it_closes_all() -> None:
    """One worker's trouble is an order for everybody."""
    stage = Stage()
    workers = [NotingFollower() for _ in range(3)]
    for worker in workers:
        stage.board.follow(KEY, worker)
    await stage.start()
    for worker in workers:
        stage.tell(worker, Event.DRAINED)
    assert {worker.state() for worker in workers} == {State.UP}
    stage.connector.peer(PRIMARY).down()
    stage.tell(workers[1], Event.LOST, why="connection refused")
    assert {worker.state() for worker in workers} == {State.DOWN}
    assert stage.view().why == "connection refused"
    await stage.timers.advance(34)
    assert stage.connector.peer(PRIMARY).probes == 2  # one for the node


async def test_an_idle_next_hop_is_looked_at() -> None:
    """An outage is learned without mail; one that delivers is left alone."""
    stage = Stage()
    settings = msgspec.structs.replace(SETTINGS, watch_interval_us=120_000_000)
    worker = NotingFollower()
    stage.board.follow(KEY, worker)
    stage.board.set_routes(ROUTES, settings)
    await turn_over()
    stage.tell(worker, Event.DRAINED)
    peer = stage.connector.peer(PRIMARY)
    await stage.timers.advance(140)
    assert (peer.probes, stage.view().state) == (2, State.UP)
    for _ in range(10):
        stage.tell(worker, None, delivered=5)
        await stage.timers.advance(60)
    assert peer.probes == 2
    peer.down()
    await stage.timers.advance(260)
    assert stage.view().state is State.DOWN
    peer.up()
    await stage.timers.advance(34)
    assert worker.orders[-1].canary


async def test_news_of_an_earlier_round_is_no_news() -> None:
    """A session that broke before the outage was over does not end the drain."""
    stage = Stage()
    worker = NotingFollower()
    stage.board.follow(KEY, worker)
    await stage.start()
    stale = Experience(next_hop=KEY, event=Event.LOST, round=0, why="long ago")
    stage.board.tell(worker, stale)
    assert stage.view().state is State.CANARY


async def test_only_the_canary_proves() -> None:
    """Nobody else's delivery lets the drain begin."""
    stage = Stage()
    first, second = NotingFollower(), NotingFollower()
    stage.board.follow(KEY, first)
    stage.board.follow(KEY, second)
    await stage.start()
    stage.tell(second, Event.PROVEN)
    assert stage.view().state is State.CANARY
    stage.tell(first, Event.PROVEN)
    assert stage.view().state is State.DRAINING


async def test_refusals_are_counted_over_all_workers() -> None:
    """Three here and two there are five."""
    stage = Stage()
    first, second = NotingFollower(), NotingFollower()
    stage.board.follow(KEY, first)
    stage.board.follow(KEY, second)
    await stage.start()
    stage.tell(first, Event.PROVEN, delivered=1)
    for _ in range(3):
        stage.tell(first, None, refused=1, why="550 5.1.1 no")
    stage.tell(second, None, refused=1, why="550 5.1.1 no")
    assert stage.view().state is State.DRAINING
    stage.tell(second, None, refused=1, why="550 5.1.1 no")
    assert first.state() is second.state() is State.SURGE_STOPPED
    assert "5 of the last 6 replies" in stage.view().why


async def test_a_listener_that_fails_stops_nothing() -> None:
    """Who only watches cannot hurt."""
    stage = Stage()
    seen: list[State] = []

    def broken(view: NextHopView) -> None:
        raise RuntimeError("a bug")

    stage.board.watch(broken)
    stage.board.watch(lambda view: seen.append(view.state))
    await stage.start()
    assert seen == [State.CANARY]


@pytest.mark.parametrize(
    ("failure", "state"), [(unreachable(), State.DOWN), (refusing(554), State.BLOCKED)]
)
async def test_states_are_known_to_others(failure: Exception, state: State) -> None:
    """By key and by domain; what is unknown is None."""
    stage = Stage()
    stage.connector.peer(PRIMARY).down(failure)  # type: ignore[arg-type]
    await stage.start()
    found = stage.board.of_domain("example.com")
    assert found is not None
    assert found.state is state
    assert not found.takes_mail
    assert stage.board.of_domain("elsewhere.example") is None
    assert [view.next_hop for view in stage.board.all_states()] == [KEY]


# --------------------------------------------------------------------------- over a restart

PATHS: dict[State, tuple[Event, ...]] = {
    State.SUSPECT: (),
    State.CANARY: (Event.GREETED,),
    State.DRAINING: (Event.GREETED, Event.PROVEN),
    State.UP: (Event.GREETED, Event.PROVEN, Event.DRAINED),
    State.DOWN: (Event.LOST,),
    State.BLOCKED: (Event.GREETED, Event.REFUSED),
    State.HELD: (Event.NO_WAY,),
    State.SURGE_STOPPED: (Event.GREETED, Event.PROVEN, Event.SURGE),
    State.SUSPENDED: (Event.GREETED, Event.PAUSE),
}


@pytest.mark.parametrize("state", State)
async def test_killed_in_every_state(tmp_path: Path, state: State) -> None:
    """Whatever was written when the process was killed, the next one begins with caution."""
    book = NextHopFile(tmp_path / "nexthops.json")
    stage = Stage(book)
    stage.connector.peer(PRIMARY).probe_gate = asyncio.Event()  # probes tell nothing here
    await stage.start()
    for event in PATHS[state]:
        stage.board._entries[KEY].change(event, f"because of {event}")
        assert await stage.board.saved()  # killed here: nothing else is left of it
        reborn = Stage(book)
        reborn.connector.peer(PRIMARY).probe_gate = asyncio.Event()
        await reborn.start()
        before, after = stage.view(), reborn.view()
        assert after.state not in (State.UP, State.DRAINING, State.CANARY)
        if before.state in (State.SURGE_STOPPED, State.SUSPENDED, State.BLOCKED, State.DOWN):
            assert (after.state, after.since_us, after.why) == (
                before.state,
                before.since_us,
                before.why,
            )
        await reborn.board.stop()
    assert stage.view().state is state
    await stage.board.stop()


async def test_a_damaged_book_is_put_aside(tmp_path: Path) -> None:
    """Nonsense in the file is reported and costs a probe, no more."""
    path = tmp_path / "nexthops.json"
    for damage in (b"", b"{", b"\xff\xfe", b'[{"next_hop": 3}]', b"[" * 10_000):
        path.write_bytes(damage)
        assert NextHopFile(path).load() == ()
        assert not path.exists()
        assert path.with_suffix(".damaged").exists()


async def test_a_book_that_cannot_be_written_stops_nothing() -> None:
    """The operator hears that it is not durable; the next change is written again."""
    book = MemoryBook()
    stage = Stage(book)
    await stage.start()
    book.broken = True
    stage.board.pause([KEY], "works")
    assert not await stage.board.saved()
    assert stage.view().state is State.SUSPENDED
    book.broken = False
    stage.board.resume([KEY], guarded=True)
    await turn_over()
    assert await stage.board.saved()


async def test_health_is_written_only_where_it_tells() -> None:
    """A node whose next hops are up writes nothing."""
    book = MemoryBook()
    stage = Stage(book)
    worker = NotingFollower()
    stage.board.follow(KEY, worker)
    await stage.start()
    stage.tell(worker, Event.DRAINED)
    await stage.board.saved()
    assert book.saves == []
    stage.tell(worker, Event.LOST, why="gone")
    await stage.board.saved()
    (record,) = book.saves[-1]
    assert record.health.state is State.DOWN


def test_the_book_is_what_was_saved_last(tmp_path: Path) -> None:
    """Real file and fake keep the same promise."""
    books: list[NextHopBook] = [NextHopFile(tmp_path / "nexthops.json"), MemoryBook()]
    for book in books:
        assert tuple(book.load()) == ()
        for state in (State.DOWN, State.SUSPENDED):
            record = NextHopRecord(next_hop=KEY, health=Health(state=state, since_us=3, why="ü"))
            book.save([record])
            assert tuple(book.load()) == (record,)


# --------------------------------------------------------------------------- the worker's side


class HandLine:
    """A line to the control process that a test holds in its hands."""

    def __init__(self) -> None:
        self.sent: list[Request] = []
        self.connected = False

    def open(self, *, up, heard, lost) -> None:  # type: ignore[no-untyped-def]
        self._up, self._heard, self._lost = up, heard, lost

    def send(self, message: Request) -> None:
        if self.connected:
            self.sent.append(message)

    async def close(self) -> None:
        pass

    def go_up(self) -> None:
        self.connected = True
        self._up()

    def say(self, reply: Reply) -> None:
        self._heard(reply)

    def break_off(self) -> None:
        self.connected = False
        self._lost()


class Side:
    """A worker's shared states over a line."""

    def __init__(self) -> None:
        self.timers = Timers()
        self.connector = FakeConnector()
        self.line = HandLine()
        line: DrainLine = self.line
        self.shared = SharedStates(
            line,
            connector=self.connector,
            resolver=FakeResolver(),
            clock_us=self.timers.clock_us,
            dice=random.Random(7),
            later=self.timers.later,
        )
        self.shared.set_routes(ROUTES, SETTINGS)
        self.relay = NotingFollower()
        self.shared.start()
        self.shared.follow(KEY, self.relay)

    def order(self, state: State, round_: int = 0) -> None:
        from posthouse.ports_drain import Order

        health = Health(state=state, since_us=1, round=round_)
        self.line.say(Ordered(0, Order(next_hop=KEY, health=health)))


async def test_orders_come_over_the_line() -> None:
    """A relay follows as soon as there is a line, and hears every order."""
    side = Side()
    assert side.relay.orders == []
    side.line.go_up()
    assert side.line.sent == [Follow(0, KEY)]
    side.order(State.UP)
    assert side.relay.state() is State.UP
    view = side.shared.of_domain("example.com")
    assert view is not None
    assert view.state is State.UP
    experience = Experience(next_hop=KEY, delivered=3)
    side.shared.tell(side.relay, experience)
    assert side.line.sent[-1:] == [Told(0, experience)]
    side.line.break_off()
    side.line.go_up()
    assert side.line.sent[-1:] == [Follow(0, KEY, delivering=True)]


async def test_mail_flows_on_without_a_control_process() -> None:
    """The last orders stay in force; after a while the worker decides by itself, and hands back."""
    side = Side()
    side.line.go_up()
    side.order(State.UP)
    count = len(side.relay.orders)
    side.line.break_off()
    await side.timers.advance(ALONE_SECONDS - 1)
    assert len(side.relay.orders) == count
    await side.timers.advance(2)
    assert side.relay.state() is State.UP
    assert side.connector.peer(PRIMARY).probes == 0
    side.connector.peer(PRIMARY).down()
    side.shared.tell(side.relay, Experience(next_hop=KEY, event=Event.LOST, why="refused"))
    assert side.relay.state() is State.DOWN
    side.connector.peer(PRIMARY).up()
    await side.timers.advance(34)
    assert side.relay.state() is State.CANARY
    side.line.go_up()
    side.order(State.SUSPECT)
    assert side.relay.state() is State.SUSPECT
    probes = side.connector.peer(PRIMARY).probes
    await side.timers.advance(300)
    assert side.connector.peer(PRIMARY).probes == probes
    await side.shared.stop()


async def test_a_worker_without_any_control_process_starts_with_caution() -> None:
    """Nothing was ever heard: probe first, then a canary of its own."""
    side = Side()
    await side.timers.advance(ALONE_SECONDS + 0.1)
    assert [order.health.state for order in side.relay.orders][-1] is State.CANARY
    assert side.connector.peer(PRIMARY).probes == 1
    await side.shared.stop()
