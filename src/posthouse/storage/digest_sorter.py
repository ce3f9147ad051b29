"""Hashes and sorts the addresses of a roster on all cores.

Local parts come in one by one, go out to worker processes in batches, come back
as sorted digests, and are gathered by their first octet; at the end each of the
256 parts is sorted by itself, again in the workers. Only digests are kept: 16
octets of memory for each and key. Few addresses are hashed right here: starting
processes would take longer.

A hot path: this is what makes 150,000 addresses a second (bench/roster_build.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import struct
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from itertools import islice
from typing import Final, NamedTuple

from posthouse import observe
from posthouse.domain.digests import make_digest
from posthouse.domain.recipients import Fold, fold
from posthouse.errors import SourceFailed, StorageBroken
from posthouse.mail.roster import MAX_COUNT, DigestScheme

_PARTS: Final = 256
BATCH: Final = 16_384
# So many fit into one batch of each core within the time in which a process starts.
_POOL_FROM: Final = 4 * BATCH
_MAX_WORKERS: Final = 16
_START_SECONDS: Final = 60.0
_NICENESS: Final = 5  # the mail server beside us comes first


class HashJob(NamedTuple):
    """How texts are made and hashed, once for each key. Travels to the workers."""

    how: Fold
    domain: str
    digests: tuple[tuple[DigestScheme, bytes], ...]


class Batch(NamedTuple):
    """For each key: sorted digests, and where each first octet begins among them."""

    digests: tuple[bytes, ...]
    bounds: tuple[tuple[int, ...], ...]
    empty: int  # local parts of which the fold leaves nothing


def hash_batch(job: HashJob, contents: str) -> Batch:
    """Hash local parts, one a line, for every key of a job. Runs in a worker."""
    how, tail = job.how, "@" + job.domain
    texts = {fold(content, how, cut=False) for content in contents.split("\n")}
    empty = len(texts)
    texts.discard("")
    empty -= len(texts)
    all_digests, all_bounds = [], []
    for scheme, key in job.digests:
        digest_of = make_digest(scheme, key)
        digests = sorted([digest_of(text + tail) for text in texts])
        all_digests.append(b"".join(digests))
        all_bounds.append(_find_bounds(digests))
    return Batch(tuple(all_digests), tuple(all_bounds), empty)


def _find_bounds(digests: Sequence[bytes]) -> tuple[int, ...]:
    counts = [0] * (_PARTS + 1)
    for digest in digests:
        counts[digest[0] + 1] += 1
    total = 0
    for part, count in enumerate(counts):
        total += count
        counts[part] = total
    return tuple(counts)


def sort_part(digests: bytes, width: int) -> bytes:
    """Digests ascending and without repeats. Runs in a worker."""
    return b"".join(sorted({digest for (digest,) in struct.iter_unpack(f"{width}s", digests)}))


def _prepare_worker() -> None:
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    # A worker whose builder was killed would wait for work for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def count_cores() -> int:
    """How many processes may work for us at once."""
    return min(len(os.sched_getaffinity(0)), _MAX_WORKERS)


class SortedBody:
    """The body of one roster: its parts in their order."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._parts: list[bytes | bytearray] = [bytearray() for _ in range(_PARTS)]

    def gather(self, digests: bytes, bounds: Sequence[int]) -> None:
        """Take a sorted batch, not yet in order with others."""
        width, parts = self.width, self._parts
        for number, part in enumerate(parts):
            start, end = bounds[number] * width, bounds[number + 1] * width
            if start != end:
                assert isinstance(part, bytearray)
                part += digests[start:end]

    def sort(self, pool: Executor | None) -> None:
        """Bring all parts into order."""
        if pool is None:
            self._parts = [sort_part(bytes(part), self.width) for part in self._parts]
            return
        waiting: deque[tuple[int, Future[bytes]]] = deque()
        for number, part in enumerate(self._parts):
            waiting.append((number, pool.submit(sort_part, bytes(part), self.width)))
            self._parts[number] = b""
            if len(waiting) > 2 * _MAX_WORKERS:
                done, future = waiting.popleft()
                self._parts[done] = future.result()
        for done, future in waiting:
            self._parts[done] = future.result()

    def add(self, digests: Iterable[bytes]) -> int:
        """Put single digests into their places; returns how many were new."""
        fresh: dict[int, set[bytes]] = {}
        for digest in digests:
            fresh.setdefault(digest[0], set()).add(digest)
        before = self.count
        for number, some in fresh.items():
            joined = bytes(self._parts[number]) + b"".join(some)
            self._parts[number] = sort_part(joined, self.width)
        return self.count - before

    @property
    def count(self) -> int:
        """How many digests there are."""
        return sum(map(len, self._parts)) // self.width

    @property
    def pieces(self) -> Sequence[bytes | bytearray]:
        """All octets, in order."""
        return self._parts

    def digests(self) -> Iterator[bytes]:
        """All of them, one by one, in order."""
        for part in self._parts:
            for (digest,) in struct.iter_unpack(f"{self.width}s", part):
                yield digest

    def sha256(self) -> str:
        """Hex digest of all octets."""
        total = hashlib.sha256()
        for part in self._parts:
            total.update(part)
        return total.hexdigest()


def hash_and_sort(
    job: HashJob, contents: Iterator[str], *, cores: int
) -> tuple[list[SortedBody], int, int]:
    """Make the sorted body for every key of a job.

    Returns the bodies, how many local parts came, and of how many nothing was left.
    Raises SourceFailed for too many, StorageBroken when a worker dies, and what
    `contents` raises.
    """
    bodies = [SortedBody(scheme.length) for scheme, _ in job.digests]
    first = list(islice(contents, _POOL_FROM))
    if len(first) < _POOL_FROM or cores < 2:
        given, empty = _gather_here(job, first, contents, bodies)
        for body in bodies:
            body.sort(None)
        return bodies, given, empty
    try:
        with contextlib.ExitStack() as stack:
            pool = _start_pool(stack, cores)
            given, empty = (
                _gather_here(job, first, contents, bodies)
                if pool is None
                else _gather_in_workers(job, first, contents, bodies, pool, cores)
            )
            for body in bodies:
                body.sort(pool)
    except BrokenExecutor as error:
        raise StorageBroken(f"a process that hashes addresses ended: {error}") from error
    return bodies, given, empty


def _start_pool(stack: contextlib.ExitStack, cores: int) -> Executor | None:
    """Worker processes that answer; None where none can be started: then it takes longer.

    A user that we have become may have no right to where Python or our code lies.
    """
    try:
        # Never fork: threads may run here, and their locks would be copied with them.
        pool = ProcessPoolExecutor(
            cores, multiprocessing.get_context("spawn"), initializer=_prepare_worker
        )
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        pool.submit(os.getpid).result(_START_SECONDS)
    except (BrokenExecutor, OSError, TimeoutError) as error:
        observe.trouble("publish", "hashing in one process: others cannot be started", error)
        return None
    return pool


def _batches(first: list[str], contents: Iterator[str]) -> Iterator[list[str]]:
    for start in range(0, len(first), BATCH):
        yield first[start : start + BATCH]
    while batch := list(islice(contents, BATCH)):
        yield batch


def _gather_here(
    job: HashJob, first: list[str], contents: Iterator[str], bodies: list[SortedBody]
) -> tuple[int, int]:
    given = empty = 0
    for batch in _batches(first, contents):
        given = _count(given, batch)
        empty += _take(hash_batch(job, "\n".join(batch)), bodies)
    return given, empty


def _gather_in_workers(
    job: HashJob,
    first: list[str],
    contents: Iterator[str],
    bodies: list[SortedBody],
    pool: Executor,
    cores: int,
) -> tuple[int, int]:
    given = empty = 0
    waiting: deque[Future[Batch]] = deque()
    for batch in _batches(first, contents):
        given = _count(given, batch)
        waiting.append(pool.submit(hash_batch, job, "\n".join(batch)))
        if len(waiting) > 3 * cores:
            empty += _take(waiting.popleft().result(), bodies)
    while waiting:
        empty += _take(waiting.popleft().result(), bodies)
    return given, empty


def _count(given: int, batch: list[str]) -> int:
    if given + len(batch) > 4 * MAX_COUNT:
        raise SourceFailed(f"more than {4 * MAX_COUNT:,} entries in all sources")
    return given + len(batch)


def _take(batch: Batch, bodies: list[SortedBody]) -> int:
    for body, digests, bounds in zip(bodies, batch.digests, batch.bounds, strict=True):
        body.gather(digests, bounds)
    return batch.empty
