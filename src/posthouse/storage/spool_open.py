"""Opening a shard: settings, lock, database, and what a crash left."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass

import apsw

from posthouse import observe
from posthouse.errors import StorageBusy, StorageError
from posthouse.storage import schema
from posthouse.storage.segments import Layout
from posthouse.storage.spool_batch import Batch
from posthouse.storage.spool_clock import DueClock
from posthouse.storage.spool_disk import Disk, translate
from posthouse.storage.spool_recovery import Left, remove_strays, take_in_records
from posthouse.storage.spool_unsettled import Unsettled


@dataclass(frozen=True, kw_only=True)
class SpoolSettings:
    """How one shard uses its disk. Sizes in octets; measured in docs/decisions/0001-spool.md.

    segment_bytes: a segment this long takes no more. spill_bytes: longer bodies go to
    a file of their own while they arrive, and so does what exceeds memory_bytes, the octets
    of all unfinished messages that may be in memory. min_free_bytes: left free on the disk (at
    most 3 % of it). wal_pages: a checkpoint is made when the WAL is this long.
    retry_seconds: between tries of a disk that failed. compact_seconds: between looks
    for segments worth compacting, of which at least compact_bytes must be dead.
    """

    segment_bytes: int = 32 << 20
    spill_bytes: int = 256 << 10
    memory_bytes: int = 64 << 20
    min_free_bytes: int = 256 << 20
    wal_pages: int = 1000
    retry_seconds: float = 2.0
    compact_seconds: float = 10.0
    compact_bytes: int = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What `open_shard` made. left: records whose rows could not be written; left_why: or None."""

    layout: Layout
    disk: Disk
    lock_fd: int
    connection: apsw.Connection
    batch: Batch
    due: DueClock
    claims: apsw.Connection
    listings: apsw.Connection
    stamp_us: int
    unsettled: Unsettled
    left: list[Left]
    left_why: StorageError | None


def open_shard(layout: Layout, disk: Disk, clock_us: Callable[[], int]) -> Opened:
    """Open the files of a shard and mend what a crash left. Raises StorageError. Takes a thread."""
    connections: list[apsw.Connection] = []
    lock_fd = -1
    try:
        made = [path for path in layout.directory.parents if not path.exists()]
        for path in (layout.directory, layout.segments, layout.private):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_fd = _lock(layout)
        os.close(os.open(layout.database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = schema.open_to_write(layout.database)
        connections.append(connection)
        due = DueClock(clock_us, last_us=0)
        batch = Batch(connection, due)
        due.start_behind(batch.stamp_us)
        unsettled = Unsettled(layout.unsettled, disk)
        taken, left, left_why = take_in_records(connection, batch, layout, due)
        if taken:
            observe.note("spool", f"took in {taken} messages that a crash had left in segments")
        _remove_delivered(connection, batch, unsettled)
        _tidy(connection, layout, strays=not left)
        parent = layout.directory.parent
        above = {parent, parent.parent, *made, *(path.parent for path in made)}
        for path in (layout.segments, layout.private, layout.directory, *above):
            disk.flush_directory(path)
        claims = schema.open_to_read(layout.database)
        connections.append(claims)
        listings = schema.open_to_read(layout.database)
        connections.append(listings)
    except (apsw.Error, OSError, StorageError) as error:
        for opened in connections:
            opened.close()
        if lock_fd >= 0:
            os.close(lock_fd)
        raise translate(error, f"cannot open {layout.directory}") from error
    return Opened(
        layout=layout,
        disk=disk,
        lock_fd=lock_fd,
        connection=connection,
        batch=batch,
        due=due,
        claims=claims,
        listings=listings,
        stamp_us=batch.stamp_us,
        unsettled=unsettled,
        left=left,
        left_why=left_why,
    )


def _remove_delivered(connection: apsw.Connection, batch: Batch, unsettled: Unsettled) -> None:
    """Remove the rows of what was delivered, should their pages have become sound meanwhile."""
    try:
        if unsettled.keys:
            with connection:
                batch.delete_recipients(sorted(unsettled.keys))
    except apsw.Error as error:  # claims leave them out
        observe.trouble("spool", "rows of delivered mail cannot be removed", error)


def _tidy(connection: apsw.Connection, layout: Layout, *, strays: bool) -> None:
    """Begin with an empty WAL and without stray files, if the disk lets us.

    A full disk must not keep a shard shut: draining it is what makes room.
    """
    try:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        if strays:
            remove_strays(connection, layout)  # only now is durable what the rows say
    except (apsw.Error, OSError) as error:
        observe.trouble("spool", "tidying at the start", error)


def _lock(layout: Layout) -> int:
    """Hold the shard for this process. Raises StorageBusy."""
    fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise StorageBusy(f"{layout.directory}: another process holds it") from error
    return fd
