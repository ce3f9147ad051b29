"""The relay's end of one session: hands out work, hears what became of it.

This is the hot path of a drain: plain functions, no task per message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from posthouse import observe
from posthouse.domain.instants import left_us
from posthouse.domain.replies import classify_reply, dsn_code
from posthouse.domain.reply_table import Effect, Fate, Meaning
from posthouse.domain.schedule import delay_us
from posthouse.mail.credentials import Credentials
from posthouse.mail.queueid import format_queue_id
from posthouse.ports_relay import RecipientResult, Session, Target, Transaction
from posthouse.ports_spool import Outcome, QueuedMessage, QueuedRecipient, Settlement
from posthouse.services.relay_evidence import Evidence
from posthouse.services.relay_means import Means
from posthouse.services.relay_queue import ReadyQueue
from posthouse.services.relay_senders import SENDER_US

_LATE_STAGES: Final = frozenset({"rcpt", "data", "dot"})
_OUR_STAGES: Final = frozenset({"local", "damaged"})


def _meaning(result: RecipientResult) -> Meaning:
    return classify_reply(result.code, result.text, result.stage)


class Owner(Protocol):
    """What a lane needs of its pool."""

    queue: ReadyQueue
    means: Means
    evidence: Evidence

    def rest(self, lane: Lane) -> None:
        """There was no work for this lane."""

    def slower(self, relay: str, reply: str) -> None:
        """The next hop wants less at a time."""

    def see_whether_dry(self) -> None:
        """An outcome came. While `evidence.watched`."""


class Lane:
    """One session's `ports_relay.WorkSource`.

    resting: it asked for work and there was none. outstanding: transactions
    given and not ended. served: recipients accepted over it; refused: for good.
    """

    __slots__ = (
        "_evidence",
        "leaving",
        "outstanding",
        "owner",
        "quiet_ticks",
        "refused",
        "relay",
        "resting",
        "served",
        "session",
        "still_ticks",
        "target",
    )

    def __init__(self, owner: Owner, target: Target) -> None:
        self.owner = owner
        self._evidence = owner.evidence
        self.session: Session | None = None
        self.target = target
        self.relay = f"{target.host}[{target.address}]:{target.port}"
        self.leaving = False
        self.resting = False
        self.outstanding = 0
        self.served = 0
        self.refused = 0
        self.quiet_ticks = 0
        self.still_ticks = 0  # of the pool, with work under way and no outcome

    @property
    def useful(self) -> bool:
        """It came to a decision about somebody: the next hop works."""
        return self.served + self.refused > 0

    @property
    def idle(self) -> bool:
        """Nothing to do and nothing under way."""
        return self.resting and not self.outstanding

    def poke(self) -> None:
        """Work may have come."""
        self.resting = False
        if self.session is not None:
            self.session.poke()

    def quit(self) -> None:
        """Take no more work; the session ends when what is under way has its answers."""
        if not self.leaving and self.session is not None:
            self.leaving = True
            self.session.quit()

    def next_transaction(self) -> Transaction | None:
        """See `ports_relay.WorkSource`."""
        # Before `session` is set the route has not welcomed it and may yet give it up.
        if self.session is None or self.leaving:
            return None
        transaction = self.owner.queue.pop()
        if transaction is not None and self._evidence.senders.passed_over:
            transaction = self._pass_over(transaction)
        if transaction is None:
            if not self.resting:
                self.resting = True
                self.owner.rest(self)
            return None
        self.outstanding += 1
        self.quiet_ticks = 0
        vouching = self.owner.means.vouching
        if vouching.active:
            transaction.credentials = vouching.find(self.target, transaction.message)
        return transaction

    def _pass_over(self, transaction: Transaction | None) -> Transaction | None:
        """Defer what comes from senders that were refused a moment ago; the next from others."""
        owner, evidence = self.owner, self._evidence
        passed_over = evidence.senders.passed_over
        now_us = owner.means.clock_us()
        while transaction is not None:
            message = transaction.message
            until_us, reply = passed_over.get(message.envelope_sender, (0, ""))
            if not left_us(until_us, now_us, longest_us=SENDER_US):
                passed_over.pop(message.envelope_sender, None)
                break
            for recipient in message.recipients:
                self._defer(message, recipient, "its sender was refused a moment ago", reply)
            owner.queue.forget_body(transaction)
            if evidence.watched:
                evidence.unproven()
            transaction = owner.queue.pop()
        return transaction

    def finished(self, transaction: Transaction, results: Sequence[RecipientResult]) -> None:
        """See `ports_relay.WorkSource`."""
        self.outstanding -= 1
        self.still_ticks = 0
        owner = self.owner
        message = transaction.message
        recipients = message.recipients
        if len(recipients) == 1 and len(results) == 1 and 200 <= results[0].code < 300:
            self._settle(message, recipients[0], results[0])
            owner.queue.forget_body(transaction)
        else:
            self._settle_each(transaction, results)
            if results:
                self._judge(message, results)
        if self._evidence.watched:
            owner.see_whether_dry()

    def _settle_each(self, transaction: Transaction, results: Sequence[RecipientResult]) -> None:
        message = transaction.message
        by_seq = {recipient.seq: recipient for recipient in message.recipients}
        again = self._offer_again(transaction, results)
        for result in results:
            if result.seq in again:
                del by_seq[result.seq]
            recipient = by_seq.pop(result.seq, None)
            if recipient is not None:
                self._settle(message, recipient, result)
        for recipient in by_seq.values():
            self._defer(message, recipient, "no reply for this recipient", "")
        if not again:  # else the same body goes on with them
            self.owner.queue.forget_body(transaction)

    def returned(self, transaction: Transaction, *, why: str, after_dot: bool) -> None:
        """See `ports_relay.WorkSource`."""
        self.outstanding -= 1
        owner, evidence = self.owner, self._evidence
        message = transaction.message
        if evidence.watched:
            evidence.unproven()
        if after_dot:
            reason = f"{why} after the final dot; it may arrive twice"
        elif (why.startswith("421 ") and self.useful) or evidence.strike(message.queue_id) < 2:
            owner.queue.put_front(transaction)  # a limit of the session says nothing of it
            return
        else:
            reason = f"{why}, again with this message"
        for recipient in message.recipients:
            self._defer(message, recipient, reason, "")
        owner.queue.forget_body(transaction)

    def auth_answered(self, credentials: Credentials, *, code: int, text: str) -> None:
        """See `ports_relay.WorkSource`."""
        self.owner.means.vouching.answered(self.target, credentials, code, text)

    def _settle(
        self, message: QueuedMessage, recipient: QueuedRecipient, result: RecipientResult
    ) -> None:
        code, text = result.code, result.text
        fate, word, effect = classify_reply(code, text, result.stage)
        reply = text if text[:3] == str(code) else f"{code} {text}"
        if fate is Fate.DELIVERED:
            self.served += 1
            self.owner.means.ledger.settle(
                Settlement(message.queue_id, recipient.seq, Outcome.DELIVERED)
            )
            self._log(message, recipient, dsn_code(code, text), "sent", reply)
            self._evidence.delivered()
            return
        owner, evidence = self.owner, self._evidence
        if fate is Fate.HELD:
            reason = f"{word}: refused by {self.relay} at {result.stage.upper()}"
            if result.stage == "damaged":
                reason, reply = text, ""
            owner.means.ledger.settle(
                Settlement(message.queue_id, recipient.seq, Outcome.HELD, 0, reason, reply)
            )
            self._log(message, recipient, dsn_code(code, text), "held", reply or reason)
            ours = result.stage in _OUR_STAGES
            self.refused += not ours
            if evidence.watched:
                if ours:
                    evidence.unproven()
                else:
                    evidence.held_for_good(self.relay, reply)
            return
        reason = f"{word}: deferred by {self.relay}"
        self._defer(message, recipient, reason, reply, dsn_code(code, text))
        if evidence.watched:
            evidence.put_off(proves=effect is Effect.NONE and result.stage in _LATE_STAGES)

    def _offer_again(
        self, transaction: Transaction, results: Sequence[RecipientResult]
    ) -> set[int]:
        """Put those back in front whom the reply says nothing of. Returns their seqs.

        Those that were too many for one transaction (RFC 5321 §4.5.3.1.10), where others of
        it were delivered, so each round is smaller; and once those that met a rate limit.
        """
        meanings = [(r.seq, _meaning(r)) for r in results]
        again = set()
        if any(meaning.fate is Fate.DELIVERED for _, meaning in meanings):
            again = {seq for seq, meaning in meanings if meaning.reason == "too-many"}
        message = transaction.message
        limited = {seq for seq, meaning in meanings if meaning.effect is Effect.SLOWER}
        if limited and self._evidence.strike(message.queue_id) < 2:
            again |= limited
        rest = tuple(r for r in message.recipients if r.seq in again)
        if rest:
            if len(rest) < len(message.recipients):
                self.owner.means.ledger.forget_removal(message.queue_id)
                message = msgspec.structs.replace(message, recipients=rest)
            self.owner.queue.put_front(Transaction(message=message, body=transaction.body))
        return {recipient.seq for recipient in rest}

    def _judge(self, message: QueuedMessage, results: Sequence[RecipientResult]) -> None:
        """What do the replies tell of the next hop?"""
        for result in results:
            if _meaning(result).effect is Effect.SLOWER:
                if not (result.code == 421 and self.useful):  # a limit of one session
                    self.owner.slower(self.relay, result.text)
                self.quit()  # limits of a session end with it; postscreen wants a fresh one
                return
        evidence = self._evidence
        first = results[0]
        fate, _, effect = _meaning(first)
        if fate is Fate.DELIVERED:
            return
        if effect is Effect.UNCLEAR and first.stage == "mail":
            permanent = fate is Fate.BLOCKED
            evidence.refused(self.relay, first.text, message.envelope_sender, permanent=permanent)
        elif any(_meaning(result).effect is Effect.TROUBLE for result in results):
            evidence.stumbled(f"{self.relay}: {first.text}")
        elif first.stage == "damaged":
            queue_id = format_queue_id(message.queue_id)
            observe.alert("damaged", f"{queue_id} is held: {first.text}", queue_id=queue_id)

    def _defer(
        self,
        message: QueuedMessage,
        recipient: QueuedRecipient,
        reason: str,
        reply: str,
        dsn: str = "4.4.2",
    ) -> None:
        means = self.owner.means
        due_us = means.clock_us() + delay_us(means.settings.retry_us, recipient.attempts)
        means.ledger.settle(
            Settlement(message.queue_id, recipient.seq, Outcome.DEFERRED, due_us, reason, reply)
        )
        self.owner.queue.defer(recipient.domain, due_us)
        self._log(message, recipient, dsn, "deferred", reply or reason)

    def _log(
        self, message: QueuedMessage, recipient: QueuedRecipient, dsn: str, status: str, text: str
    ) -> None:
        observe.recipient_settled(
            format_queue_id(message.queue_id),
            recipient.address,
            relay=self.relay,
            delay_seconds=(self.owner.means.clock_us() - message.received_us) / 1e6,
            dsn=dsn,
            status=status,
            text=text,
            size_bytes=message.size_bytes,
        )
