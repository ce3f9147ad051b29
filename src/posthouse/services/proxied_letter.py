"""A message on its way to the primary: its content goes there, and may come back to be ours.

For `services.proxy`, which keeps an uncommitted copy in our spool beside, and for
`services.pulled`, which keeps none. Promises: the final dot is said once, after
all of the content; `commit` ends with the primary's reply or with the copy
made durable, never both. Fails as `NextHopFailure` told to `failed`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from posthouse.errors import NextHopFailure
from posthouse.mail.reply import Reply
from posthouse.ports_session import OpenLetter
from posthouse.ports_standby import PrimarySession

_NO_ROOM: Final = 452  # quota, storage (RFC 5321 §4.2.2): of ours


class ProxiedLetter:
    """A message on its way to the primary, with an uncommitted copy in our spool."""

    def __init__(
        self, inner: OpenLetter, session: PrimarySession, *, failed: Callable[[str], None]
    ) -> None:
        self.queue_id = inner.queue_id
        self.trace = inner.trace
        self._inner = inner
        self._session = session
        self._failed = failed
        self._waiting: list[bytes] = [inner.trace]
        self._reply: Reply | None = None  # the primary's last word
        self._lost = False
        self._discarded = False
        self.committing = False
        self.ended = False  # the final dot was said, or may have been
        self.then: Callable[[], None] | None = None
        self.over: Callable[[], None] | None = None  # the primary has answered the final dot
        self.passed: Callable[[Reply, int], None] | None = None  # it has it; so many octets
        self._size_bytes = len(inner.trace)
        self._no_room: Reply | None = None  # what the client hears if the message were ours
        self._opening = asyncio.ensure_future(self._open())

    async def _open(self) -> None:
        """DATA; what came meanwhile goes after the 354."""
        try:
            reply = await self._session.data()
        except NextHopFailure as failure:
            self._lose(failure.detail)
            return
        if reply.code == 354:
            for piece in self._waiting:
                self._session.write(piece)
        elif reply.positive:
            self._lose(f"a strange answer to DATA: {reply}")
        else:
            self._reply = reply
        self._waiting = []

    def write(self, data: bytes) -> bool:
        """See `ports_session.OpenLetter`."""
        room = self._inner.write(data)
        self._size_bytes += len(data)
        if self._lost or self._reply is not None:
            return room
        if not self._opening.done():
            self._waiting.append(data)
            return False
        return self._session.write(data) and room

    async def drain(self) -> None:
        """Wait for the primary and for the disk. Raises StorageError."""
        await self._opening
        if not self._lost:
            await self._session.drain()
        await self._inner.drain()

    def discard(self) -> None:
        """Tear the message off: the primary never sees its final dot."""
        self._discarded = True
        self._opening.cancel()
        self._inner.discard()
        if self._reply is None:
            self._session.close()

    def refusal(self) -> Reply | None:
        """See `ports_session.OpenLetter`. What we have no room for may still go through."""
        refusal = self._inner.refusal()
        if refusal is None or self._lost or refusal.code != _NO_ROOM:
            return refusal
        self._no_room = refusal
        return None

    def commit(self) -> Awaitable[None]:
        """Have the primary's word, or make the message ours. Raises StorageError."""
        self.committing = True  # from now on: the client may be gone before the first step
        return self._commit()

    async def _commit(self) -> None:
        try:
            await self._opening
            if not self._lost and self._reply is None:
                self.ended = not self._session.over
                try:
                    reply = await self._session.end()
                    takes(reply, "dot")
                except NextHopFailure as failure:
                    self._lose(failure.detail)
                else:
                    self._reply = reply
                    if self.over is not None:
                        self.over()
            if self._reply is None and self._no_room is not None:
                self._reply = self._no_room
            if self._reply is None:
                await self._inner.commit()
            else:
                self._inner.discard()
        finally:
            self.committing = False
            if self.then is not None:
                self.then()

    def accepted(self) -> Reply:
        """What the primary said, or our own 250."""
        if self._reply is None:
            return self._inner.accepted()
        if self.passed is not None and self._reply.positive:  # the door logs what is refused
            self.passed(self._reply, self._size_bytes)
        return self._reply

    def _lose(self, why: str) -> None:
        self._lost = True
        self._waiting = []
        if not self._discarded:
            self._failed(why)


def takes(reply: Reply, stage: str) -> bool:
    """Tell a yes from a no. Raises NextHopFailure for what is neither."""
    if 300 <= reply.code < 400:
        raise NextHopFailure(f"a strange answer: {reply}", stage=stage)
    return reply.positive
