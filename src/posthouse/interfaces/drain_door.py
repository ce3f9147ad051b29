"""The control process's door for states of next hops: relays follow, the operator acts.

Whoever may open the socket is the node itself or its operator: it has mode 0600
in a directory of mode 0700. All the same lines are bounded, and one who does
not read is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from posthouse import observe
from posthouse.interfaces.control import bind_unix_socket
from posthouse.ports_drain import (
    MAX_LINE_BYTES,
    Follow,
    Follower,
    Leave,
    NextHopAuthority,
    Order,
    Ordered,
    Pause,
    Reply,
    Request,
    Resume,
    Retry,
    Show,
    Shown,
    Told,
    decode_request,
    encode_line,
)

MAX_CONNECTIONS: Final = 1024
_MAX_BUFFER: Final = 16 << 20  # orders for one who does not read: a worker that is stopped


class Board(NextHopAuthority, Protocol):
    """Who decides, for the operator too; `services.nexthops.NextHopBoard` is one."""

    def follow(self, next_hop: str, follower: Follower, *, delivering: bool = False) -> None: ...

    def pause(self, next_hops: Sequence[str], why: str) -> None: ...

    def resume(self, next_hops: Sequence[str], *, guarded: bool) -> None: ...

    async def saved(self) -> bool: ...


class _Seat:
    """One relay's place at one next hop."""

    def __init__(self, visit: _Visit, number: int, next_hop: str) -> None:
        self._visit = visit
        self._number = number
        self.next_hop = next_hop

    def obey(self, order: Order) -> None:
        """See `ports_drain.Follower`: it is said to the relay."""
        self._visit.say(Ordered(self._number, order))


class _Visit:
    """One connection."""

    def __init__(self, board: Board, writer: asyncio.StreamWriter) -> None:
        self._board = board
        self._writer = writer
        self._seats: dict[int, _Seat] = {}

    def say(self, reply: Reply) -> None:
        transport = self._writer.transport
        if transport.is_closing():
            return
        self._writer.write(encode_line(reply))
        if transport.get_write_buffer_size() > _MAX_BUFFER:
            transport.abort()

    async def hear(self, request: Request) -> None:
        board = self._board
        match request:
            case Follow():
                self._leave(request.seat)
                seat = self._seats[request.seat] = _Seat(self, request.seat, request.next_hop)
                board.follow(request.next_hop, seat, delivering=request.delivering)
            case Leave():
                self._leave(request.seat)
            case Told():
                known = self._seats.get(request.seat)
                if known is not None:
                    board.tell(known, request.experience)
            case Retry():
                board.retry(request.domain or None)
            case Show():
                self.say(Shown(tuple(board.all_states())))
            case Pause():
                board.pause(request.next_hops, request.why)
                await self._confirm()
            case Resume():
                board.resume(request.next_hops, guarded=request.guarded)
                await self._confirm()

    async def _confirm(self) -> None:
        durable = await self._board.saved()
        self.say(Shown(tuple(self._board.all_states()), durable=durable))

    def _leave(self, number: int) -> None:
        seat = self._seats.pop(number, None)
        if seat is not None:
            self._board.leave(seat.next_hop, seat)

    def end(self) -> None:
        """It is gone: so are those who spoke over it."""
        for number in tuple(self._seats):
            self._leave(number)


class DrainDoor:
    """Listens for relays and operators."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._visits: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._path: Path | None = None

    async def open(self, path: Path) -> None:
        """Listen at `path`; a stale socket there is removed. Raises OSError."""
        listener = bind_unix_socket(path)
        self._server = await asyncio.start_unix_server(
            self._greet, sock=listener, limit=MAX_LINE_BYTES
        )
        self._path = path

    async def close(self) -> None:
        """Stop listening, cut what is open."""
        if self._server is not None:
            self._server.close()
        for visit in self._visits:
            visit.cancel()
        await asyncio.gather(*self._visits, return_exceptions=True)
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._visits) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._visits.add(task)
        visit = _Visit(self._board, writer)
        try:
            while line := await reader.readline():
                await visit.hear(decode_request(line))
        except asyncio.CancelledError:
            pass  # `close` cut us; asyncio would report a cancelled callback as an error
        except (OSError, ValueError, KeyError) as error:  # gone, or nonsense
            observe.note("drain", f"a visitor of the drain door is cut off: {error!r}")
        finally:
            self._visits.discard(task)
            visit.end()
            writer.close()
