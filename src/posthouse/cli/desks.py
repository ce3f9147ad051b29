"""Talks to the control desks of a node: one connection a worker.

Without a running node a process of our own opens the shards and answers in the
same way, so that the commands know one way to ask.
"""

from __future__ import annotations

import contextlib
import heapq
import socket
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from posthouse.errors import PosthouseError
from posthouse.interfaces.control_wire import (
    MAX_PAGE,
    MAX_REPLY_BYTES,
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
    decode_reply,
    encode_line,
)
from posthouse.mail.queueid import shard_of
from posthouse.ports_spool import DomainTotals, OperatorAction, QueuedMessage, Selection

# A change of a million recipients takes a while; a desk that is silent for longer is stuck.
REPLY_SECONDS: Final = 300.0

R = TypeVar("R", Page, Moved, Totals, WorkerStatus, Piece)


class DeskError(PosthouseError):
    """A desk answered that it could not. kind: as in control_wire.Failure."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class _Desk:
    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(REPLY_SECONDS)
        self._connection = connection
        self._stream = connection.makefile("rb")

    def send(self, request: Request) -> None:
        self._connection.sendall(encode_line(request))

    def receive(self, kind: type[R]) -> R:
        """Raises DeskError for a failure and for anything that is not `kind`."""
        try:
            line = self._stream.readline(MAX_REPLY_BYTES)
        except TimeoutError:
            raise DeskError("silent", f"no answer within {REPLY_SECONDS:g} s") from None
        if not line.endswith(b"\n"):
            raise DeskError("gone", "the node went away while it was asked")
        reply: Reply = decode_reply(line)
        if isinstance(reply, Failure):
            raise DeskError(reply.kind, reply.text)
        if not isinstance(reply, kind):
            raise DeskError("internal", "the node runs another version: restart it")
        return reply

    def close(self) -> None:
        self._stream.close()
        self._connection.close()


class Desks:
    """All workers of a node, asked together."""

    def __init__(self, connections: Sequence[socket.socket], *, live: bool) -> None:
        """live: a running node answers, not a process of our own."""
        self._desks = [_Desk(connection) for connection in connections]
        self.live = live

    def __enter__(self) -> Desks:
        return self

    def __exit__(self, *_: object) -> None:
        for desk in self._desks:
            with contextlib.suppress(OSError):
                desk.close()

    def _ask_all(self, request: Request, kind: type[R]) -> list[R]:
        for desk in self._desks:
            desk.send(request)
        return [desk.receive(kind) for desk in self._desks]

    def list_messages(self, selection: Selection, limit: int | None) -> Iterator[QueuedMessage]:
        """Messages with the recipients meant, oldest first, at most `limit`."""
        pages = MAX_PAGE if limit is None else min(limit, MAX_PAGE)
        streams = [self._list_one(desk, selection, pages) for desk in self._desks]
        merged = heapq.merge(*streams, key=lambda message: message.queue_id)
        for count, message in enumerate(merged, 1):
            yield message
            if count == limit:
                return

    @staticmethod
    def _list_one(desk: _Desk, selection: Selection, size: int) -> Iterator[QueuedMessage]:
        after: int | None = None
        while True:
            desk.send(ListRequest(selection, after, size))
            page = desk.receive(Page)
            yield from page.messages
            if not page.more or not page.messages:
                return
            after = page.messages[-1].queue_id

    def act(self, selection: Selection, action: OperatorAction) -> int:
        """Returns how many recipients were moved."""
        moved = self._ask_all(ActRequest(selection, action), Moved)
        return sum(one.recipients for one in moved)

    def redirect(self, selection: Selection, address: str) -> Moved:
        """Send what is meant to another address. Raises DeskError: refused …"""
        moved = self._ask_all(RedirectRequest(selection, address), Moved)
        return Moved(sum(one.recipients for one in moved), sum(one.failed for one in moved))

    def read_body(self, queue_id: int) -> Iterator[bytes]:
        """The stored octets in pieces. Raises DeskError: gone, damaged …"""
        for desk in self._desks_of(queue_id):
            desk.send(BodyRequest(queue_id))
            try:
                piece = desk.receive(Piece)
            except DeskError as failure:
                if failure.kind == "gone":
                    continue
                raise
            while not piece.last:
                yield piece.data
                piece = desk.receive(Piece)
            return
        raise DeskError("gone", "no such message")

    def _desks_of(self, queue_id: int) -> list[_Desk]:
        """The desk that has the shard first: worker i has the shards i, i + n, i + 2n …"""
        first = shard_of(queue_id) % len(self._desks)
        return [self._desks[first], *self._desks[:first], *self._desks[first + 1 :]]

    def totals(self) -> list[DomainTotals]:
        """Counts by domain and shard."""
        return [row for one in self._ask_all(TotalsRequest(), Totals) for row in one.domains]

    def status(self) -> list[WorkerStatus]:
        """How each worker is."""
        return self._ask_all(StatusRequest(), WorkerStatus)
