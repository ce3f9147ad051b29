"""What the writer does between batches: files without a message, the WAL, the size of the database.

Each call does a bounded piece of work, so that mail never waits long. A failure
here is told and tried again later; it endangers nothing that was accepted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import apsw

from posthouse import observe
from posthouse.errors import StorageError
from posthouse.storage import schema
from posthouse.storage.segments import Layout, SegmentWriter
from posthouse.storage.spool_disk import Disk

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
        wake: Callable[[], None],
        files_gone: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._layout = layout
        self._disk = disk
        self._segments = segments
        self._flush_wal = flush_wal
        self._wake = wake
        self._files_gone = files_gone
        self._unlinker = ThreadPoolExecutor(1, "spool-unlink")
        self._unlinking: Future[tuple[list[int], list[int]]] | None = None
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

    def between_batches(self, *, idle: bool, keep: Set[int] = frozenset()) -> None:
        """Do what is due, a bounded piece of it.

        keep: segments that are not as empty as they look.
        """
        self._batches += 1
        try:
            if self._unlinking is not None and self._unlinking.done():
                self._note_removed(self._unlinking)
            if self.removed and (idle or self._batches >= _PATIENCE_BATCHES):
                self._batches = 0
                self._remove_files(keep)
            if self._wal_pages >= self._checkpoint_at:
                self._checkpoint()
            elif self._shrink and idle:
                self._give_back_pages()
        except (apsw.Error, OSError) as error:
            self._checkpoint_at = self._wal_pages + self._wal_limit
            self._shrink = False
            observe.trouble("spool", "upkeep", error)

    # ------------------------------------------------------------------ files

    def _remove_files(self, keep: Set[int]) -> None:
        """Unlink segments and private files that hold no message.

        First the WAL is flushed: a crash must not bring back rows without their
        octets, nor lose a private message together with the record that points to it.
        Unlinking a segment takes the kernel milliseconds: another thread waits for that.
        """
        if self.wal_suspect or self._unlinking is not None:
            return
        row: Any = self._connection.execute(schema.GONE).fetchone()
        empty, private = json.loads(row[0]), json.loads(row[1])
        segments = [number for number in empty if number not in keep]
        later = len(segments) < len(empty)
        if self._segments.is_open and self._segments.number in segments:
            if self._segments.worth_giving_back:
                self._segments.seal()
            else:
                segments.remove(self._segments.number)
        if segments or private:
            if self._flush_wal() is not None:
                return
            self._unlinking = self._unlinker.submit(self._unlink, segments, private)
            self._unlinking.add_done_callback(lambda _: self._wake())
        self.removed = later

    def _unlink(self, segments: list[int], private: list[int]) -> tuple[list[int], list[int]]:
        paths = [self._layout.segment_path(number) for number in segments]
        paths += [self._layout.private_path(queue_id) for queue_id in private]
        for path in paths:
            try:
                self._disk.unlink(path)
            except FileNotFoundError:
                pass  # unlinked before a crash that lost the note of it
        # Before the note: a file that a power cut brings back must still have its row.
        if segments:
            self._disk.flush_directory(self._layout.segments)
        if private:
            self._disk.flush_directory(self._layout.private)
        return segments, private

    def _note_removed(self, unlinking: Future[tuple[list[int], list[int]]]) -> None:
        """Forget files that are gone, and look whether there are more."""
        self._unlinking = None
        self._files_gone()
        segments, private = unlinking.result()
        with self._connection:
            if segments:
                self._connection.execute(schema.FORGET_SEGMENTS, (json.dumps(segments),))
            if private:
                self._connection.execute(schema.FORGET_ORPHANS, (json.dumps(private),))
        self.removed = True

    @property
    def resting(self) -> bool:
        """True when there are no files left to remove."""
        return not self.removed and self._unlinking is None

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
        if self._shrink:
            self._wake()  # go on, unless mail comes first
        else:
            self._checkpoint()  # only this cuts the file

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
        self._unlinker.shutdown()
        try:
            if self._unlinking is not None:
                self._note_removed(self._unlinking)
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except (apsw.Error, OSError) as error:
            observe.trouble("spool", "last checkpoint", error)
