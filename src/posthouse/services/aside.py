"""Work in a thread that a busy event loop must not starve.

The interpreter lock is not fair: a loop that never rests takes it back before the thread
that waits for it has woken up, so that a few milliseconds of work may take seconds. The
loop therefore waits a moment for the thread, which then has the lock to itself, and turns
on only if that was not enough.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

WAIT_SECONDS: Final = 0.01
"""How long the loop stands still at most."""


async def run_aside(call: Callable[[], T]) -> T:
    """Run `call` in a thread of its own; returns what it returns, raises what it raises."""
    job: concurrent.futures.Future[T] = concurrent.futures.Future()
    threading.Thread(target=_do, args=(job, call), name="aside", daemon=True).start()
    concurrent.futures.wait([job], timeout=WAIT_SECONDS)
    return await asyncio.wrap_future(job)


def _do(job: concurrent.futures.Future[T], call: Callable[[], T]) -> None:
    if not job.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:
        job.set_exception(error)
    else:
        job.set_result(result)
