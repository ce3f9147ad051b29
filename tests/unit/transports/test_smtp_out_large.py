"""Large messages and messages on disk: in pieces, under back-pressure, damaged."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Sequence

import pytest

from fakes.raw_peer import raw_peer
from fakes.scripted_peer import STALL, ScriptedPeer
from fakes.stored_body import StoredBody
from fakes.work_source import ListSource, make_transaction
from posthouse.errors import BodyDamaged, StorageBroken
from posthouse.ports_relay import RecipientResult, Target, Transaction
from posthouse.ports_spool import Body
from posthouse.transports.smtp_out import OutSettings, SmtpConnector
from posthouse.transports.smtp_out_work import PIECE_BYTES

LINE = b".a line that begins with a dot and ends soon\r\n"
MANNERS = [(), ("PIPELINING",), ("CHUNKING",), ("PIPELINING", "CHUNKING")]


class Disk:
    """What `open_body` finds, by queue id; an exception is raised instead."""

    def __init__(self) -> None:
        self.bodies: dict[int, StoredBody | Exception] = {}

    async def open_body(self, queue_id: int) -> Body:
        found = self.bodies.get(queue_id, KeyError(queue_id))
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def connector(disk: Disk) -> AsyncIterator[SmtpConnector]:
    made = SmtpConnector(OutSettings(helo_name="mx2.example.net"), disk.open_body)
    yield made
    await made.close()


def target_of(peer: ScriptedPeer) -> Target:
    return Target("peer.example", peer.host, peer.port)


@pytest.mark.parametrize("extensions", MANNERS, ids=str)
async def test_messages_on_disk_arrive_as_they_are(
    connector: SmtpConnector, disk: Disk, extensions: tuple[str, ...]
) -> None:
    """Small, large and in-memory messages take turns in one session, every octet exact."""
    large = LINE * (2 * PIECE_BYTES // len(LINE) + 7)
    edge = b"y" * (PIECE_BYTES - 1) + b"\r\n.\r\n"  # CRLF and dot on both sides of a cut
    stored = {2: b"small\r\n", 3: large, 5: edge, 6: b"", 8: b"z" * (PIECE_BYTES - 2) + b"\r\n"}
    disk.bodies.update({k: StoredBody(v) for k, v in stored.items()})
    expected = {1: b"first\r\n", **stored, 4: large + b"in memory\r\n", 7: b"last\r\n"}
    source = ListSource(
        make_transaction(
            queue_id=k,
            sender=f"{k}@x.example",
            body=None if k in stored else expected[k],
            size_bytes=len(expected[k]),
        )
        for k in sorted(expected)
    )
    async with ScriptedPeer(extensions=extensions) as peer:
        session = await connector.connect(target_of(peer), source)
        await source.wait_outcomes(len(expected))
        assert {m.sender: m.content for m in peer.messages} == {
            f"{k}@x.example": v for k, v in expected.items()
        }
        session.quit()
        assert (await session.wait_end()).failure is None
    assert {
        k: b.closed for k, b in disk.bodies.items() if isinstance(b, StoredBody)
    } == dict.fromkeys(stored, 1)


@pytest.mark.parametrize("extensions", MANNERS, ids=str)
@pytest.mark.parametrize("what", ["damaged", "too short", "too long"])
async def test_a_damaged_message_is_never_ended(
    connector: SmtpConnector, disk: Disk, extensions: tuple[str, ...], what: str
) -> None:
    """Found damaged half-way, the message is cut off: the peer takes nothing of it."""
    octets = LINE * (3 * PIECE_BYTES // len(LINE))
    disk.bodies[1] = {
        "damaged": StoredBody(octets, damaged_at=2 * PIECE_BYTES),
        "too short": StoredBody(octets[:-100], size=len(octets)),
        "too long": StoredBody(octets + LINE, size=len(octets)),
    }[what]
    source = ListSource([make_transaction(body=None, size_bytes=len(octets))])
    async with ScriptedPeer(extensions=extensions) as peer:
        session = await connector.connect(target_of(peer), source)
        end = await session.wait_end()
        [[result]] = source.finished_with.values()
        assert (result.code, result.stage) == (554, "damaged")
        assert result.text.startswith("damaged: ")
        assert end.failure is None  # the next hop did nothing wrong
    assert peer.messages == []
    assert "." not in peer.commands


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (KeyError(1), "the message is gone"),
        (StorageBroken("read: Input/output error"), "storage: read: Input/output error"),
        (RuntimeError("odd"), "internal error: RuntimeError('odd')"),
    ],
)
async def test_a_message_that_cannot_be_opened_comes_back(
    connector: SmtpConnector, disk: Disk, found: StoredBody | Exception, why: str
) -> None:
    """Trouble before anything was sent costs that message only: the session goes on."""
    disk.bodies[1] = found
    source = ListSource([make_transaction(body=None, queue_id=1), make_transaction(queue_id=2)])
    async with ScriptedPeer() as peer:
        session = await connector.connect(target_of(peer), source)
        await source.wait_outcomes(2)
        assert source.returned_with == {1: (why, False)}
        assert list(source.finished_with) == [2]
        session.quit()
        await session.wait_end()
        assert peer.connections == 1


@pytest.mark.parametrize(
    "found", [BodyDamaged("no such segment"), StoredBody(b"x" * 10, damaged_at=0)]
)
async def test_a_message_found_damaged_at_once_is_told(
    connector: SmtpConnector, disk: Disk, found: StoredBody | Exception
) -> None:
    """A damaged message is never offered, its recipients are told so, and the session goes on."""
    disk.bodies[1] = found
    source = ListSource([make_transaction(body=None, queue_id=1), make_transaction(queue_id=2)])
    async with ScriptedPeer() as peer:
        session = await connector.connect(target_of(peer), source)
        await source.wait_outcomes(2)
        assert [result.stage for result in source.finished_with[1]] == ["damaged"]
        assert [result.code for result in source.finished_with[2]] == [250]
        session.quit()
        await session.wait_end()
        assert peer.connections == 1


async def test_refused_recipients_close_the_body(connector: SmtpConnector, disk: Disk) -> None:
    """A large message nobody takes is not read on, and not left open."""
    large = LINE * (2 * PIECE_BYTES // len(LINE))
    disk.bodies[1] = body = StoredBody(large)
    disk.bodies[2] = other = StoredBody(large)
    source = ListSource(
        [
            make_transaction(body=None, size_bytes=len(large)),
            make_transaction(body=None, size_bytes=10**9, queue_id=2),
        ]
    )
    async with ScriptedPeer({"RCPT": "550 5.1.1 no"}) as peer:
        await connector.connect(target_of(peer), source)
        await source.wait_outcomes(2)
    assert (body.closed, other.closed) == (1, 1)
    assert body.at <= PIECE_BYTES
    assert [r[0].stage for r in source.finished_with.values()] == ["rcpt", "local"]


async def test_gone_while_a_message_is_on_its_way(connector: SmtpConnector, disk: Disk) -> None:
    """The peer vanishes in mid-message: the message comes back, the body is closed."""
    large = LINE * (80 * PIECE_BYTES // len(LINE))  # more than the sockets' buffers hold
    disk.bodies[1] = body = StoredBody(large)
    source = ListSource([make_transaction(body=None, size_bytes=len(large))])

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        await reader.readline()
        writer.write(b"250-p\r\n250 PIPELINING\r\n")
        await reader.readuntil(b"DATA\r\n")
        writer.write(b"250 ok\r\n250 ok\r\n354 go\r\n")
        await reader.readexactly(PIECE_BYTES)
        writer.transport.abort()

    async with raw_peer(play, limit=1 << 10) as port:
        session = await connector.connect(Target("p.example", "127.0.0.1", port), source)
        assert (await session.wait_end()).failure is not None
        [(_, after_dot)] = source.returned_with.values()
        assert not after_dot
        assert body.closed == 1


async def test_a_peer_that_stops_reading_is_left(disk: Disk) -> None:
    """A peer that takes no octet for the data block time-out is given up, with little in memory."""
    octets = LINE * (40 * PIECE_BYTES // len(LINE))
    disk.bodies[1] = body = StoredBody(octets)
    source = ListSource([make_transaction(body=None, size_bytes=len(octets))])
    connector = SmtpConnector(
        OutSettings(helo_name="mx2.example.net", data_block_timeout=0.3), disk.open_body
    )
    gone = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        await reader.readline()
        writer.write(b"250-p\r\n250 PIPELINING\r\n")
        await reader.readuntil(b"DATA\r\n")
        writer.write(b"250 ok\r\n250 ok\r\n354 go\r\n")
        await gone.wait()  # the stream's own limit stops reading
        writer.transport.abort()

    async with raw_peer(play, limit=1 << 10) as port:
        session = await connector.connect(Target("p.example", "127.0.0.1", port), source)
        end = await session.wait_end()
        assert end.failure == "timed out waiting for the peer to read"
        assert body.closed == 1
        assert body.at < len(octets)
        gone.set()


class _Endless:
    """A large body that is made while it is read, so that only the sender's memory counts."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._left = size_bytes
        self._block = LINE * (PIECE_BYTES // len(LINE) + 1)

    async def read(self, limit: int) -> bytes:
        piece = self._block[: min(limit, self._left, PIECE_BYTES)]
        self._left -= len(piece)
        return piece

    def close(self) -> None:
        pass


@pytest.mark.parametrize("extensions", [("PIPELINING",), ("PIPELINING", "CHUNKING")], ids=str)
async def test_fifty_megabytes_pass_in_little_memory(extensions: tuple[str, ...]) -> None:
    """A 50 MB message needs less than 10 MiB, the receiving side of this test included."""
    size = 50_000_000

    async def open_body(queue_id: int) -> Body:
        return _Endless(size)

    source = ListSource([make_transaction(body=None, size_bytes=size)])
    connector = SmtpConnector(OutSettings(helo_name="mx2.example.net"), open_body)
    read = 0

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal read
        writer.write(b"220 hi\r\n")
        await reader.readline()
        lines = [b"p", *(e.encode() for e in extensions)]
        writer.write(b"".join(b"250-%b\r\n" % e for e in lines[:-1]) + b"250 %b\r\n" % lines[-1])
        if "CHUNKING" in extensions:
            await reader.readuntil(b"RCPT TO:<user@example.com>\r\n")
            writer.write(b"250 ok\r\n250 ok\r\n")
            await reader.readline()
            while read < size:
                read += len(await reader.read(1 << 16))
        else:
            await reader.readuntil(b"DATA\r\n")
            writer.write(b"250 ok\r\n250 ok\r\n354 go\r\n")
            tail = b""
            while not tail.endswith(b"\r\n.\r\n"):
                piece = await reader.read(1 << 16)
                read += len(piece)
                tail = (tail + piece)[-5:]
        writer.write(b"250 taken\r\n")
        await reader.readline()

    async with raw_peer(play) as port:
        tracemalloc.start()
        session = await connector.connect(Target("p.example", "127.0.0.1", port), source)
        await source.wait_outcomes(1)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        session.quit()
        await session.wait_end()
        assert source.finished_with[1][0].code == 250
        assert read >= size
        assert peak < 10 * 1024 * 1024


async def test_quit_while_a_message_is_opened(disk: Disk) -> None:
    """A message that was taken before `quit` is still sent."""
    opening = asyncio.Event()
    go_on = asyncio.Event()

    async def open_body(queue_id: int) -> Body:
        opening.set()
        await go_on.wait()
        return StoredBody(b"late\r\n")

    connector = SmtpConnector(OutSettings(helo_name="mx2.example.net"), open_body)
    source = ListSource([make_transaction(body=None)])
    async with ScriptedPeer() as peer:
        session = await connector.connect(target_of(peer), source)
        await opening.wait()
        assert session.idle_since() is None
        session.quit()
        go_on.set()
        assert (await session.wait_end()).failure is None
        assert [m.content for m in peer.messages] == [b"late\r\n"]


async def test_lost_while_a_message_is_opened(disk: Disk) -> None:
    """A message that was being opened when the session broke comes back."""
    opening = asyncio.Event()
    go_on = asyncio.Event()
    body = StoredBody(b"late\r\n")

    async def open_body(queue_id: int) -> Body:
        opening.set()
        await go_on.wait()
        return body

    connector = SmtpConnector(OutSettings(helo_name="mx2.example.net"), open_body)
    source = ListSource([make_transaction(body=None)])
    async with ScriptedPeer({"MAIL": STALL}) as peer:
        session = await connector.connect(target_of(peer), source)
        await opening.wait()
        await peer.stop()
        go_on.set()
        await session.wait_end()
    assert source.returned_with == {1: ("session ended", False)}
    assert body.closed == 1


class _Both(ListSource):
    """Tells when two outcomes came, for one queue id or two."""

    def __init__(self, transactions: list[Transaction]) -> None:
        super().__init__(transactions)
        self.results: list[RecipientResult] = []
        self.both = asyncio.Event()

    def finished(self, transaction: Transaction, results: Sequence[RecipientResult]) -> None:
        self.results.extend(results)
        if len(self.results) == 2:
            self.both.set()


async def test_one_message_for_two_domains_at_once(connector: SmtpConnector) -> None:
    """A large message that goes as two transactions of one session arrives twice, whole."""
    body = LINE * (2 * PIECE_BYTES // len(LINE))
    source = _Both([make_transaction(f"u@{d}.example", body=body) for d in "ab"])
    async with ScriptedPeer() as peer:
        session = await connector.connect(target_of(peer), source)
        await source.both.wait()
        assert [m.recipients for m in peer.messages] == [("u@a.example",), ("u@b.example",)]
        assert [m.content for m in peer.messages] == [body, body]
        assert [result.code for result in source.results] == [250, 250]
        session.quit()
        assert (await session.wait_end()).failure is None
