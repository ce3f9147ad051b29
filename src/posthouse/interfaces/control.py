"""The operator's door into one worker: a unix socket that speaks `control_wire`.

Whoever may open the socket may do everything with the queue, so it has mode
0600 in a directory of mode 0700. All the same its input is bounded and timed:
a stuck command must not cost the worker anything but one connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from pathlib import Path
from typing import Final

import msgspec

from posthouse import observe
from posthouse.errors import AddressError, BodyDamaged, StorageError
from posthouse.interfaces.control_wire import (
    MAX_PAGE,
    MAX_REQUEST_BYTES,
    PIECE_BYTES,
    ActRequest,
    BodyRequest,
    Failure,
    ListRequest,
    Moved,
    Page,
    Piece,
    RedirectRequest,
    Reply,
    Request,
    StatusRequest,
    Totals,
    TotalsRequest,
    WorkerStatus,
    decode_request,
    encode_line,
)
from posthouse.mail.address import parse_path
from posthouse.mail.queueid import shard_of
from posthouse.ports_spool import DomainTotals, OperatorAction, QueuedMessage, Selection, Spool
from posthouse.services.redirect import redirect

MAX_CONNECTIONS: Final = 32
# An operator may leave `queue list | less` open at a full screen for a while.
IDLE_SECONDS: Final = 600.0
# Encoding a page stops the mail of its worker: 2,000 rows take a few milliseconds.
MAX_PAGE_RECIPIENTS: Final = 2000


def bind_unix_socket(path: Path) -> socket.socket:
    """Bind a socket of mode 0600; a stale one there is removed. Raises OSError.

    The directory is reached through /proc: a socket address holds 107 octets,
    which is little for a path.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.chmod(path, 0o600)
    except OSError:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener


class ControlDesk:
    """Answers requests from the shards of one worker; knows nothing of sockets."""

    def __init__(
        self,
        spools: Sequence[Spool],
        *,
        clock_us: Callable[[], int],
        status: Callable[[], WorkerStatus],
        moved: Callable[[], None] = lambda: None,
        domains: Callable[[], Collection[str]] = tuple,
        brief: Callable[[], WorkerStatus] | None = None,
    ) -> None:
        """`moved` is called after every change: what rests in memory elsewhere may be stale.

        domains: those backed up now; mail may be redirected to no other.
        """
        self._spools = {spool.shard: spool for spool in spools}
        self._clock_us = clock_us
        self._status = status
        self._brief = brief or status
        self._moved = moved
        self._domains = domains

    def add(self, spool: Spool) -> None:
        """Answer from this shard too, from now on."""
        self._spools[spool.shard] = spool

    async def answer(self, request: Request) -> AsyncGenerator[Reply, None]:
        """Yield the replies to one request; failures are replies too."""
        try:
            match request:
                case ListRequest():
                    yield await self._list(request)
                case BodyRequest(queue_id):
                    async with contextlib.aclosing(self._read_body(queue_id)) as pieces:
                        async for piece in pieces:
                            yield piece
                case ActRequest(selection, action):
                    yield await self._act(selection, action)
                case RedirectRequest(selection, address):
                    yield await self._redirect(selection, address)
                case TotalsRequest():
                    yield await self._count()
                case StatusRequest(brief):
                    yield self._brief() if brief else self._status()
        except KeyError:
            yield Failure("gone", "no such message here")
        except BodyDamaged as error:
            yield Failure("damaged", error.detail)
        except StorageError as error:
            yield Failure("storage", error.detail)

    def _meant(self, selection: Selection) -> list[tuple[Spool, Selection]]:
        """The shards a selection concerns, each with the queue ids that are its own."""
        if not selection.queue_ids:
            return [(spool, selection) for spool in self._spools.values()]
        by_shard: dict[int, list[int]] = {}
        for queue_id in selection.queue_ids:
            by_shard.setdefault(shard_of(queue_id), []).append(queue_id)
        return [
            (spool, msgspec.structs.replace(selection, queue_ids=tuple(by_shard[shard])))
            for shard, spool in self._spools.items()
            if shard in by_shard
        ]

    async def _list(self, request: ListRequest) -> Page:
        limit = max(1, min(request.limit, MAX_PAGE))
        found: list[QueuedMessage] = []
        more = False
        for spool, selection in self._meant(request.selection):
            page = await spool.list_messages(selection, after=request.after, limit=limit)
            more = more or len(page) >= limit
            found += page
        found.sort(key=lambda message: message.queue_id)
        count = count_fitting(found[:limit])
        return Page(tuple(found[:count]), more or len(found) > count)

    async def _read_body(self, queue_id: int) -> AsyncGenerator[Piece, None]:
        body = await self._spools[shard_of(queue_id)].open_body(queue_id)
        try:
            while data := await body.read(PIECE_BYTES):
                yield Piece(data, last=False)
            yield Piece(b"", last=True)
        finally:
            body.close()

    async def _act(self, selection: Selection, action: OperatorAction) -> Moved:
        count = 0
        now_us = self._clock_us()
        for spool, meant in self._meant(selection):
            count += await spool.act(meant, action, now_us=now_us)
        observe.note("control", f"operator: {action} moved {count} recipients", action=str(action))
        if count:
            self._moved()
        return Moved(count)

    async def _redirect(self, selection: Selection, address: str) -> Moved | Failure:
        try:
            mailbox = parse_path(address.encode(), utf8=False)
        except AddressError as error:
            return Failure("refused", f"{address} is no address: {error.detail}")
        if mailbox is None or mailbox.domain not in self._domains():
            return Failure("refused", f"{address} is not at a domain this node backs up")
        recipients = failed = 0
        now_us = self._clock_us()
        try:
            for spool, meant in self._meant(selection):
                done = await redirect(spool, meant, mailbox, now_us=now_us, moved=self._moved)
                recipients += done.recipients
                failed += done.failed
        finally:
            self._moved()
        observe.note("control", f"operator: {recipients} recipients redirected to {address}")
        return Moved(recipients, failed)

    async def _count(self) -> Totals:
        found: list[DomainTotals] = []
        for spool in tuple(self._spools.values()):
            found += await spool.totals()
        return Totals(tuple(found))


def count_fitting(messages: Sequence[QueuedMessage]) -> int:
    """How many, one at least, have no more recipients together than a page may have."""
    rows = 0
    for count, message in enumerate(messages):
        rows += len(message.recipients)
        if rows > MAX_PAGE_RECIPIENTS and count:
            return count
    return len(messages)


class ControlDoor:
    """Listens for operators and hands their requests to a desk."""

    def __init__(self, desk: ControlDesk, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._desk = desk
        self._idle_seconds = idle_seconds
        self._sessions: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._path: Path | None = None

    async def open(self, path: Path) -> None:
        """Listen at `path`; a stale socket there is removed. Raises OSError."""
        listener = bind_unix_socket(path)
        self._server = await asyncio.start_unix_server(
            self._greet, sock=listener, limit=MAX_REQUEST_BYTES
        )
        self._path = path

    async def serve(self, connection: socket.socket) -> None:
        """Serve one connection that is open already, until it ends."""
        reader, writer = await asyncio.open_unix_connection(
            sock=connection, limit=MAX_REQUEST_BYTES
        )
        await self._run(reader, writer)

    async def close(self) -> None:
        """Stop listening, cut what is open."""
        if self._server is not None:
            self._server.close()
        for session in self._sessions:
            session.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = asyncio.current_task()
        assert session is not None
        if len(self._sessions) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._sessions.add(session)
        try:
            await self._run(reader, writer)
        except asyncio.CancelledError:
            pass  # `close` cut us; asyncio would report a cancelled callback as an error
        finally:
            self._sessions.discard(session)

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await self._read_line(reader):
                async with contextlib.aclosing(self._answer_line(line)) as replies:
                    async for reply in replies:
                        writer.write(encode_line(reply))
                        async with asyncio.timeout(self._idle_seconds):
                            await writer.drain()
        except (OSError, TimeoutError):
            pass  # the operator went away
        except ValueError:  # a line over the limit
            writer.write(encode_line(Failure("bad_request", "the request is too long")))
        finally:
            writer.close()

    async def _read_line(self, reader: asyncio.StreamReader) -> bytes:
        async with asyncio.timeout(self._idle_seconds):
            return await reader.readline()

    async def _answer_line(self, line: bytes) -> AsyncGenerator[Reply, None]:
        try:
            request = decode_request(line)
        except ValueError as error:  # msgspec's errors are ValueErrors
            yield Failure("bad_request", str(error))
            return
        try:
            async with contextlib.aclosing(self._desk.answer(request)) as replies:
                async for reply in replies:
                    yield reply
        except Exception as error:
            observe.trouble("control", "request failed", error)
            yield Failure("internal", f"{type(error).__name__}: {error}")
