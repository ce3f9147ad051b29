"""The ready mail of one next hop: a short deque in memory, fed from the spool.

Fresh mail comes straight from reception (the bell), body in memory, while the
next hop keeps up. When it does not, or after an outage, batches are claimed
from the spool, oldest due first, the next one while the last is being sent.
The bell is lossy; the table is the truth: the relay compares once a minute.

Out of a backlog, every fourth message is a fresh one, so that what arrives now
does not wait for weeks of mail. A large message goes when nothing small is
ready, or when fifty small ones have passed it; while small ones are ready at
most a few sessions carry large ones.

While closed (the next hop is not up) nothing is read, held or touched: a
hundred thousand waiting messages cost nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Final

from posthouse import observe
from posthouse.domain.pace import NEVER_US, Pace
from posthouse.errors import StorageError
from posthouse.ports_relay import Transaction
from posthouse.ports_spool import Claim, Cursor, QueuedMessage
from posthouse.services.relay_ledger import Key, Timer
from posthouse.services.relay_means import Means

CLAIM_RETRY_SECONDS: Final = 5.0
FEW_DOMAINS: Final = 8  # of one next hop: with more, the table is asked which have mail at all
MARGIN_US: Final = 300_000_000  # no row is due later than the longest delay and this
EVER_US: Final = 1 << 62
FRESH_EVERY: Final = 4
MAX_FRESH: Final = 25  # with their bodies in memory
LARGE_BYTES: Final = 1 << 20  # a second at 8 Mbit/s
LARGE_EVERY: Final = 50
MAX_LARGE_BESIDE: Final = 2  # sessions with large ones while small ones are ready
MAX_LARGE: Final = 1000  # waiting, without their bodies
MIN_DUE_SECONDS: Final = 1.0  # rows that fall due in the same second are claimed together


class _Domain:
    """One domain's queue in the spool as far as this relay has read it.

    behind: the table may hold due rows that were not read. late: messages rung
    while a claim runs that may just have missed them; overrun: `late` was full.
    """

    __slots__ = ("behind", "cursor", "horizon_us", "late", "name", "next_due_us", "overrun")

    def __init__(self, name: str) -> None:
        self.name = name
        self.behind = False
        self.cursor: Cursor | None = None
        self.next_due_us: int | None = None
        self.horizon_us = 0  # rows due until then are read, though the clock is not there yet
        self.late: list[QueuedMessage] | None = None
        self.overrun = False


class ReadyQueue:
    """Transactions ready to be sent to one next hop.

    on_ready is called when some came, on_dry when a reading found that nothing is due.
    pace: how fast they are handed out, None = as asked. on_waiting: who wants to hear of mail
    that is accepted while closed, None = nobody.
    """

    def __init__(
        self, means: Means, on_ready: Callable[[], None], on_dry: Callable[[], None]
    ) -> None:
        self._means = means
        self._on_ready = on_ready
        self._on_dry = on_dry
        self.pace: Pace | None = None
        self.on_waiting: Callable[[QueuedMessage], None] | None = None
        self._pace_timer: Timer | None = None
        self._ready: deque[Transaction] = deque()
        self._fresh: deque[Transaction] = deque()  # while there is a backlog
        self._large: deque[Transaction] = deque()
        self._large_out: set[int] = set()  # queue ids under way
        self._turn = 0
        self._passed = 0  # small ones since the last large one
        self._unread = False  # open, but not compared with the table yet
        self._domains: dict[str, _Domain] = {}
        self._behind: dict[str, _Domain] = {}  # in turn
        self._claiming = False
        self._late_bytes = 0
        self._epoch = 0
        self._due_timer: Timer | None = None
        self._due_at_us = 0
        self.is_open = False

    def __len__(self) -> int:
        return len(self._ready) + len(self._fresh) + len(self._large)

    @property
    def head(self) -> Transaction | None:
        """The transaction that has waited longest."""
        for waiting in (self._ready, self._fresh, self._large):
            if waiting:
                return waiting[0]
        return None

    @property
    def dry(self) -> bool:
        """Nothing is ready, and nothing in the table is due."""
        return not (len(self) or self._behind or self._claiming or self._unread)

    # ------------------------------------------------------------------ in and out

    def pop(self) -> Transaction | None:
        """Hand out the next transaction; its recipients stay in hand until settled."""
        ready = self._ready
        odd = self._fresh or self._large
        if not (ready or odd) or self._means.ledger.full:
            return None
        if self.pace is not None and not self._may_send(self.pace):
            return None
        transaction = self._choose() if odd else ready.popleft()
        if self._behind and len(ready) < self._means.settings.batch_messages:
            self.refill()
        return transaction

    def _may_send(self, pace: Pace) -> bool:
        wait_us = pace.take(self._means.clock_us())
        if wait_us and wait_us < NEVER_US and self._pace_timer is None:
            self._pace_timer = self._means.later(wait_us / 1e6, self._go_on)
        return not wait_us

    def _go_on(self) -> None:
        self._pace_timer = None
        self._on_ready()

    def _choose(self) -> Transaction:
        """The next one when there are fresh or large ones besides; see the module."""
        ready, fresh, large = self._ready, self._fresh, self._large
        self._turn += 1
        if fresh and (not ready or self._turn % FRESH_EVERY == 0):
            return fresh.popleft()
        if large:
            due = self._passed >= LARGE_EVERY and len(self._large_out) < MAX_LARGE_BESIDE
            if due or not ready:
                self._passed = 0
                transaction = large.popleft()
                self._large_out.add(transaction.message.queue_id)
                return transaction
            self._passed += 1
        return ready.popleft()

    def put_front(self, transaction: Transaction) -> None:
        """Take back what a session could not send; it is next. Closed: back to the table."""
        if self.is_open:
            self._large_out.discard(transaction.message.queue_id)
            large = transaction.message.size_bytes > LARGE_BYTES
            (self._large if large else self._ready).appendleft(transaction)
        else:
            self.put_back(transaction)

    def put_back(self, transaction: Transaction) -> None:
        """Give a transaction back to the table untried."""
        self._means.ledger.put_back(transaction.message)
        self.forget_body(transaction)

    def forget_body(self, transaction: Transaction) -> None:
        """A transaction is over: its body no longer counts."""
        if self._large_out:
            self._large_out.discard(transaction.message.queue_id)
        if transaction.body is not None:
            self._means.body_bytes -= len(transaction.body)

    def ring(self, domain: str, message: QueuedMessage, *, whole: bool) -> None:
        """Hear of a freshly accepted message, with its recipients in `domain`.

        whole: these are all its recipients.
        """
        if not self.is_open:
            if self.on_waiting is not None:
                self.on_waiting(message)
            return
        queue = self._domains[domain]
        means = self._means
        settings = means.settings
        if queue.behind:
            if len(self._fresh) < MAX_FRESH and means.body_bytes < settings.body_bytes:
                if self._admit(message, into=self._fresh) and whole:
                    means.ledger.expect_removal(message.queue_id)
                self._on_ready()
            else:
                self._note_late(queue, message)
            return
        if len(self._ready) < settings.batch_messages and means.body_bytes < settings.body_bytes:
            if self._admit(message) and whole:
                means.ledger.expect_removal(message.queue_id)
            self._on_ready()
            return
        self._fall_behind(queue)
        self.refill()

    def _note_late(self, queue: _Domain, message: QueuedMessage) -> None:
        late, settings = queue.late, self._means.settings
        if (
            late is None
            or len(late) >= settings.batch_messages
            or self._late_bytes + message.size_bytes > settings.batch_bytes
        ):
            queue.overrun = True
        else:
            late.append(message)
            self._late_bytes += message.size_bytes

    # ------------------------------------------------------------------ opening and closing

    def set_domains(self, names: Iterable[str]) -> None:
        """Serve exactly these domains; what is ready goes back to the table.

        To be followed by `notice` for those that have mail: ten thousand domains
        must not cause as many claims at once.
        """
        was_open = self.is_open
        self.close()
        self._domains = {name: _Domain(name) for name in names}
        self.is_open = was_open

    def open(self) -> None:
        """The next hop takes mail: read every domain from its oldest row."""
        self.is_open = True
        if len(self._domains) > FEW_DOMAINS:
            self._unread = True
            self._means.look()
            return
        for queue in self._domains.values():
            self._fall_behind(queue)
        self.refill()

    def close(self) -> None:
        """The next hop takes none: give everything ready back, forget how far was read."""
        self.is_open = False
        self._epoch += 1
        for waiting in (self._ready, self._fresh, self._large):
            while waiting:
                self.put_back(waiting.popleft())
        self._unread = False
        for queue in self._domains.values():
            queue.behind, queue.cursor, queue.next_due_us = False, None, None
            queue.horizon_us = 0
        self._behind.clear()
        if self._due_timer is not None:
            self._due_timer.cancel()
            self._due_timer = None

    def compared(self) -> None:
        """Hear that `notice` was called for every domain that has mail."""
        self._unread = False

    def notice(self, domain: str, due_us: int) -> None:
        """Compare with the table: its earliest queued row of `domain` falls due then."""
        queue = self._domains.get(domain)
        if queue is None or not self.is_open or queue.behind:
            return
        now_us = self._means.clock_us()
        stuck = due_us > now_us + max(self._means.settings.retry_us) + MARGIN_US
        if due_us <= now_us or stuck:  # deferred while the clock was far ahead
            self._fall_behind(queue)
            if stuck:
                queue.horizon_us = EVER_US
            self.refill()
        else:
            self.defer(domain, due_us)

    def defer(self, domain: str, due_us: int) -> None:
        """Remember when a row of `domain` falls due."""
        queue = self._domains.get(domain)
        if queue is None or not self.is_open:
            return
        if queue.next_due_us is None or due_us < queue.next_due_us:
            queue.next_due_us = due_us
            self._arm(due_us)

    # ------------------------------------------------------------------ claiming

    def refill(self) -> None:
        """Claim the next batch if there may be one and room for it."""
        if (
            self._claiming
            or not self._behind
            or not self.is_open
            or len(self._ready) >= self._means.settings.batch_messages
            or len(self._large) >= MAX_LARGE
        ):
            return
        queue = self._behind.pop(next(iter(self._behind)))
        self._claiming = True
        self._means.start(self._claim(queue), f"claim for {queue.name}")

    async def _claim(self, queue: _Domain) -> None:
        means = self._means
        epoch = self._epoch
        settled = means.ledger.watch()
        queue.late, queue.overrun, self._late_bytes = [], False, 0
        claim = None
        try:
            settings = means.settings
            claim = await means.spool.claim(
                queue.name,
                after=queue.cursor,
                now_us=max(means.clock_us(), queue.horizon_us),
                max_messages=settings.batch_messages,
                max_bytes=max(0, min(settings.batch_bytes, settings.body_bytes - means.body_bytes)),
            )
        except StorageError as error:
            observe.trouble("relay", f"{queue.name}: the queue cannot be read", error)
        finally:
            means.ledger.unwatch(settled)
            late, queue.late = queue.late, None
            self._claiming = False
            if claim is None and epoch == self._epoch:
                self._behind[queue.name] = queue
                means.later(CLAIM_RETRY_SECONDS, self.refill)
        if claim is not None and epoch == self._epoch:
            self._take(queue, claim, late or [], settled)
        if claim is not None:
            self.refill()

    def _take(
        self, queue: _Domain, claim: Claim, late: list[QueuedMessage], settled: set[Key]
    ) -> None:
        for message in claim.messages:
            self._admit(message, settled)
        if not claim.exhausted:
            queue.cursor = claim.cursor
            self._behind[queue.name] = queue
        else:
            for message in late:
                self._admit(message, settled)
            if queue.overrun:
                queue.cursor = claim.cursor
                self._behind[queue.name] = queue
            else:
                queue.behind, queue.cursor, queue.horizon_us = False, None, 0
                if claim.next_due_us is not None:
                    self.defer(queue.name, claim.next_due_us)
        if len(self):
            self._on_ready()
        elif self.dry:
            self._on_dry()

    def _admit(
        self,
        message: QueuedMessage,
        settled: Collection[Key] = (),
        into: deque[Transaction] | None = None,
    ) -> bool:
        taken = self._means.ledger.take(message, settled)
        if taken is None:
            return False
        body = taken.body
        if taken.size_bytes > LARGE_BYTES:
            body, into = None, self._large  # it may wait for long: it is read again then
        if body is not None:
            self._means.body_bytes += len(body)
        if taken.recipients_in_all == len(taken.recipients):
            self._means.ledger.expect_removal(taken.queue_id)
        waiting = self._ready if into is None else into
        waiting.append(Transaction(message=taken, body=body))
        return True

    def _fall_behind(self, queue: _Domain) -> None:
        queue.behind, queue.cursor, queue.next_due_us = True, None, None
        self._behind[queue.name] = queue

    # ------------------------------------------------------------------ falling due

    def _arm(self, due_us: int) -> None:
        if self._due_timer is not None:
            if self._due_at_us <= due_us:
                return
            self._due_timer.cancel()
        seconds = max(MIN_DUE_SECONDS, (due_us - self._means.clock_us()) / 1e6)
        self._due_at_us = due_us
        self._due_timer = self._means.later(seconds, self._fall_due)

    def _fall_due(self) -> None:
        self._due_timer = None
        now_us = self._means.clock_us()
        coming = []
        for queue in self._domains.values():
            if queue.next_due_us is None:
                continue
            if queue.next_due_us > now_us:
                coming.append(queue.next_due_us)
            elif not queue.behind:
                self._fall_behind(queue)
            else:  # the claim under way may have begun before this instant: one more
                queue.next_due_us, queue.overrun = None, True
        if coming:
            self._arm(min(coming))
        self.refill()
