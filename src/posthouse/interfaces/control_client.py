"""Asks the control desks of the workers from inside the node, without blocking.

One connection for each question: a worker that was replaced is found by its
name, and one that hangs costs the asker no more than its patience.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from posthouse.interfaces.control_wire import (
    MAX_PAGE,
    MAX_REPLY_BYTES,
    ActRequest,
    Failure,
    ListRequest,
    Moved,
    Page,
    Request,
    StatusRequest,
    Totals,
    TotalsRequest,
    WorkerStatus,
    decode_reply,
    encode_line,
)
from posthouse.ports_spool import DomainTotals, OperatorAction, QueuedMessage, Selection, State

PATIENCE_SECONDS: Final = 10.0
LISTING_SECONDS: Final = 120.0

R = TypeVar("R", Moved, Page, Totals, WorkerStatus)


class DeskSilent(Exception):
    """The worker does not answer, or not what was asked."""


class WorkerDesk:
    """The desk of one worker, by the path of its socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def status(self) -> WorkerStatus:
        """How the worker is, briefly. Raises DeskSilent."""
        return await self._ask(StatusRequest(brief=True), WorkerStatus, PATIENCE_SECONDS)

    async def totals(self) -> tuple[DomainTotals, ...]:
        """Counts by domain and shard. Raises DeskSilent."""
        return (await self._ask(TotalsRequest(), Totals, LISTING_SECONDS)).domains

    async def act(self, selection: Selection, action: OperatorAction) -> int:
        """Move what `selection` means; returns how many recipients. Raises DeskSilent."""
        return (await self._ask(ActRequest(selection, action), Moved, LISTING_SECONDS)).recipients

    async def list_held(self) -> AsyncIterator[QueuedMessage]:
        """Messages with their recipients on hold, by ascending queue id. Raises DeskSilent."""
        selection = Selection(state=State.HELD)
        after: int | None = None
        while True:
            request = ListRequest(selection, after, MAX_PAGE)
            page = await self._ask(request, Page, LISTING_SECONDS)
            for message in page.messages:
                yield message
            if not page.more or not page.messages:
                return
            after = page.messages[-1].queue_id

    async def _ask(self, request: Request, kind: type[R], seconds: float) -> R:
        try:
            async with asyncio.timeout(seconds):
                line = await self._exchange(encode_line(request))
            reply = decode_reply(line)
        except (OSError, TimeoutError, ValueError, asyncio.LimitOverrunError) as error:
            raise DeskSilent(f"{self._path.name}: {error or type(error).__name__}") from error
        except msgspec.MsgspecError as error:
            raise DeskSilent(f"{self._path.name}: {error}") from error
        if isinstance(reply, Failure):
            raise DeskSilent(f"{self._path.name}: {reply.kind}: {reply.text}")
        if not isinstance(reply, kind):
            raise DeskSilent(f"{self._path.name}: answered something else")
        return reply

    async def _exchange(self, line: bytes) -> bytes:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        # Through /proc: a socket address holds 107 octets, which is little for a path.
        holder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{holder}/{self._path.name}")
        except OSError:  # also when its backlog is full: asked again soon
            connection.close()
            raise
        finally:
            os.close(holder)
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MAX_REPLY_BYTES)
        try:
            writer.write(line)
            return await reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            raise OSError("the worker went away") from error
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
