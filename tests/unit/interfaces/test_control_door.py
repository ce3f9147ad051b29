from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fakes.memory_spool import MemorySpool
from posthouse.interfaces.control import (
    MAX_CONNECTIONS,
    ControlDesk,
    ControlDoor,
    bind_unix_socket,
)
from posthouse.interfaces.control_wire import (
    MAX_PAGE,
    MAX_REQUEST_BYTES,
    ActRequest,
    BodyRequest,
    Failure,
    ListRequest,
    Moved,
    Page,
    Piece,
    Reply,
    Request,
    StatusRequest,
    Totals,
    TotalsRequest,
    WorkerStatus,
    decode_reply,
    encode_line,
)
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.ports_spool import OperatorAction, Selection, State

CLIENT = Client(address="192.0.2.7", port=4711)


async def put(spool: MemorySpool, body: bytes = b"x\r\n", to: str = "bob@example.com") -> int:
    incoming = spool.begin()
    incoming.write(body)
    recipient = Recipient(address=to, domain=to.rpartition("@")[2])
    await spool.commit(
        incoming, envelope=Envelope(sender="a@b.example", recipients=(recipient,)), client=CLIENT
    )
    return incoming.queue_id


class Operator:
    """The other end of a control socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def say(self, line: bytes) -> None:
        self.writer.write(line)
        await self.writer.drain()

    async def hear(self) -> Reply:
        return decode_reply(await self.reader.readline())

    async def ask(self, request: Request) -> Reply:
        await self.say(encode_line(request))
        return await self.hear()


class Worker:
    """A control door over two shards in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spools = [MemorySpool(0), MemorySpool(2)]
        self.moves = 0
        desk = ControlDesk(
            self.spools,
            clock_us=lambda: 1_800_000_000_000_000,
            status=lambda: WorkerStatus(pid=7, shards=(0, 2)),
            moved=self._count,
        )
        self.door = ControlDoor(desk, idle_seconds=30)

    def _count(self) -> None:
        self.moves += 1

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Operator]:
        reader, writer = await asyncio.open_unix_connection(self.path, limit=1 << 26)
        try:
            yield Operator(reader, writer)
        finally:
            writer.close()


@pytest.fixture(name="worker")
async def make_worker(tmp_path: Path) -> AsyncIterator[Worker]:
    worker = Worker(tmp_path / "control.sock")
    await worker.door.open(worker.path)
    yield worker
    await worker.door.close()


async def test_pages_follow_each_other_over_all_shards(worker: Worker) -> None:
    """Paging shows every message of every shard once, oldest first."""
    ids = [await put(worker.spools[number % 2]) for number in range(7)]
    seen: list[int] = []
    async with worker.connect() as operator:
        more = True
        while more:
            page = await operator.ask(ListRequest(after=seen[-1] if seen else None, limit=3))
            assert isinstance(page, Page)
            seen += [message.queue_id for message in page.messages]
            more = page.more and bool(page.messages)
    assert seen == sorted(ids)


async def test_a_page_is_bounded_whatever_is_asked(worker: Worker) -> None:
    """A request cannot make a page longer than the limit."""
    for _ in range(MAX_PAGE + 1):
        await put(worker.spools[0])
    async with worker.connect() as operator:
        page = await operator.ask(ListRequest(limit=10**9))
    assert isinstance(page, Page)
    assert (len(page.messages), page.more) == (MAX_PAGE, True)


async def test_a_body_comes_whole_in_pieces(worker: Worker) -> None:
    """A body of any octets arrives as stored, its end marked."""
    body = os.urandom(700_000)
    queue_id = await put(worker.spools[1], body)
    got = b""
    async with worker.connect() as operator:
        await operator.say(encode_line(BodyRequest(queue_id)))
        while True:
            piece = await operator.hear()
            assert isinstance(piece, Piece)
            got += piece.data
            if piece.last:
                break
    assert got == body


async def test_a_damaged_body_ends_with_a_failure(worker: Worker) -> None:
    """A body that does not match its checksum never looks complete."""
    queue_id = await put(worker.spools[0], b"x" * 600_000)
    worker.spools[0].damage_body(queue_id)
    async with worker.connect() as operator:
        await operator.say(encode_line(BodyRequest(queue_id)))
        replies = [await operator.hear()]
        while isinstance(replies[-1], Piece):
            replies.append(await operator.hear())
    assert not any(isinstance(reply, Piece) and reply.last for reply in replies)
    assert isinstance(replies[-1], Failure)
    assert replies[-1].kind == "damaged"


@pytest.mark.parametrize("queue_id", [0x100, 0x105])
async def test_a_message_that_is_gone_is_told(worker: Worker, queue_id: int) -> None:
    """An id that is unknown, or of another worker's shard, is answered "gone"."""
    async with worker.connect() as operator:
        reply = await operator.ask(BodyRequest(queue_id))
    assert isinstance(reply, Failure)
    assert reply.kind == "gone"


async def test_moves_are_counted_and_told_to_the_relay(worker: Worker) -> None:
    """An operator's move reaches every shard it concerns, and the relay hears of it."""
    ids = [await put(spool) for spool in worker.spools]
    async with worker.connect() as operator:
        held = await operator.ask(
            ActRequest(Selection(queue_ids=(ids[1], 0x1FF)), OperatorAction.HOLD)
        )
        page = await operator.ask(ListRequest(Selection(state=State.HELD)))
        freed = await operator.ask(ActRequest(Selection(), OperatorAction.RELEASE))
        nobody = await operator.ask(
            ActRequest(Selection(recipient="x@example.com"), OperatorAction.DELETE)
        )
    assert (held, freed, nobody) == (Moved(1), Moved(1), Moved(0))
    assert isinstance(page, Page)
    assert [message.queue_id for message in page.messages] == [ids[1]]
    assert worker.moves == 2


async def test_totals_and_status(worker: Worker) -> None:
    """Counts come from all shards; status is what the worker says of itself."""
    for spool in worker.spools:
        await put(spool)
    async with worker.connect() as operator:
        totals = await operator.ask(TotalsRequest())
        status = await operator.ask(StatusRequest())
    assert isinstance(totals, Totals)
    assert [(row.domain, row.queued) for row in totals.domains] == [("example.com", 1)] * 2
    assert status == WorkerStatus(pid=7, shards=(0, 2))


@pytest.mark.parametrize(
    "line",
    [b"\n", b"{}\n", b"[]\n", b'{"type":"steal"}\n', b'{"type":"list","x":1}\n', b"\xff\xfe\n",
     b'{"type":"act","selection":{},"action":"burn"}\n'],
)  # fmt: skip
async def test_nonsense_gets_an_answer(worker: Worker, line: bytes) -> None:
    """What is no request is answered so, and the connection stays usable."""
    async with worker.connect() as operator:
        await operator.say(line)
        reply = await operator.hear()
        assert isinstance(reply, Failure)
        assert reply.kind == "bad_request"
        assert isinstance(await operator.ask(StatusRequest()), WorkerStatus)


async def test_an_endless_request_is_cut(worker: Worker) -> None:
    """A line beyond the limit ends the connection; others are served on."""
    async with worker.connect() as endless, worker.connect() as operator:
        with contextlib.suppress(OSError):
            while True:
                await endless.say(b"x" * MAX_REQUEST_BYTES)
        assert isinstance(await operator.ask(StatusRequest()), WorkerStatus)


async def test_a_silent_operator_is_cut(tmp_path: Path) -> None:
    """A connection that says nothing is closed after a while."""
    worker = Worker(tmp_path / "control.sock")
    worker.door = ControlDoor(worker.door._desk, idle_seconds=0.05)
    await worker.door.open(worker.path)
    async with worker.connect() as operator:
        assert await operator.reader.read() == b""
    await worker.door.close()


async def test_connections_are_bounded(worker: Worker) -> None:
    """One too many is closed at once, the others are served."""
    async with contextlib.AsyncExitStack() as stack:
        operators = [
            await stack.enter_async_context(worker.connect()) for _ in range(MAX_CONNECTIONS)
        ]
        for operator in operators:
            assert isinstance(await operator.ask(StatusRequest()), WorkerStatus)
        late = await stack.enter_async_context(worker.connect())
        assert await late.reader.read() == b""
        assert isinstance(await operators[0].ask(StatusRequest()), WorkerStatus)


async def test_only_the_owner_may_open_the_socket(worker: Worker) -> None:
    """The socket has mode 0600."""
    assert stat.S_IMODE(worker.path.stat().st_mode) == 0o600


async def test_a_stale_socket_and_a_long_path_do_no_harm(tmp_path: Path) -> None:
    """A socket left by a crash is replaced, however deep the directory lies."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    path = deep / "control.sock"
    bind_unix_socket(path).close()
    worker = Worker(path)
    await worker.door.open(path)
    assert stat.S_ISSOCK(path.stat().st_mode)
    await worker.door.close()
    assert not path.exists()


async def test_a_connection_that_is_handed_over_is_served_to_its_end(tmp_path: Path) -> None:
    """`serve` answers over a socket pair and returns when the other end closes."""
    worker = Worker(tmp_path / "unused")
    ours, theirs = socket.socketpair()
    serving = asyncio.ensure_future(worker.door.serve(theirs))
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    assert isinstance(await Operator(reader, writer).ask(StatusRequest()), WorkerStatus)
    writer.close()
    await serving
