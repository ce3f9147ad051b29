"""Messages into the open segment: the flush in here is what a 250 stands on.

Works in the writer thread, on one batch at a time (`spool_writer`).
"""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

from posthouse.errors import StorageBroken, StorageError
from posthouse.storage.segments import (
    HEADER_BYTES,
    PRIVATE,
    SegmentWriter,
    encode_tail,
    pack_header,
)
from posthouse.storage.spool_accept import Accept
from posthouse.storage.spool_disk import translate
from posthouse.storage.spool_late import LateRows


class Appender:
    """Writes records. failed: told of a disk that refuses them."""

    def __init__(
        self, segments: SegmentWriter, late: LateRows, failed: Callable[[StorageError], None]
    ) -> None:
        self._segments = segments
        self._late = late
        self._failed = failed

    def append(self, accepts: list[Accept]) -> None:
        """Write and flush the records; those that fail are marked, the others wait for rows."""
        buffers: list[bytes] = []
        placed: list[Accept] = []
        offset = 0
        for accept in accepts:
            try:
                accept.tail = tail = encode_tail(accept.envelope, accept.client)
            except (UnicodeError, TypeError, ValueError) as error:
                accept.error = StorageBroken(f"envelope cannot be stored: {error}")
                continue
            accept.tail_size = len(tail)
            if accept.body_crc is None:
                crc = 0
                for chunk in accept.chunks:
                    crc = crc32(chunk, crc)
                buffers.append(pack_header(accept.queue_id, accept.size, crc, tail))
                buffers += accept.chunks
                accept.segment = -1  # known once written
                accept.at = offset
                offset += HEADER_BYTES + accept.size + len(tail)
            else:
                crc = accept.body_crc
                header = pack_header(accept.queue_id, accept.size, crc, tail, private=True)
                buffers.append(header)
                accept.segment = PRIVATE
                offset += HEADER_BYTES + len(tail)
            buffers.append(tail)
            placed.append(accept)
        if not placed:
            return
        try:
            begin = self._segments.append(buffers)
        except OSError as error:
            failure = translate(error, "cannot write a segment")
            self._failed(failure)
            for accept in placed:
                accept.error = failure
            return
        for accept in placed:
            if accept.segment == PRIVATE:
                continue
            accept.segment = self._segments.number
            accept.at += begin
        self._late.add(placed, segment=self._segments.number, end=self._segments.end)
