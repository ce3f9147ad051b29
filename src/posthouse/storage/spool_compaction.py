"""Compaction: a few held messages must not keep a big segment alive.

What is left of a sealed segment that is three quarters dead is copied to the open
one; the writer then unlinks it. Finding and reading happens in the listing
thread, and the writer gets bounded pieces between its batches.
"""

from __future__ import annotations

import os
from typing import Any, Final

import apsw

from posthouse import observe
from posthouse.errors import BodyDamaged
from posthouse.storage.segments import HEADER_BYTES, Place, check_header, decode_tail, mark_as_copy
from posthouse.storage.spool_reader import OctetReader

_CANDIDATES: Final = """
SELECT id, first_id, last_id FROM segment
WHERE live > 0 AND id < (SELECT max(id) FROM segment)
    AND live_bytes * 4 < size AND size - live_bytes >= ?
ORDER BY id
"""
_SURVIVORS: Final = """
SELECT queue_id, segment, at, size, tail FROM message
WHERE queue_id BETWEEN ? AND ? AND segment = ? ORDER BY queue_id LIMIT 256
"""
_PIECE_BYTES: Final = 2 << 20


class Compactor:
    """Used in the listing thread."""

    def __init__(
        self, connection: apsw.Connection, octets: OctetReader, *, worth_bytes: int
    ) -> None:
        self._connection = connection
        self._octets = octets
        self._worth_bytes = worth_bytes
        self._given_up: set[int] = set()

    def next_copies(self) -> list[tuple[Place, bytes]]:
        """Records to copy next, from one segment; empty when nothing is worth it."""
        rows: Any = self._connection.execute(_CANDIDATES, (self._worth_bytes,)).fetchall()
        for number, first_id, last_id in rows:
            if number in self._given_up:
                continue
            span = (first_id, last_id, number)
            found: Any = self._connection.execute(_SURVIVORS, span).fetchall()
            copies = self._read([Place(*row) for row in found])
            if copies:
                return copies
            self._given_up.add(number)
        return []

    def _read(self, places: list[Place]) -> list[tuple[Place, bytes]]:
        copies: list[tuple[Place, bytes]] = []
        size = 0
        for place in places:
            try:
                fd = self._octets.open_file(place)
                try:
                    record = os.pread(fd, place.length, place.at)
                finally:
                    os.close(fd)
                header = check_header(place, record)
                decode_tail(header, record[HEADER_BYTES + place.size :])
            except (OSError, BodyDamaged) as error:
                # The segment stays, and with it what may still be saved by hand.
                observe.trouble("spool", "compaction leaves a message where it is", error)
                continue
            copies.append((place, mark_as_copy(record)))
            size += len(record)
            if size >= _PIECE_BYTES:
                break
        return copies
