"""A worker's line to the control process: a unix socket, one JSON document a line.

Connects again for ever, at first every 20 ms, later twice a second: at the
start of a node, and after the control process was replaced, mail waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from posthouse import observe
from posthouse.ports_drain import MAX_LINE_BYTES, Reply, Request, decode_reply, encode_line

_FIRST_SECONDS: Final = 0.02
_LAST_SECONDS: Final = 0.5
_MAX_BUFFER: Final = 4 << 20
"""Octets a control process that stands still may leave in our hands before the line is cut."""


class UnixDrainLine:
    """See `ports_drain.DrainLine`. path: of the socket; it need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    def open(
        self,
        *,
        up: Callable[[], None],
        heard: Callable[[Reply], None],
        lost: Callable[[], None],
    ) -> None:
        """See `ports_drain.DrainLine`."""
        self._task = asyncio.get_running_loop().create_task(self._run(up, heard, lost))

    def send(self, message: Request) -> None:
        """See `ports_drain.DrainLine`."""
        writer = self._writer
        if writer is None or writer.is_closing():
            return
        writer.write(encode_line(message))
        if writer.transport.get_write_buffer_size() > _MAX_BUFFER:
            writer.transport.abort()

    async def close(self) -> None:
        """See `ports_drain.DrainLine`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(
        self, up: Callable[[], None], heard: Callable[[Reply], None], lost: Callable[[], None]
    ) -> None:
        wait = _FIRST_SECONDS
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(
                    sock=connect_unix_socket(self._path), limit=MAX_LINE_BYTES
                )
            except OSError:
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LAST_SECONDS)
                continue
            self._writer = writer
            try:
                up()
                wait = _FIRST_SECONDS
                while line := await reader.readline():
                    heard(decode_reply(line))
            except (OSError, ValueError) as error:  # cut, or a line over the limit
                observe.note("drain", f"line to the control process: {error}")
            finally:
                self._writer = None
                writer.transport.abort()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            lost()
            await asyncio.sleep(wait)


def connect_unix_socket(path: Path) -> socket.socket:
    """Connect through /proc: a socket address holds 107 octets, little for a path. Raises OSError.

    A unix socket connects or fails at once.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{path.name}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection
