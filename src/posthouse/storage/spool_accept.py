"""A message handed to the writer, until it is durable."""

from __future__ import annotations

import asyncio

from posthouse.errors import StorageError
from posthouse.mail.envelope import Client, Envelope
from posthouse.mail.queueid import time_us_of
from posthouse.ports_spool import QueuedMessage, QueuedRecipient


class Accept:
    """A message handed to the writer. `body_crc` is known for a private file, else None."""

    __slots__ = (
        "at", "body_crc", "chunks", "client", "due_us", "envelope", "error",
        "future", "queue_id", "segment", "size", "tail", "tail_size",
    )  # fmt: skip

    def __init__(
        self,
        queue_id: int,
        size: int,
        chunks: list[bytes],
        envelope: Envelope,
        client: Client,
        future: asyncio.Future[None] | None,
        *,
        body_crc: int | None = None,
    ) -> None:
        self.queue_id = queue_id
        self.size = size
        self.chunks = chunks
        self.envelope = envelope
        self.client = client
        self.future = future
        self.body_crc = body_crc
        self.segment = self.at = self.due_us = self.tail_size = 0
        self.tail = b""
        self.error: StorageError | None = None

    def as_queued(self) -> QueuedMessage:
        """The message as the relay hears of it, without those on hold.

        With its body when that is still in memory.
        """
        envelope = self.envelope
        chunks = self.chunks
        body = None
        if self.body_crc is None:
            body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        due_us = self.due_us
        return QueuedMessage(
            queue_id=self.queue_id,
            received_us=time_us_of(self.queue_id),
            size_bytes=self.size,
            envelope_sender=envelope.sender,
            body_type=envelope.body,
            smtputf8=envelope.smtputf8,
            ret=envelope.ret,
            envid=envelope.envid,
            client=self.client,
            recipients=tuple(
                [
                    QueuedRecipient(
                        seq=seq,
                        address=recipient.address,
                        domain=recipient.domain,
                        notify=recipient.notify,
                        orcpt=recipient.orcpt,
                        due_us=due_us,
                    )
                    for seq, recipient in enumerate(envelope.recipients)
                    if not recipient.hold
                ]
            ),
            body=body,
            recipients_in_all=len(envelope.recipients),
        )
