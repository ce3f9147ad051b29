"""Sockets for programs beside us: Unix or loopback, a bounded number of connections, one duty each.

What Postfix and its kind ask is asked over a connection that stays open for as
long as their process lives, so an idle one is not closed soon. Whoever may
open the socket is decided by its directory; it has no other guard.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from posthouse import observe
from posthouse.interfaces.control import bind_unix_socket

MAX_CONNECTIONS: Final = 1000  # Postfix: default_process_limit 100; each smtpd has one
IDLE_SECONDS: Final = 600.0  # smtpd leaves after max_idle (100 s) itself
WRITE_SECONDS: Final = 30.0
READ_BYTES: Final = 65_536

Duty = Callable[["Line"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where to listen: a path of a Unix socket, or a host (IP text) and a port."""

    path: Path | None = None
    host: str = ""
    port: int = 0


class Line:
    """One open connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, idle_seconds: float
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._idle_seconds = idle_seconds

    async def read(self) -> bytes:
        """What came, b"" at the end. Raises TimeoutError, OSError."""
        async with asyncio.timeout(self._idle_seconds):
            return await self._reader.read(READ_BYTES)

    async def write(self, data: bytes) -> None:
        """Raises TimeoutError, OSError."""
        if data:
            self._writer.write(data)
            async with asyncio.timeout(WRITE_SECONDS):
                await self._writer.drain()


class LocalDoor:
    """Listens at any number of places and gives each connection to `duty`."""

    def __init__(
        self,
        name: str,
        duty: Duty,
        *,
        idle_seconds: float = IDLE_SECONDS,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """name: for the log."""
        self._name = name
        self._duty = duty
        self._idle_seconds = idle_seconds
        self._max_connections = max_connections
        self._servers: list[asyncio.Server] = []
        self._paths: list[Path] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, place: Place) -> int:
        """Listen; returns the port (0 for a Unix socket). Raises OSError.

        A Unix socket has mode 0666: who may reach it is decided by its directory. A stale
        one is removed; one that somebody answers at is an error.
        """
        if place.path is None:
            server = await asyncio.start_server(self._greet, place.host, place.port)
            port: int = server.sockets[0].getsockname()[1]
        else:
            server = await asyncio.start_unix_server(self._greet, sock=_bind(place.path))
            self._paths.append(place.path)
            port = 0
        self._servers.append(server)
        return port

    async def close(self) -> None:
        """Stop listening, cut what is open."""
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for path in self._paths:
            with contextlib.suppress(OSError):
                path.unlink()
        self._servers, self._paths = [], []

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= self._max_connections:
            writer.close()
            return
        self._tasks.add(task)
        try:
            await self._duty(Line(reader, writer, self._idle_seconds))
        except (OSError, TimeoutError):
            pass  # the peer went away, or was silent for long
        except asyncio.CancelledError:
            pass  # `close` cut us; asyncio would report a cancelled callback as an error
        except Exception as error:
            observe.trouble(self._name, "a connection failed", error)
        finally:
            self._tasks.discard(task)
            writer.close()


def _bind(path: Path) -> socket.socket:
    if path.is_socket():
        # Through /proc: a socket address holds 107 octets, which is little for a path.
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(f"/proc/self/fd/{directory}/{path.name}") == 0:
                    raise OSError(f"{path}: another process listens there")
        finally:
            os.close(directory)
    listener = bind_unix_socket(path)
    try:
        path.chmod(0o666)
    except OSError:
        listener.close()
        raise
    return listener
