"""Asking the desks of workers from inside the node."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fakes.memory_spool import MemorySpool
from posthouse.interfaces.control import ControlDesk, ControlDoor
from posthouse.interfaces.control_client import DeskSilent, WorkerDesk
from posthouse.interfaces.control_wire import WorkerStatus
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.ports_spool import OperatorAction, Selection


async def fill(spool: MemorySpool, count: int) -> None:
    for number in range(count):
        incoming = spool.begin()
        incoming.write(b"x")
        envelope = Envelope(
            sender="",
            recipients=(Recipient(address=f"u{number}@example.com", domain="example.com"),),
        )
        await spool.commit(incoming, envelope=envelope, client=Client(address="192.0.2.1", port=1))


async def test_status_totals_and_held_mail(tmp_path: Path) -> None:
    """Briefly where that is enough; held mail page by page."""
    spool = MemorySpool()
    await fill(spool, 1203)
    await spool.act(Selection(), OperatorAction.HOLD, now_us=1)
    await fill(spool, 2)
    door = ControlDoor(
        ControlDesk(
            [spool],
            clock_us=lambda: 1,
            status=lambda: WorkerStatus(pid=1, shards=(0,)),
            brief=lambda: WorkerStatus(pid=2, shards=(0,)),
        )
    )
    path = tmp_path / "worker-0.sock"
    await door.open(path)
    try:
        desk = WorkerDesk(path)
        assert (await desk.status()).pid == 2
        (row,) = await desk.totals()
        assert (row.queued, row.held) == (2, 1203)
        held = [message.queue_id async for message in desk.list_held()]
        assert len(set(held)) == len(held) == 1203
    finally:
        await door.close()


async def test_a_worker_that_does_not_answer(tmp_path: Path) -> None:
    """No socket, a socket nobody serves, one that hangs up or talks nonsense: DeskSilent."""
    path = tmp_path / "worker-0.sock"
    desk = WorkerDesk(path)
    with pytest.raises(DeskSilent):
        await desk.status()
    for answer in (b"", b"nonsense\n", b'{"type":"moved","recipients":1}\n'):
        server = await asyncio.start_unix_server(_answering(answer), path)
        try:
            with pytest.raises(DeskSilent):
                await desk.status()
        finally:
            server.close()
            await server.wait_closed()
            path.unlink()


def _answering(octets: bytes):  # type: ignore[no-untyped-def]
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(octets)
        writer.close()

    return answer
