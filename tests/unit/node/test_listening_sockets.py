"""Sockets that the supervisor binds, as the loops that serve on them see them."""

from __future__ import annotations

import asyncio
import socket

from posthouse.config_values import Endpoint
from posthouse.node_sockets import open_listeners


async def test_nothing_waits_for_a_full_packet() -> None:
    """Nagle is off on accepted connections in asyncio's own loop too: answers cost no 40 ms."""
    listeners = open_listeners([Endpoint(address="127.0.0.1", port=0)], 1)
    [listener] = listeners.by_worker[0]
    seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        seen.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    port = listener.getsockname()[1]
    server = await asyncio.start_server(greet, sock=listener)
    async with server:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await seen
        writer.close()
        await writer.wait_closed()
