"""The shards of a data directory: where they are, and how the embedded engine opens them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from posthouse.config_schema import Config
from posthouse.interfaces.control import ControlDesk, ControlDoor
from posthouse.interfaces.control_wire import WorkerStatus
from posthouse.mail.queueid import MAX_SHARDS
from posthouse.node_process import clock_us
from posthouse.ports_spool import Spool
from posthouse.storage.spool import EmbeddedSpool, SpoolSettings


def shard_directory(data_dir: Path, shard: int) -> Path:
    """Where one shard lives."""
    return data_dir / "spool" / f"{shard}"


def find_shards(data_dir: Path) -> list[int]:
    """The shards there are, in order."""
    try:
        names = [path.name for path in (data_dir / "spool").iterdir()]
    except FileNotFoundError:
        return []
    numbers = (int(name) for name in names if name.isascii() and name.isdigit())
    return sorted(number for number in numbers if number < MAX_SHARDS)


def shards_of_worker(data_dir: Path, index: int, workers: int) -> list[int]:
    """The shards of worker `index` of `workers`; the first is its own and takes new mail."""
    others = (shard for shard in find_shards(data_dir) if shard % workers == index)
    return list(dict.fromkeys((index, *others)))


async def open_spool(config: Config, shard: int) -> Spool:
    """Open one shard. Raises StorageError."""
    settings = SpoolSettings(
        segment_bytes=config.spool.segment_size,
        spill_bytes=config.spool.spill_size,
        min_free_bytes=config.spool.min_free,
    )
    directory = shard_directory(config.data_dir, shard)
    return await EmbeddedSpool.open(directory, shard=shard, settings=settings, clock_us=clock_us)


async def open_spools(config: Config, shards: Iterable[int]) -> list[Spool]:
    """Open shards, all or none. Raises StorageError."""
    opened: list[Spool] = []
    try:
        for shard in shards:  # one after the other: each may read a lot
            spool = await open_spool(config, shard)
            opened.append(spool)
    except BaseException:
        await close_spools(opened)
        raise
    return opened


async def close_spools(spools: Sequence[Spool]) -> None:
    """Flush and close all."""
    await asyncio.gather(*(spool.close() for spool in spools))


async def serve_desk(config: Config, connection: socket.socket) -> None:
    """Open every shard of a node that does not run and answer operators until they hang up."""
    spools = await open_spools(config, find_shards(config.data_dir))
    try:
        shards = tuple(spool.shard for spool in spools)
        desk = ControlDesk(
            spools,
            clock_us=clock_us,
            status=lambda: WorkerStatus(pid=0, shards=shards),
            domains=lambda: [domain.name for domain in config.domains],
        )
        await ControlDoor(desk).serve(connection)
    finally:
        await close_spools(spools)
