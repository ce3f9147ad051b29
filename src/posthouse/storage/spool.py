"""The embedded spool: one shard in one directory (see `ports_spool.Spool` for its promises).

Who does what::

    event loop      begin, write, commit, settle: never wait   (here)
    writer thread   segments and database, group commit        (spool_writer, its parts
                                                                spool_append, spool_rows)
    reading thread  claims                                     (spool_claim)
    listing thread  operators' questions, expiry, compaction   (spool_listing)
    file threads    large bodies, in and out                   (spool_incoming, spool_body)

A directory holds `spool.db` (envelopes and states), `segments/` and `private/`
(octets), and `lock`, which one process holds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import apsw

from posthouse import observe
from posthouse.errors import BodyDamaged, StorageBroken, StorageError
from posthouse.mail.envelope import Client, Envelope
from posthouse.mail.queueid import format_queue_id, make_queue_id
from posthouse.ports_spool import (
    AcceptListener,
    Claim,
    Cursor,
    DomainTotals,
    Incoming,
    OperatorAction,
    QueuedMessage,
    Selection,
    Settlement,
)
from posthouse.storage import schema, spool_moves
from posthouse.storage.segments import (
    HEADER_BYTES,
    Layout,
    SegmentWriter,
    check_header,
    encode_tail,
)
from posthouse.storage.spool_accept import Accept
from posthouse.storage.spool_body import EmbeddedBody
from posthouse.storage.spool_claim import Claimer, Damaged
from posthouse.storage.spool_compaction import Compactor
from posthouse.storage.spool_disk import Disk, translate
from posthouse.storage.spool_health import Health
from posthouse.storage.spool_incoming import EmbeddedIncoming, Memory, Spill
from posthouse.storage.spool_listing import Listing
from posthouse.storage.spool_open import Opened, SpoolSettings, open_shard
from posthouse.storage.spool_reader import OctetReader
from posthouse.storage.spool_rows import Settle
from posthouse.storage.spool_writer import Writer

__all__ = ["EmbeddedSpool", "SpoolSettings"]

T = TypeVar("T")
_ACT_AT_ONCE = 1000


class EmbeddedSpool:
    """See `ports_spool.Spool`. Made by `open`; methods on the event loop it was opened in."""

    def __init__(
        self, opened: Opened, shard: int, settings: SpoolSettings, clock_us: Callable[[], int]
    ) -> None:
        self.shard = shard
        self._settings = settings
        self._clock_us = clock_us
        self._loop = asyncio.get_running_loop()
        self._opened = opened
        self._layout = opened.layout
        self._disk = opened.disk
        self._due = opened.due
        self._last_stamp_us = opened.stamp_us
        self._listener: AcceptListener | None = None
        self._health = Health(
            opened.layout.directory, opened.disk, min_free_bytes=settings.min_free_bytes
        )
        self._claim_octets = OctetReader(opened.claims, opened.layout, opened.disk)
        self._list_octets = OctetReader(opened.listings, opened.layout, opened.disk)
        self._claimer = Claimer(
            opened.claims, self._claim_octets, opened.due, left_out=opened.unsettled.keys
        )
        self._listing = Listing(opened.listings, self._list_octets, opened.due)
        self._compactor = Compactor(
            opened.listings, self._list_octets, worth_bytes=settings.compact_bytes
        )
        self._claim_thread = ThreadPoolExecutor(1, "spool-claim")
        self._list_thread = ThreadPoolExecutor(1, "spool-list")
        self._file_threads = ThreadPoolExecutor(4, "spool-file")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._compact: asyncio.TimerHandle | None = None
        self._memory = Memory(settings.memory_bytes)
        self._settled = False
        self._rebuilt = False
        self._closing = False
        self._alerted: set[tuple[int, int]] = set()
        newest = max([0, *opened.layout.segment_numbers()])
        row: int = opened.connection.execute("SELECT coalesce(max(id), 0) FROM segment").get
        self._writer = Writer(
            connection=opened.connection,
            batch=opened.batch,
            layout=opened.layout,
            disk=opened.disk,
            segments=SegmentWriter(
                opened.layout,
                opened.disk,
                last_number=max(newest, row),
                limit=settings.segment_bytes,
            ),
            due=opened.due,
            unsettled=opened.unsettled,
            done=self._done,
            failed=self._failed,
            files_gone=self._drop_unlinked,
            wal_pages=settings.wal_pages,
            incoming=self._memory,
            left=opened.left,
            left_why=opened.left_why,
        )
        if opened.left_why is not None:
            self._failed(opened.left_why)
        self._writer.start()
        self._compact = self._loop.call_later(settings.compact_seconds, self._look_for_dead)

    # ------------------------------------------------------------------ open and close

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        shard: int,
        settings: SpoolSettings,
        clock_us: Callable[[], int],
        disk: Disk | None = None,
    ) -> EmbeddedSpool:
        """Open a shard, make it when it is not there, and take in what a crash left.

        Raises StorageBusy when another process holds it, StorageBroken and
        StorageFull when the disk or the database cannot be used.
        """
        schema.check_library()
        opened = await asyncio.get_running_loop().run_in_executor(
            None, open_shard, Layout(directory), disk or Disk(), clock_us
        )
        return cls(opened, shard, settings, clock_us)

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        for timer in (self._retry, self._compact):
            if timer is not None:
                timer.cancel()
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        await self._writer.stop()
        for threads in (self._claim_thread, self._list_thread, self._file_threads):
            await self._loop.run_in_executor(None, threads.shutdown)
        self._claim_octets.close()
        self._list_octets.close()
        self._opened.claims.close()
        self._opened.listings.close()
        os.close(self._opened.lock_fd)

    def _drop_unlinked(self) -> None:
        if not self._closing:
            self._claim_thread.submit(self._claim_octets.drop_unlinked)

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ------------------------------------------------------------------ intake

    def intake_problem(self) -> str | None:
        if self._closing:
            return "the spool is being closed"
        problem = self._health.problem()
        if problem is None:
            return None
        unlisted = self._writer.unlisted
        if not unlisted:
            return problem.detail
        return f"{problem.detail}; {unlisted} accepted recipients are on disk but in no list yet"

    def begin(self) -> EmbeddedIncoming:
        problem = self._health.problem()
        if problem is not None:
            raise type(problem)(problem.detail)
        if self._closing:
            raise StorageBroken("the spool is being closed")
        self._last_stamp_us = max(self._last_stamp_us + 1, self._clock_us())
        return EmbeddedIncoming(
            make_queue_id(self._last_stamp_us, self.shard),
            self._settings.spill_bytes,
            self._layout,
            self._disk,
            self._file_threads,
            self._memory,
        )

    def commit(self, incoming: Incoming, *, envelope: Envelope, client: Client) -> Awaitable[None]:
        assert isinstance(incoming, EmbeddedIncoming)
        future: asyncio.Future[None] = self._loop.create_future()
        if not envelope.recipients or incoming.taken or self._closing:
            future.set_exception(StorageBroken("this message cannot be committed"))
            return future
        incoming.take()
        accept = Accept(
            incoming.queue_id, incoming.size_bytes, incoming.chunks, envelope, client, future
        )
        if incoming.spill is None:
            self._writer.put_accept(accept)
            return future
        return self._keep(self._commit_large(accept, incoming.spill))

    async def _commit_large(self, accept: Accept, spill: Spill) -> None:
        try:
            try:
                tail = encode_tail(accept.envelope, accept.client)
            except (UnicodeError, TypeError, ValueError) as error:
                raise StorageBroken(f"envelope cannot be stored: {error}") from error
            try:
                finishing = self._keep(spill.finish(accept.queue_id, accept.size, tail))
                # Shielded: the file must not go while a thread writes to it.
                accept.body_crc = await asyncio.shield(finishing)
            except StorageError as error:
                self._failed(error)
                raise
            self._writer.put_accept(accept)
        except asyncio.CancelledError:
            finishing.add_done_callback(lambda f: _remove_after(f, spill, always=True))
            raise
        except StorageError:
            spill.remove()
            raise
        assert accept.future is not None
        try:
            # Shielded: once the writer has it, only the writer says what becomes of it.
            await asyncio.shield(accept.future)
        except asyncio.CancelledError:
            accept.future.add_done_callback(lambda f: _remove_after(f, spill))
            raise
        except StorageError:
            spill.remove()
            raise

    def set_accept_listener(self, listener: AcceptListener | None) -> None:
        self._listener = listener

    def _done(
        self, accepts: list[Accept], settles: list[Settle], error: StorageError | None
    ) -> None:
        """Hear of a batch: ring the listener, resolve the futures."""
        listener = self._listener
        for accept in accepts:
            failure = accept.error or error
            if failure is None and listener is not None:
                self._ring(listener, accept)
            future = accept.future
            if future is None or future.done():
                continue
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(type(failure)(failure.detail))
        for _, future in settles:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(type(error)(error.detail))
        if settles:
            self._settled = True

    def _ring(self, listener: AcceptListener, accept: Accept) -> None:
        try:
            message = accept.as_queued()
            if message.recipients:
                listener(message)
        except Exception as error:  # the bell must not cost the sender its 250
            observe.trouble("spool", "accept listener", error)

    # ------------------------------------------------------------------ health

    def _failed(self, error: StorageError) -> None:
        self._health.failed(error)
        if self._retry is None and not self._closing:
            self._retry = self._loop.call_later(self._settings.retry_seconds, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        if not self._closing:
            self._keep(self._try_disk())

    async def _try_disk(self) -> None:
        try:
            await self._writer.put_try()
        except StorageError as error:
            self._failed(error)
        else:
            self._health.recovered()

    # ------------------------------------------------------------------ relay

    async def claim(
        self,
        domain: str,
        *,
        after: Cursor | None,
        now_us: int,
        max_messages: int,
        max_bytes: int,
    ) -> Claim:
        claim, damaged = await self._ask(
            self._claim_thread, self._claimer.claim, domain, after, now_us, max_messages, max_bytes
        )
        if damaged:
            await self._set_aside(damaged)
        return claim

    async def _ask(
        self, thread: ThreadPoolExecutor, question: Callable[..., T], *arguments: object
    ) -> T:
        if self._closing:
            raise StorageBroken("the spool is being closed")
        if self._writer.lags:
            await self._writer.put_rows()
        try:
            return await self._loop.run_in_executor(thread, question, *arguments)
        except (apsw.Error, OSError, UnicodeError) as error:
            if isinstance(error, apsw.CorruptError):
                self._rebuild()
            raise translate(error, "cannot read") from error
        except StorageBroken as error:
            if isinstance(error.__cause__, apsw.CorruptError):
                self._rebuild()
            raise

    def _rebuild(self) -> None:
        """Try once to make a damaged index good from the rows."""
        if self._rebuilt:
            return
        self._rebuilt = True
        observe.alert("spool", f"{self._layout.database} is damaged; the index is written afresh")
        self._keep(self._quietly(self._writer.put_rebuild()))

    async def _quietly(self, work: Awaitable[object]) -> None:
        try:
            await work
        except StorageError as error:
            observe.trouble("spool", "repair", error)

    async def _set_aside(self, damaged: list[Damaged]) -> None:
        for queue_id, seq, why in damaged:
            if (queue_id, seq) not in self._alerted and len(self._alerted) < 10_000:
                self._alerted.add((queue_id, seq))
                name = format_queue_id(queue_id)
                observe.alert("spool", f"{name}: held, damaged: {why}", queue_id=name)
        await self._quietly(self._writer.put_call(spool_moves.set_aside(damaged, self._clock_us())))

    def settle(self, settlements: Sequence[Settlement]) -> Awaitable[None]:
        if self._closing:
            future: asyncio.Future[None] = self._loop.create_future()
            future.set_exception(StorageBroken("the spool is being closed"))
            return future
        return self._writer.put_settle(settlements)

    async def queued_domains(self) -> Mapping[str, int]:
        return await self._ask(self._list_thread, self._listing.queued_domains, self._clock_us())

    async def expire(
        self, domain: str, *, kept_before_us: int, limit: int
    ) -> Sequence[QueuedMessage]:
        keys = await self._ask(
            self._list_thread, self._listing.find_expired, domain, kept_before_us, limit
        )
        if not keys:
            return ()
        moved = await self._writer.put_call(
            spool_moves.expire(keys, kept_before_us, self._clock_us())
        )
        return await self._ask(self._list_thread, self._listing.show_keys, moved)

    async def open_body(self, queue_id: int) -> EmbeddedBody:
        return await self._ask(self._claim_thread, self._open_body, queue_id)

    def _open_body(self, queue_id: int) -> EmbeddedBody:
        reader = self._claim_octets
        name = format_queue_id(queue_id)
        for _ in range(3):
            place = reader.find_place(queue_id)
            if place is None:
                raise KeyError(name)
            try:
                fd = reader.open_file(place)
            except FileNotFoundError:
                continue  # moved by compaction
            try:
                header = check_header(place, os.pread(fd, HEADER_BYTES, place.at))
            except BaseException:
                os.close(fd)
                raise
            return EmbeddedBody(fd, place, header, self._file_threads)
        raise BodyDamaged(f"{name}: file is missing")

    # ------------------------------------------------------------------ operator

    async def list_messages(
        self, selection: Selection, *, after: int | None, limit: int
    ) -> Sequence[QueuedMessage]:
        return await self._ask(
            self._list_thread, self._listing.list_messages, selection, after, limit
        )

    async def act(self, selection: Selection, action: OperatorAction, *, now_us: int) -> int:
        moved = 0
        after = (-1, -1)
        while True:
            keys = await self._ask(
                self._list_thread, self._listing.find_keys, selection, after, _ACT_AT_ONCE
            )
            if keys:
                after = keys[-1]
                work = spool_moves.act(keys, action, now_us, self._due)
                moved += await self._writer.put_call(work)
            if len(keys) < _ACT_AT_ONCE:
                self._settled = True
                return moved

    async def totals(self) -> Sequence[DomainTotals]:
        return await self._ask(self._list_thread, self._listing.totals)

    # ------------------------------------------------------------------ compaction

    def _look_for_dead(self) -> None:
        if self._closing:
            return
        if self._settled and self._health.failure is None:
            self._settled = False
            self._keep(self.compact())
        self._compact = self._loop.call_later(self._settings.compact_seconds, self._look_for_dead)

    async def compact(self) -> int:
        """Copy survivors out of segments that are mostly dead; returns how many were copied."""
        copied = 0
        try:
            while not self._closing:
                copies = await self._ask(self._list_thread, self._compactor.next_copies)
                if not copies:
                    break
                await self._writer.put_copies(copies)
                copied += len(copies)
        except StorageError as error:
            observe.trouble("spool", "compaction", error)
        return copied


def _remove_after(future: asyncio.Future[Any], spill: Spill, *, always: bool = False) -> None:
    """Forget the file of a message whose commit nobody waits for, unless it was taken."""
    if future.cancelled() or future.exception() is not None or always:
        spill.remove()
