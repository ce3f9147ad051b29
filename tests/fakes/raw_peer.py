"""A peer that is one coroutine over a loopback socket, surely closed when the test is done."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def raw_peer(play: Play, *, limit: int = 1 << 16) -> AsyncIterator[int]:
    """Run `play` for each connection; gives the port. At the end every `play` is waited for.

    A connection that breaks ends its `play` quietly; any other error fails the test.
    limit: octets a reader holds before it stops reading.
    """
    plays: set[asyncio.Task[None]] = set()
    errors: list[BaseException] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        plays.add(task)
        try:
            await play(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as error:
            errors.append(error)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=limit)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.gather(*plays, return_exceptions=True)
    if errors:
        raise errors[0]
