"""The envelope database of one shard: tables, connections, and statements of every width.

Rows hold what moves (states, due times, replies) and where the octets lie; what
never changes is in the record beside the body (`segments`). One connection
writes; readers see snapshots (WAL).

`synchronous=NORMAL`: SQLite flushes only around a checkpoint. The writer flushes
the WAL itself after every transaction that must be durable by the database alone
(`spool_writer`), and docs/durability.md says why an accepted message need not wait
for it.

apsw lets go of the GIL at each sqlite3_step and must win it back from a busy
event loop, which costs more than the step: hence statements that carry a whole
batch, and answers that come as one JSON text instead of rows.
"""

# ruff: noqa: S608 - statements are put together from constants of this package alone

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

import apsw

from posthouse.errors import StorageBroken

SQLITE_AT_LEAST: Final = (3, 51, 3)
"""The first SQLite without the WAL-reset bug (a lost or corrupt transaction under load)."""

LAYOUT_VERSION: Final = 1
WIDEST: Final = 64
"""Rows in one statement at most: enough that steps no longer count, few enough to cache."""

_WAITING: Final = """
CREATE INDEX IF NOT EXISTS waiting
ON recipient (domain, due_us, queue_id, seq, kept_us) WHERE state = 0
"""
"""The queue of each domain, oldest due first.

kept_us rides along so that a sweep for expired rows reads this index alone; an index
by kept_us would cost every message another page write to spare a sweep that finds
something once in 21 days.
"""

_ALL_READABLE: Final = """
SELECT max(domain), max(due_us), max(kept_us), sum(state) FROM recipient NOT INDEXED
"""

_TABLES: Final = """
CREATE TABLE domain (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

-- One row a message that has a recipient left. segment 0: the body is in its private file.
CREATE TABLE message (
    queue_id INTEGER PRIMARY KEY,
    segment INTEGER NOT NULL,
    at INTEGER NOT NULL,
    size INTEGER NOT NULL,
    tail INTEGER NOT NULL,
    sender TEXT NOT NULL
);

-- state as in ports_spool.State; due_us of a held row: since when it is held;
-- kept_us NULL: counts from reception (queue_id >> 8).
CREATE TABLE recipient (
    queue_id INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    domain INTEGER NOT NULL,
    address TEXT NOT NULL,
    due_us INTEGER NOT NULL,
    state INTEGER NOT NULL DEFAULT 0,
    kept_us INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '',
    reply TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (queue_id, seq)
) WITHOUT ROWID;

-- One row a segment file. size: octets committed; live, live_bytes: messages still here
-- (live -1: the file is gone too, and only the newest such row stays);
-- first_id..last_id: range of the queue ids ever written here; stamp_us: the last queue
-- id's time when this was written.
CREATE TABLE segment (
    id INTEGER PRIMARY KEY,
    size INTEGER NOT NULL,
    live INTEGER NOT NULL,
    live_bytes INTEGER NOT NULL,
    first_id INTEGER NOT NULL,
    last_id INTEGER NOT NULL,
    stamp_us INTEGER NOT NULL
);

-- Private files whose message is gone, until the file is.
CREATE TABLE orphan (queue_id INTEGER PRIMARY KEY);

CREATE TRIGGER message_gone AFTER DELETE ON message WHEN old.segment > 0 BEGIN
    UPDATE segment SET live = live - 1, live_bytes = live_bytes - 40 - old.size - old.tail
    WHERE id = old.segment;
END;
CREATE TRIGGER private_message_gone AFTER DELETE ON message WHEN old.segment = 0 BEGIN
    INSERT OR IGNORE INTO orphan VALUES (old.queue_id);
END;
CREATE TRIGGER message_moved AFTER UPDATE OF segment ON message WHEN old.segment > 0 BEGIN
    UPDATE segment SET live = live - 1, live_bytes = live_bytes - 40 - old.size - old.tail
    WHERE id = old.segment;
    UPDATE segment SET live = live + 1, live_bytes = live_bytes + 40 + old.size + old.tail
    WHERE id = new.segment;
END;
"""


def check_library() -> None:
    """Raise StorageBroken when this SQLite may corrupt a WAL database."""
    found = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if found < SQLITE_AT_LEAST:
        raise StorageBroken(
            f"SQLite {apsw.sqlite_lib_version()} has the WAL-reset bug; "
            f"{'.'.join(map(str, SQLITE_AT_LEAST))} or later is needed (upgrade apsw)"
        )


def open_to_write(path: Path) -> apsw.Connection:
    """Open the database for the one writer; make or check its tables. Raises apsw.Error."""
    connection = apsw.Connection(str(path), statementcachesize=512)
    connection.set_busy_timeout(5000)
    found = connection.pragma("user_version")
    if found == 0:
        connection.pragma("page_size", 4096)
        connection.pragma("auto_vacuum", "INCREMENTAL")
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "NORMAL")
    connection.pragma("wal_autocheckpoint", 0)
    connection.pragma("journal_size_limit", 16 << 20)
    connection.pragma("cache_size", -8192)
    connection.pragma("cell_size_check", True)
    if found == 0:
        with connection:
            connection.execute(_TABLES)
            connection.pragma("user_version", LAYOUT_VERSION)
    elif found != LAYOUT_VERSION:
        connection.close()
        raise StorageBroken(f"{path}: layout {found}, this Posthouse reads {LAYOUT_VERSION}")
    connection.execute(_WAITING)
    return connection


def open_to_read(path: Path) -> apsw.Connection:
    """Open the database for one reading thread. Raises apsw.Error."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=64)
    connection.set_busy_timeout(5000)
    connection.pragma("query_only", True)
    connection.pragma("cache_size", -4096)
    connection.pragma("cell_size_check", True)
    return connection


def rebuild_queues(connection: apsw.Connection) -> None:
    """Write the index of the queues afresh from the rows. Raises apsw.Error.

    Run outside a transaction. A damaged index can neither be dropped nor rebuilt in
    place, as both walk its pages: its name is taken away and its pages stay unused.
    A crash in between is mended by `open_to_write`. When the rows themselves cannot all
    be read, nothing is changed.
    """
    connection.execute(_ALL_READABLE).fetchall()
    connection.execute("PRAGMA writable_schema = ON")
    try:
        with connection:
            connection.execute("DELETE FROM sqlite_schema WHERE name = 'waiting'")
    finally:
        connection.execute("PRAGMA writable_schema = RESET")
    connection.execute(_WAITING)


def _rows(columns: int, rows: int) -> str:
    return ",".join([f"({','.join('?' * columns)})"] * rows)


@functools.cache
def insert_messages(rows: int) -> str:
    """queue_id, segment, at, size, tail, sender."""
    return f"INSERT INTO message VALUES {_rows(6, rows)}"


@functools.cache
def insert_recipients(rows: int) -> str:
    """queue_id, seq, domain, address, due_us."""
    return f"INSERT INTO recipient (queue_id, seq, domain, address, due_us) VALUES {_rows(5, rows)}"


ADD_TO_SEGMENT: Final = """
INSERT INTO segment VALUES (?,?,?,?,?,?,?)
ON CONFLICT (id) DO UPDATE SET
    size = excluded.size,
    live = live + excluded.live,
    live_bytes = live_bytes + excluded.live_bytes,
    first_id = min(first_id, excluded.first_id),
    last_id = max(last_id, excluded.last_id),
    stamp_us = excluded.stamp_us
"""


@functools.cache
def delete_recipients(rows: int) -> str:
    """queue_id, seq: remove them whatever their state (moves d, x)."""
    return f"DELETE FROM recipient WHERE (queue_id, seq) IN (VALUES {_rows(2, rows)})"


@functools.cache
def delete_settled_messages(rows: int) -> str:
    """queue_id: remove messages that have no recipient left."""
    return (
        f"DELETE FROM message WHERE queue_id IN ({','.join('?' * rows)}) AND NOT EXISTS "
        "(SELECT 1 FROM recipient r WHERE r.queue_id = message.queue_id)"
    )


@functools.cache
def update_recipients(rows: int) -> str:
    """queue_id, seq, state, due_us, reason, reply: an attempt that failed (moves r, h)."""
    return (
        f"WITH v (queue_id, seq, state, due_us, reason, reply) AS (VALUES {_rows(6, rows)}) "
        "UPDATE recipient SET state = v.state, due_us = v.due_us, "
        "attempts = attempts + 1, reason = v.reason, reply = v.reply FROM v "
        "WHERE recipient.queue_id = v.queue_id AND recipient.seq = v.seq AND recipient.state = 0"
    )


@functools.cache
def move_messages(rows: int) -> str:
    """queue_id, segment, at (of the copy), segment it was copied from."""
    return (
        f"WITH v (queue_id, segment, at, was) AS (VALUES {_rows(4, rows)}) "
        "UPDATE message SET segment = v.segment, at = v.at FROM v "
        "WHERE message.queue_id = v.queue_id AND message.segment = v.was"
    )


PLACES: Final = """
SELECT queue_id, segment, at, size, tail FROM message
WHERE queue_id IN (SELECT value FROM json_each(?))
"""

GONE: Final = """
SELECT (SELECT json_group_array(id) FROM segment WHERE live = 0),
       (SELECT json_group_array(queue_id) FROM (SELECT queue_id FROM orphan LIMIT 1000))
"""
"""Files that hold no message: segments (perhaps the one open too), private files."""

FORGET_SEGMENTS: Final = """
UPDATE segment SET live = -1 WHERE live = 0 AND id IN (SELECT value FROM json_each(?));
DELETE FROM segment WHERE live = -1 AND id < (SELECT max(id) FROM segment);
"""
"""The last row stays, its size too: it holds the last queue id's time and where a start looks
for more, should the file come back."""

FORGET_ORPHANS: Final = "DELETE FROM orphan WHERE queue_id IN (SELECT value FROM json_each(?))"
