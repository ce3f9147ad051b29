"""What a worker says while the shard that takes its mail cannot be opened: come again later.

The kernel deals connections out to all workers, this one too, and a client that
is greeted by nobody waits for minutes; 421 sends it to another try at once
(RFC 5321 §3.8).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from posthouse.interfaces.control import ControlDesk, ControlDoor
from posthouse.interfaces.control_wire import WorkerStatus
from posthouse.node_process import clock_us


class _Refusal(asyncio.Protocol):
    def __init__(self, reply: bytes) -> None:
        self._reply = reply

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writer = cast(asyncio.Transport, transport)
        writer.write(self._reply)
        writer.close()


class TurnAway:
    """Answers clients with 421 and operators with what is wrong."""

    def __init__(self, hostname: str) -> None:
        self._reply = f"421 4.3.0 {hostname} Service not available, try again later\r\n".encode()
        self._servers: list[asyncio.Server] = []
        self._control: ControlDoor | None = None

    async def open(
        self, listeners: Sequence[socket.socket], path: Path, status: Callable[[], WorkerStatus]
    ) -> None:
        """Listen; path: the control socket. The listeners stay their owner's. Raises OSError."""
        loop = asyncio.get_running_loop()
        for listener in listeners:
            server = await loop.create_server(lambda: _Refusal(self._reply), sock=listener.dup())
            self._servers.append(server)
        self._control = ControlDoor(ControlDesk([], clock_us=clock_us, status=status))
        await self._control.open(path)

    async def close(self) -> None:
        """Stop answering."""
        for server in self._servers:
            server.close()
        if self._control is not None:
            await self._control.close()
