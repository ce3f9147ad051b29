"""Reading one stored body in pieces, its checksum verified with the last."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from zlib import crc32

from posthouse.errors import BodyDamaged, StorageBroken
from posthouse.mail.queueid import format_queue_id
from posthouse.storage.segments import HEADER_BYTES, Header, Place


class EmbeddedBody:
    """See `ports_spool.Body`. Owns its descriptor: the file may be unlinked meanwhile."""

    def __init__(self, fd: int, place: Place, header: Header, threads: ThreadPoolExecutor) -> None:
        self._fd = fd
        self._name = format_queue_id(place.queue_id)
        self._at = place.at + HEADER_BYTES
        self._left = place.size
        self._expected = header.body_crc
        self._crc = 0
        self._threads = threads
        self.size_bytes = place.size

    async def read(self, limit: int) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._read, limit)
        except OSError as error:
            raise StorageBroken(f"{self._name}: cannot read: {error}") from error

    def _read(self, limit: int) -> bytes:
        wanted = min(limit, self._left)
        piece = os.pread(self._fd, wanted, self._at) if wanted else b""
        if len(piece) < wanted and not piece:
            raise BodyDamaged(f"{self._name}: octets are missing")
        self._crc = crc32(piece, self._crc)
        self._at += len(piece)
        self._left -= len(piece)
        if not self._left and self._crc != self._expected:
            raise BodyDamaged(f"{self._name}: checksum of the body")
        return piece

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        self.close()
