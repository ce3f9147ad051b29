"""A WorkSource over a list: what an open session is given and what it tells."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence

from posthouse.mail.credentials import Credentials
from posthouse.mail.envelope import Client
from posthouse.ports_relay import RecipientResult, Transaction
from posthouse.ports_spool import QueuedMessage, QueuedRecipient


def make_transaction(
    *recipients: str | QueuedRecipient,
    sender: str = "from@client.example",
    body: bytes | None = b"Subject: x\r\n\r\nhello\r\n",
    queue_id: int = 1,
    size_bytes: int | None = None,
    body_type: str = "",
    smtputf8: bool = False,
    ret: str = "",
    envid: str = "",
    credentials: Credentials | None = None,
) -> Transaction:
    """A transaction; recipients may be given as addresses. body None: to be read with open_body."""
    rows = tuple(
        QueuedRecipient(seq=seq, address=r, domain=r.rpartition("@")[2])
        if isinstance(r, str)
        else r
        for seq, r in enumerate(recipients or ("user@example.com",))
    )
    message = QueuedMessage(
        queue_id=queue_id,
        received_us=0,
        size_bytes=size_bytes if size_bytes is not None else len(body or b""),
        envelope_sender=sender,
        body_type=body_type,
        smtputf8=smtputf8,
        ret=ret,
        envid=envid,
        client=Client(address="192.0.2.1", port=1),
        recipients=rows,
        body=body,
    )
    return Transaction(message=message, body=body, credentials=credentials)


class ListSource:
    """Hands out transactions in order and keeps what came back.

    `finished_with` and `returned_with` are keyed by queue id; a second outcome
    for one transaction fails the test at once.
    """

    def __init__(self, transactions: Iterable[Transaction] = ()) -> None:
        self.waiting: deque[Transaction] = deque(transactions)
        self.given: list[int] = []
        self.finished_with: dict[int, Sequence[RecipientResult]] = {}
        self.returned_with: dict[int, tuple[str, bool]] = {}
        self.auth_answers: list[tuple[str, int, str]] = []
        self._settled = asyncio.Event()

    def next_transaction(self) -> Transaction | None:
        if not self.waiting:
            return None
        transaction = self.waiting.popleft()
        self.given.append(transaction.message.queue_id)
        return transaction

    def finished(self, transaction: Transaction, results: Sequence[RecipientResult]) -> None:
        self._expect_first(transaction)
        assert [r.seq for r in results] == [r.seq for r in transaction.message.recipients]
        self.finished_with[transaction.message.queue_id] = results
        self._settled.set()

    def returned(self, transaction: Transaction, *, why: str, after_dot: bool) -> None:
        self._expect_first(transaction)
        self.returned_with[transaction.message.queue_id] = (why, after_dot)
        self._settled.set()

    def auth_answered(self, credentials: Credentials, *, code: int, text: str) -> None:
        self.auth_answers.append((credentials.agreement_id, code, text))

    def _expect_first(self, transaction: Transaction) -> None:
        queue_id = transaction.message.queue_id
        assert queue_id in self.given
        assert queue_id not in self.finished_with
        assert queue_id not in self.returned_with

    async def wait_outcomes(self, count: int) -> None:
        """Wait until `count` transactions were finished or returned."""
        while len(self.finished_with) + len(self.returned_with) < count:
            self._settled.clear()
            await self._settled.wait()
