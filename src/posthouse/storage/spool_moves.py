"""Moves that are not of the relay's daily work: the operator's, expiry, damage.

Each function makes work for `Writer.put_call`: it runs in the writer thread, in a
transaction of its own.
"""

# ruff: noqa: S608 - statements are put together from constants of this package alone

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import apsw

from posthouse import observe
from posthouse.ports_spool import OperatorAction
from posthouse.storage.spool_batch import Batch
from posthouse.storage.spool_clock import DueClock

Key = tuple[int, int]
T = TypeVar("T")
Work = Callable[[Batch, apsw.Connection], T]

_AMONG = "(queue_id, seq) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?))"
_HOLD = f"UPDATE recipient SET state = 1, due_us = ?, reason = ? WHERE state = 0 AND {_AMONG}"
_RELEASE = (
    "UPDATE recipient SET state = 0, due_us = ?, kept_us = ?, reason = '' "
    f"WHERE state = 1 AND {_AMONG}"
)
_RETRY = f"UPDATE recipient SET due_us = ? WHERE state = 0 AND {_AMONG}"
_EXPIRE = (
    "UPDATE recipient SET state = 1, due_us = ?, reason = 'expired' WHERE state = 0 "
    f"AND coalesce(kept_us, queue_id >> 8) < ? AND {_AMONG} RETURNING queue_id, seq"
)
_SET_ASIDE = (
    "UPDATE recipient SET state = 1, due_us = ?, reason = ? WHERE state = 0 AND queue_id = ?"
)


def act(keys: Sequence[Key], action: OperatorAction, now_us: int, due: DueClock) -> Work[int]:
    """Moves h, f, due-now, x of these recipients; the work returns how many moved."""

    def work(batch: Batch, connection: apsw.Connection) -> int:
        if action is OperatorAction.DELETE:
            return batch.delete_recipients(keys)
        if action is OperatorAction.HOLD:
            connection.execute(_HOLD, (now_us, "held by operator", json.dumps(keys)))
        elif action is OperatorAction.RELEASE:
            due_us = due.open_batch(1, now_us)
            connection.execute(_RELEASE, (due_us, now_us, json.dumps(keys)))
        else:
            due_us = due.open_batch(1, now_us)
            connection.execute(_RETRY, (due_us, json.dumps(keys)))
        return connection.changes()

    return work


def expire(keys: Sequence[Key], kept_before_us: int, now_us: int) -> Work[list[Key]]:
    """Move h for those of these recipients that are still kept too long; returns them."""

    def work(_batch: Batch, connection: apsw.Connection) -> list[Key]:
        moved: Any = connection.execute(
            _EXPIRE, (now_us, kept_before_us, json.dumps(keys))
        ).fetchall()
        return [(queue_id, seq) for queue_id, seq in moved]

    return work


def set_aside(damaged: Sequence[tuple[int, int, str]], now_us: int) -> Work[None]:
    """Move h for damaged rows: (queue id, seq or -1 for all of the message, why)."""

    def work(_batch: Batch, connection: apsw.Connection) -> None:
        for queue_id, seq, why in damaged:
            statement, values = _SET_ASIDE, [now_us, f"damaged: {why}", queue_id]
            if seq >= 0:
                statement, values = f"{_SET_ASIDE} AND seq = ?", [*values, seq]
            try:
                connection.execute(statement, values)
            except apsw.Error as error:  # its page is damaged too: it stays where it is
                observe.trouble("spool", "cannot set aside a damaged row", error)

    return work
