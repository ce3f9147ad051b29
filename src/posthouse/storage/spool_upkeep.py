"""What the writer does between batches: files without a message, the WAL, the size of the database.

Each call does a bounded piece of work, so that mail never waits long. A failure
here is told and tried again later; it endangers nothing that was accepted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import apsw

from posthouse import observe
from posthouse.errors import StorageError
from posthouse.storage import schema
from posthouse.storage.segments import Layout, SegmentWriter
from posthouse.storage.spool_disk import Disk

_SEGMENTS_AT_ONCE = 4
_PRIVATE_AT_ONCE = 64
_VACUUM_PAGES = 256
_FREE_PAGES_KEPT = 512
_PATIENCE_BATCHES = 32


class Upkeep:
    """Used by the writer thread alone. `removed`: messages went since files were looked through."""

    def __init__(
        self,
        connection: apsw.Connection,
        layout: Layout,
        disk: Disk,
        segments: SegmentWriter,
        *,
        wal_pages: int,
        flush_wal: Callable[[], StorageError | None],
    ) -> None:
        self._connection = connection
        self._layout = layout
        self._disk = disk
        self._segments = segments
        self._flush_wal = flush_wal
        self._wal_limit = wal_pages
        self._checkpoint_at = wal_pages
        self._wal_pages = 0
        self._batches = 0
        self._shrink = False
        self.removed = True
        self.wal_suspect = False
        connection.set_wal_hook(self._committed)

    def _committed(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def between_batches(self, *, idle: bool) -> None:
        """Do what is due, a bounded piece of it."""
        self._batches += 1
        try:
            if self.removed and (idle or self._batches >= _PATIENCE_BATCHES):
                self._batches = 0
                self._remove_files()
            if self._wal_pages >= self._checkpoint_at:
                self._checkpoint()
            elif self._shrink and idle:
                self._give_back_pages()
        except (apsw.Error, OSError) as error:
            self._checkpoint_at = self._wal_pages + self._wal_limit
            self._shrink = False
            observe.trouble("spool", "upkeep", error)

    # ------------------------------------------------------------------ files

    def _remove_files(self) -> None:
        """Unlink segments and private files that hold no message.

        First the WAL is flushed: a crash must not bring back rows without their
        octets, nor lose a private message together with the record that points to it.
        """
        if self.wal_suspect:
            return
        self.removed = False
        row: Any = self._connection.execute(schema.GONE).fetchone()
        segments, private = json.loads(row[0]), json.loads(row[1])
        if self._segments.is_open and self._segments.number in segments:
            if self._segments.worth_giving_back:
                self._segments.seal()
            else:
                segments.remove(self._segments.number)
        if not segments and not private:
            return
        if self._flush_wal() is not None:
            return
        self.removed = len(segments) > _SEGMENTS_AT_ONCE or len(private) > _PRIVATE_AT_ONCE
        segments, private = segments[:_SEGMENTS_AT_ONCE], private[:_PRIVATE_AT_ONCE]
        for number in segments:
            self._unlink(str(self._layout.segment_path(number)))
        for queue_id in private:
            self._unlink(str(self._layout.private_path(queue_id)))
        with self._connection:
            if segments:
                self._connection.execute(schema.FORGET_SEGMENTS, (json.dumps(segments),))
            if private:
                self._connection.execute(schema.FORGET_ORPHANS, (json.dumps(private),))

    def _unlink(self, path: str) -> None:
        try:
            self._disk.unlink(self._layout.directory / path)
        except FileNotFoundError:
            pass  # unlinked before a crash that lost the note of it

    # ------------------------------------------------------------------ database

    def _checkpoint(self) -> None:
        """Carry the WAL into the database, so that the next write begins it afresh."""
        done = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        complete = done[0] == done[1]
        # A reader stood in the way: wait for as many pages again before the next try.
        self._checkpoint_at = self._wal_limit + (0 if complete else self._wal_pages)
        if complete:
            self._wal_pages = 0
        free = self._connection.pragma("freelist_count")
        self._shrink = free > _FREE_PAGES_KEPT and free * 4 > self._connection.pragma("page_count")

    def _give_back_pages(self) -> None:
        """Shrink the database file a little after a great drain."""
        self._connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        free = self._connection.pragma("freelist_count")
        self._shrink = free > _FREE_PAGES_KEPT

    def rescue_wal(self) -> None:
        """Make durable another way what a failed flush left in the WAL. Raises apsw.Error."""
        done = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        if done[0] != done[1]:
            raise apsw.BusyError("a reader holds the write-ahead log")
        self.wal_suspect = False
        self._wal_pages = 0

    def try_disk(self) -> None:
        """Write, flush and remove a file, as intake will. Raises OSError, apsw.Error."""
        path = self._layout.directory / "try"
        try:
            self._disk.unlink(path)
        except FileNotFoundError:
            pass
        fd = self._disk.create(path)
        try:
            self._disk.pwritev(fd, [bytes(65536)], 0)
            self._disk.flush(fd)
        finally:
            os.close(fd)
            self._disk.unlink(path)
        self._disk.flush_directory(self._layout.directory)

    def close(self) -> None:
        """Carry the whole WAL over, so that the next start reads one file."""
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.Error as error:
            observe.trouble("spool", "last checkpoint", error)
