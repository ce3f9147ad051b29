"""How much mail waits for a domain in the whole node: asked of every worker's control desk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from posthouse.interfaces.control_wire import Totals, TotalsRequest, decode_reply, encode_line

_SECONDS: Final = 3.0
_MAX_LINE: Final = 8 << 20


async def count_pending(run: Path, workers: int, domains: Collection[str]) -> int | None:
    """Recipients that wait (queued, not held); None when a worker does not answer in time."""
    asked = (_ask(run, f"worker-{index}.sock", domains) for index in range(workers))
    try:
        async with asyncio.timeout(_SECONDS):
            return sum(await asyncio.gather(*asked))
    except (TimeoutError, OSError, ValueError):
        return None


async def _ask(run: Path, name: str, domains: Collection[str]) -> int:
    holder = os.open(run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        reader, writer = await asyncio.open_unix_connection(
            f"/proc/self/fd/{holder}/{name}", limit=_MAX_LINE
        )
    finally:
        os.close(holder)
    try:
        writer.write(encode_line(TotalsRequest()))
        reply = decode_reply(await reader.readuntil(b"\n"))
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise ValueError("no whole answer") from error
    finally:
        writer.close()
    if not isinstance(reply, Totals):
        raise ValueError("no totals")
    return sum(total.queued for total in reply.domains if total.domain in domains)
