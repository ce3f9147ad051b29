"""A spool in memory: the whole promise of `ports_spool.Spool` except surviving the process.

Tests of services use it in place of the embedded engine; both pass
`tests/contract/test_spool_contract.py`. Set `trouble` to make intake fail the way a
full or broken disk does.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from posthouse import observe
from posthouse.errors import BodyDamaged, StorageBroken, StorageError
from posthouse.mail.envelope import Client, Envelope
from posthouse.mail.queueid import format_queue_id, make_queue_id, time_us_of
from posthouse.ports_spool import (
    AcceptListener,
    Claim,
    Cursor,
    DomainTotals,
    Incoming,
    OperatorAction,
    Outcome,
    QueuedMessage,
    QueuedRecipient,
    Selection,
    Settlement,
    State,
)

_ENOUGH = 1 << 20


@dataclass
class _Row:
    recipient: QueuedRecipient
    kept_us: int


@dataclass
class _Message:
    queue_id: int
    envelope: Envelope
    client: Client
    body: bytes
    crc: int
    rows: dict[int, _Row] = field(default_factory=dict)

    def view(self, recipients: Iterable[QueuedRecipient], body: bytes | None) -> QueuedMessage:
        return QueuedMessage(
            queue_id=self.queue_id,
            received_us=time_us_of(self.queue_id),
            size_bytes=len(self.body),
            envelope_sender=self.envelope.sender,
            body_type=self.envelope.body,
            smtputf8=self.envelope.smtputf8,
            ret=self.envelope.ret,
            envid=self.envelope.envid,
            client=self.client,
            recipients=tuple(recipients),
            body=body,
            recipients_in_all=len(self.envelope.recipients),
        )


class _MemoryIncoming:
    def __init__(self, spool: MemorySpool, queue_id: int) -> None:
        self._spool = spool
        self.queue_id = queue_id
        self.size_bytes = 0
        self.chunks: list[bytes] = []
        self._undrained = 0
        self.taken = False  # commit or discard was called

    def write(self, data: bytes) -> bool:
        self.chunks.append(bytes(data))
        self.size_bytes += len(data)
        self._undrained += len(data)
        return self._undrained < _ENOUGH

    async def drain(self) -> None:
        await asyncio.sleep(0)
        self._undrained = 0
        if self._spool.trouble is not None:
            raise self._spool.trouble

    def discard(self) -> None:
        if not self.taken:
            self.taken = True
            self.chunks.clear()


class _MemoryBody:
    def __init__(self, message: _Message) -> None:
        self._data = message.body
        self._damaged = zlib.crc32(message.body) != message.crc
        self._name = format_queue_id(message.queue_id)
        self._at = 0
        self.size_bytes = len(message.body)

    async def read(self, limit: int) -> bytes:
        piece = self._data[self._at : self._at + limit]
        self._at += len(piece)
        if self._damaged and self._at >= self.size_bytes:
            raise BodyDamaged(f"{self._name}: checksum does not match")
        return piece

    def close(self) -> None:
        self._data = b""


class MemorySpool:
    """See `ports_spool.Spool`. `trouble`: what intake raises while it is set."""

    def __init__(self, shard: int = 0, clock_us: Callable[[], int] | None = None) -> None:
        self.shard = shard
        self.trouble: StorageError | None = None
        self._clock_us = clock_us or (lambda: time.time_ns() // 1000)
        self._messages: dict[int, _Message] = {}
        self._listener: AcceptListener | None = None
        self._last_stamp_us = 0
        self._last_due_us = 0

    # ------------------------------------------------------------------ intake

    def intake_problem(self) -> str | None:
        return None if self.trouble is None else self.trouble.detail

    def begin(self) -> _MemoryIncoming:
        if self.trouble is not None:
            raise self.trouble
        self._last_stamp_us = max(self._last_stamp_us + 1, self._clock_us())
        return _MemoryIncoming(self, make_queue_id(self._last_stamp_us, self.shard))

    def commit(self, incoming: Incoming, *, envelope: Envelope, client: Client) -> Awaitable[None]:
        assert isinstance(incoming, _MemoryIncoming)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if incoming.taken or not envelope.recipients:
            future.set_exception(StorageBroken("this message cannot be committed"))
            return future
        incoming.taken = True
        loop.call_soon(self._store, incoming, envelope, client, future)
        return future

    def _store(
        self,
        incoming: _MemoryIncoming,
        envelope: Envelope,
        client: Client,
        future: asyncio.Future[None],
    ) -> None:
        if self.trouble is not None:
            if not future.done():
                future.set_exception(self.trouble)
            return
        body = b"".join(incoming.chunks)
        due_us = self._next_due_us(self._clock_us())
        message = _Message(incoming.queue_id, envelope, client, body, zlib.crc32(body))
        for seq, recipient in enumerate(envelope.recipients):
            row = QueuedRecipient(
                seq=seq,
                address=recipient.address,
                domain=recipient.domain,
                notify=recipient.notify,
                orcpt=recipient.orcpt,
                state=State.HELD if recipient.hold else State.QUEUED,
                attempts=1 if recipient.hold else 0,
                reason=recipient.hold,
                due_us=due_us,
            )
            message.rows[seq] = _Row(row, due_us)
        self._messages[message.queue_id] = message
        rung = [row.recipient for row in message.rows.values() if not row.recipient.reason]
        if self._listener is not None and rung:
            self._listener(message.view(rung, body))
        if not future.done():
            future.set_result(None)

    def _next_due_us(self, now_us: int) -> int:
        self._last_due_us = max(now_us, self._last_due_us + 1)
        return self._last_due_us

    def set_accept_listener(self, listener: AcceptListener | None) -> None:
        self._listener = listener

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
        await asyncio.sleep(0)
        now_us = max(now_us, self._last_due_us)
        behind = (-1, -1, -1) if after is None else (after.due_us, after.queue_id, after.seq)
        waiting = sorted(
            key
            for message in self._messages.values()
            for row in message.rows.values()
            if row.recipient.domain == domain
            and row.recipient.state is State.QUEUED
            and (key := (row.recipient.due_us, message.queue_id, row.recipient.seq)) > behind
        )
        taken: dict[int, list[int]] = {}
        cursor, exhausted, next_due_us = after, True, None
        for key in waiting:
            due_us, queue_id, seq = key
            if due_us > now_us:
                next_due_us = due_us
                break
            if queue_id not in taken and len(taken) >= max_messages:
                exhausted = False
                break
            taken.setdefault(queue_id, []).append(seq)
            cursor = Cursor(due_us, queue_id, seq)
        found = []
        for queue_id, seqs in taken.items():
            message = self._messages[queue_id]
            if zlib.crc32(message.body) != message.crc:
                self._hold_damaged(message)
                continue
            body = None
            if len(message.body) <= max_bytes:
                max_bytes -= len(message.body)
                body = message.body
            found.append(message.view((message.rows[s].recipient for s in sorted(seqs)), body))
        return Claim(tuple(found), cursor, exhausted, next_due_us)

    def _hold_damaged(self, message: _Message) -> None:
        observe.alert("spool", f"{format_queue_id(message.queue_id)}: damaged body")
        for row in message.rows.values():
            row.recipient = msgspec.structs.replace(
                row.recipient,
                state=State.HELD,
                due_us=self._clock_us(),
                reason="damaged: checksum of the body",
            )

    def settle(self, settlements: Sequence[Settlement]) -> Awaitable[None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        loop.call_soon(self._settle, tuple(settlements), future)
        return future

    def _settle(self, settlements: Sequence[Settlement], future: asyncio.Future[None]) -> None:
        for settlement in settlements:
            message = self._messages.get(settlement.queue_id)
            row = None if message is None else message.rows.get(settlement.seq)
            if message is None or row is None:
                continue
            if settlement.outcome is Outcome.DELIVERED:
                self._remove(message, settlement.seq)
                continue
            if row.recipient.state is not State.QUEUED:
                continue
            held = settlement.outcome is Outcome.HELD
            row.recipient = msgspec.structs.replace(
                row.recipient,
                state=State.HELD if held else State.QUEUED,
                due_us=self._clock_us() if held else settlement.due_us,
                attempts=row.recipient.attempts + 1,
                reason=settlement.reason,
                reply=settlement.reply,
            )
        if not future.done():
            future.set_result(None)

    def _remove(self, message: _Message, seq: int) -> None:
        del message.rows[seq]
        if not message.rows:
            del self._messages[message.queue_id]

    async def queued_domains(self) -> Mapping[str, int]:
        earliest: dict[str, int] = {}
        now_us = self._clock_us()
        for message in self._messages.values():
            for row in message.rows.values():
                if row.recipient.state is State.QUEUED:
                    domain, due_us = row.recipient.domain, row.recipient.due_us
                    if due_us <= self._last_due_us:  # due, also when the clock was set back
                        due_us = min(due_us, now_us)
                    earliest[domain] = min(due_us, earliest.get(domain, due_us))
        return earliest

    async def expire(
        self, domain: str, *, kept_before_us: int, limit: int
    ) -> Sequence[QueuedMessage]:
        expired = []
        for message in list(self._messages.values()):
            moved = []
            for row in message.rows.values():
                if (
                    row.recipient.domain == domain
                    and row.recipient.state is State.QUEUED
                    and row.kept_us < kept_before_us
                    and limit > 0
                ):
                    limit -= 1
                    row.recipient = msgspec.structs.replace(
                        row.recipient,
                        state=State.HELD,
                        due_us=self._clock_us(),
                        reason="expired",
                    )
                    moved.append(row.recipient)
            if moved:
                expired.append(message.view(moved, None))
        return expired

    async def open_body(self, queue_id: int) -> _MemoryBody:
        return _MemoryBody(self._messages[queue_id])

    # ------------------------------------------------------------------ operator

    async def list_messages(
        self, selection: Selection, *, after: int | None, limit: int
    ) -> Sequence[QueuedMessage]:
        found: list[QueuedMessage] = []
        for queue_id in sorted(self._messages):
            if len(found) >= limit:
                break
            message = self._messages[queue_id]
            rows = self._meant(message, selection)
            if rows and (after is None or queue_id > after):
                found.append(message.view((row.recipient for row in rows), None))
        return found

    async def act(self, selection: Selection, action: OperatorAction, *, now_us: int) -> int:
        moved = 0
        for message in list(self._messages.values()):
            for row in self._meant(message, selection):
                moved += self._move(message, row, action, now_us)
        return moved

    def _move(self, message: _Message, row: _Row, action: OperatorAction, now_us: int) -> bool:
        recipient = row.recipient
        if action is OperatorAction.DELETE:
            self._remove(message, recipient.seq)
            return True
        wanted = State.HELD if action is OperatorAction.RELEASE else State.QUEUED
        if recipient.state is not wanted:
            return False
        if action is OperatorAction.HOLD:
            row.recipient = msgspec.structs.replace(
                recipient, state=State.HELD, due_us=now_us, reason="held by operator"
            )
            return True
        due_us = self._next_due_us(now_us)
        if action is OperatorAction.RELEASE:
            row.kept_us = now_us
            recipient = msgspec.structs.replace(recipient, reason="")
        row.recipient = msgspec.structs.replace(recipient, state=State.QUEUED, due_us=due_us)
        return True

    def _meant(self, message: _Message, selection: Selection) -> list[_Row]:
        if selection.queue_ids and message.queue_id not in selection.queue_ids:
            return []
        sender = selection.sender
        if sender is not None and sender.casefold() != message.envelope.sender.casefold():
            return []
        older_than_us = selection.older_than_us
        if older_than_us is not None and time_us_of(message.queue_id) >= older_than_us:
            return []
        since_us = selection.since_us
        fresh = since_us is None or time_us_of(message.queue_id) >= since_us
        return [
            row
            for row in message.rows.values()
            if _row_meant(row.recipient, selection) and (fresh or _held_since(row, since_us))
        ]

    async def totals(self) -> Sequence[DomainTotals]:
        counts: dict[str, list[int]] = {}
        waiting: dict[str, int] = {}
        for message in self._messages.values():
            seen = set()
            for row in message.rows.values():
                domain = row.recipient.domain
                received_us = time_us_of(message.queue_id)
                entry = counts.setdefault(domain, [0, 0, received_us, 0])
                entry[row.recipient.state] += 1
                entry[2] = min(entry[2], received_us)
                if row.recipient.state is State.QUEUED:
                    waiting[domain] = min(received_us, waiting.get(domain, received_us))
                if domain not in seen:
                    seen.add(domain)
                    entry[3] += len(message.body)
        return [
            DomainTotals(
                domain=d,
                queued=q,
                held=h,
                oldest_us=o,
                size_bytes=s,
                oldest_queued_us=waiting.get(d),
            )
            for d, (q, h, o, s) in sorted(counts.items())
        ]

    async def close(self) -> None:
        await asyncio.sleep(0)

    # ------------------------------------------------------------------ for tests

    def damage_body(self, queue_id: int) -> None:
        """Flip a bit of a stored body, as a bad disk does."""
        message = self._messages[queue_id]
        message.body = bytes([message.body[0] ^ 1]) + message.body[1:]


def _held_since(row: _Row, since_us: int | None) -> bool:
    held = row.recipient.state is State.HELD
    return held and (since_us is None or row.recipient.due_us >= since_us)


def _row_meant(recipient: QueuedRecipient, selection: Selection) -> bool:
    if selection.domain and selection.domain.lower() != recipient.domain:
        return False
    if selection.recipient and selection.recipient.casefold() != recipient.address.casefold():
        return False
    if selection.state is not None and selection.state is not recipient.state:
        return False
    if selection.reply_code:
        return recipient.reply[:3] == selection.reply_code
    wanted = selection.reply.casefold()
    return not wanted or (
        wanted in recipient.reply.casefold() or wanted in recipient.reason.casefold()
    )
