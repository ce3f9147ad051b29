"""Reception: decides what the door may let in, and makes it durable.

Promises: no message is answered 250 before `Spool.commit` has returned; our
own trouble is always a 4xx; nobody outside the configured domains is relayed
for. Fails by refusing: a broken list, a full disk, a missing domain each have
their reply. Spec: RFC 5321 §3.3, §4.5.1, §6.1, §6.3; RFC 3848 for `with`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from posthouse import observe
from posthouse.domain import verdict
from posthouse.domain.finding import Answer, Finding
from posthouse.errors import StorageError
from posthouse.mail import trace
from posthouse.mail.address import Mailbox
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.mail.queueid import format_queue_id
from posthouse.mail.reply import Reply
from posthouse.ports_quota import QuotaGate
from posthouse.ports_session import (
    Accepted,
    AfterCommit,
    Agreements,
    Gatekeeper,
    OpenLetter,
    SessionFacts,
    WrapLetter,
)
from posthouse.ports_spool import Incoming, Spool


class Directories(Protocol):
    """Who exists in every backed-up domain (ports_recipients.RecipientDirectory, one a domain)."""

    def find(
        self, domain: str, local_part: str, network: str = ""
    ) -> Answer | Awaitable[Answer]: ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReceptionSettings:
    """hostname: our name in trace fields and replies; domains: configured name → when_unknown."""

    hostname: str
    domains: Mapping[str, verdict.WhenUnknown]


NO_STORAGE = Reply(452, "4.3.1", "Insufficient system storage")
DOMAIN_FULL = Reply(452, "4.3.1", "The domain is over its quota here, try again later")
NO_STORAGE_AFTER = Reply(451, "4.3.0", "Message could not be stored, try again later")
TOO_MANY_HOPS = Reply(554, "5.4.6", "Too many hops, this message is looping")

_ABSENT = Finding.ABSENT
# A client over its budget hears 451 so often in one session, then 421.
MAX_GUESSES_TOLD = 3


class Letter:
    """One message on its way from the door to the spool."""

    __slots__ = (
        "_client", "_envelope", "_hooks", "_incoming", "_quota", "_scan", "_spool", "_verdicts",
        "queue_id", "trace",
    )  # fmt: skip

    def __init__(
        self,
        spool: Spool,
        incoming: Incoming,
        envelope: Envelope,
        client: Client,
        *,
        trace_field: bytes,
        hooks: Sequence[AfterCommit] = (),
        verdicts: Sequence[verdict.Verdict] = (),
        quota: QuotaGate | None = None,
    ) -> None:
        self._hooks = hooks
        self._quota = quota
        self._verdicts = verdicts
        self._spool = spool
        self._incoming = incoming
        self._envelope = envelope
        self._client = client
        self._scan = trace.HeaderScan()
        self.queue_id = format_queue_id(incoming.queue_id)
        self.trace = trace_field
        incoming.write(trace_field)

    def write(self, data: bytes) -> bool:
        """Take content. False: stop reading from the client until `drain` returns."""
        if not self._scan.done:
            self._scan.feed(data)
        return self._incoming.write(data)

    async def drain(self) -> None:
        """Wait for the disk. Raises StorageError."""
        await self._incoming.drain()

    def discard(self) -> None:
        """Forget it; nothing was promised yet."""
        self._incoming.discard()

    def refusal(self) -> Reply | None:
        """What is wrong with the whole message, now that it is here."""
        self._scan.finish()
        if self._scan.received >= trace.MAX_RECEIVED:
            return TOO_MANY_HOPS
        if self._quota is not None and self._quota.refuses_all(
            self._verdicts, self._incoming.size_bytes
        ):
            return DOMAIN_FULL
        size = self._incoming.size_bytes - len(self.trace)
        for judged in self._verdicts:
            if not judged.max_bytes or size <= judged.max_bytes:
                return None  # somebody's server takes it; the others' refusal is for the relay
        return verdict.TOO_LARGE if self._verdicts else None

    def commit(self) -> Awaitable[None]:
        """Make it durable; the awaitable raises StorageError when it is not."""
        return self._spool.commit(self._incoming, envelope=self._envelope, client=self._client)

    def accepted(self) -> Reply:
        """Log the message and make the 250. Call only after `commit` has succeeded."""
        observe.message_accepted(
            self.queue_id,
            self._client.name,
            self._client.address,
            sender=self._envelope.sender,
            size_bytes=self._incoming.size_bytes,
            recipients=[recipient.address for recipient in self._envelope.recipients],
            message_id=self._scan.message_id,
        )
        for address, judged in zip(self._envelope.recipients, self._verdicts, strict=False):
            if judged.trap:
                observe.trap_hit(self.queue_id, self._client.address, address.address)
        if self._quota is not None:
            self._quota.accepted(self._verdicts, self._incoming.size_bytes)
        if self._hooks:
            self._tell()
        return Reply(250, "2.0.0", f"Ok: queued as {self.queue_id}")

    def _tell(self) -> None:
        accepted = Accepted(
            queue_id=self._incoming.queue_id,
            size_bytes=self._incoming.size_bytes,
            envelope=self._envelope,
            client=self._client,
            verdicts=tuple(self._verdicts),
        )
        for hook in self._hooks:
            try:
                hook(accepted)
            except Exception as error:  # it must not cost the sender its 250
                observe.trouble("smtpd", f"{self.queue_id}: after its commit", error)


class Reception:
    """The verdicts and the way into the spool, for every session of one worker.

    after_commit: who is told of durable messages, in this order.
    wrap_letter: who stands between the door and every new letter, or None.
    gatekeeper: who is asked before our own verdicts, or None.
    agreements: who is asked before the lists, or None.
    quota: how much domains may have, None when they may have what there is.
    """

    def __init__(
        self,
        settings: ReceptionSettings,
        *,
        spool: Spool,
        directories: Directories,
        clock_us: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._directories = directories
        self._clock_us = clock_us
        self._date_second = -1
        self._date = ""
        self.after_commit: list[AfterCommit] = []
        self.wrap_letter: WrapLetter | None = None
        self.gatekeeper: Gatekeeper | None = None
        self.agreements: Agreements | None = None
        self.quota: QuotaGate | None = None

    def reload(self, settings: ReceptionSettings) -> None:
        """Put new settings in force; sessions under way see them at their next command."""
        self._settings = settings

    def judge_mail(self) -> Reply | None:
        """Refuse MAIL when nothing can be stored now; None lets it pass."""
        if self._spool.intake_problem() is not None:
            observe.counters.storage_refusals += 1
            return NO_STORAGE
        return None

    def judge_recipient(
        self, mailbox: Mailbox, session: SessionFacts
    ) -> verdict.Verdict | Awaitable[verdict.Verdict]:
        """The verdict at RCPT (see domain/verdict).

        At once, or an awaitable where the answer takes longer. The awaitable is
        cancelled when the client leaves: whoever shares one shields it. What it
        raises is our own fault (451).
        """
        gate = self.gatekeeper
        if gate is None:
            return self._judge(mailbox, session)
        return gate.judge(mailbox, session, lambda: self._judge(mailbox, session))

    def leave(self, session: SessionFacts) -> None:
        """The client has gone."""
        if self.gatekeeper is not None and session.scratch:
            self.gatekeeper.leave(session)

    def _judge(
        self,
        mailbox: Mailbox,
        session: SessionFacts,
    ) -> verdict.Verdict | Awaitable[verdict.Verdict]:
        domains = self._settings.domains
        domain = mailbox.domain
        postmaster = verdict.is_postmaster(mailbox)
        if not domain and postmaster:  # bare: the postmaster of the first domain stands for us
            domain = next(iter(domains), "")
        if domain not in domains or verdict.carries_route(mailbox):
            return verdict.Verdict(verdict.relay_denied(mailbox.spelled))
        if self.quota is not None and self.quota.refuses(domain, session.mail.size_bytes):
            return verdict.Verdict(verdict.over_quota(mailbox.spelled))
        if postmaster:
            return verdict.Verdict(verdict.RECIPIENT_OK, domain)
        agreements = self.agreements
        if agreements is None:
            return self._judge_by_lists(mailbox, domain, session)
        return agreements.judge(
            mailbox, domain, session, lambda: self._judge_by_lists(mailbox, domain, session)
        )

    def _judge_by_lists(
        self, mailbox: Mailbox, domain: str, session: SessionFacts
    ) -> verdict.Verdict | Awaitable[verdict.Verdict]:
        """Without agreements: the list or roster, the live check, `when_unknown`."""
        domains = self._settings.domains
        answer = self._directories.find(domain, mailbox.local, session.network)
        if isinstance(answer, Answer):
            if answer.finding is _ABSENT and not answer.stale:  # hot: what dictionaries meet
                return verdict.Verdict(verdict.user_unknown(mailbox.spelled))
            if not answer.withheld and answer.limits is None:
                return verdict.decide_recipient(answer, mailbox.spelled, domain, domains[domain])
            return self._decide(answer, mailbox, domain, session)
        return self._decide_later(mailbox, domain, answer, session)

    async def _decide_later(
        self, mailbox: Mailbox, domain: str, finding: Awaitable[Answer], session: SessionFacts
    ) -> verdict.Verdict:
        return self._decide(await finding, mailbox, domain, session)

    def _decide(
        self, answer: Answer, mailbox: Mailbox, domain: str, session: SessionFacts
    ) -> verdict.Verdict:
        """As `decide_recipient`; what the primary takes is heeded, who goes on guessing goes."""
        when_unknown = self._settings.domains.get(domain, verdict.WhenUnknown.DEFER)
        if answer.withheld == "guessed":
            observe.counters.guesses_refused += 1
            told = session.scratch["reception.guesses"] = (
                session.scratch.get("reception.guesses", 0) + 1
            )
            if told > MAX_GUESSES_TOLD:
                return verdict.Verdict(verdict.GUESSER_SENT_AWAY)
        decided = verdict.decide_recipient(answer, mailbox.spelled, domain, when_unknown)
        if answer.limits is not None and decided.domain:
            return verdict.limit_recipient(decided, answer.limits, session.mail)
        return decided

    def open_letter(
        self,
        envelope: Envelope,
        client: Client,
        session: SessionFacts,
        verdicts: Sequence[verdict.Verdict],
    ) -> OpenLetter | Reply:
        """Begin a message: the trace field goes in first. A Reply (4xx) when the spool cannot.

        verdicts: one for each recipient of the envelope.
        """
        try:
            incoming = self._spool.begin()
        except StorageError as error:
            observe.counters.storage_refusals += 1
            observe.trouble("smtpd", "cannot begin a message", error)
            return NO_STORAGE
        recipients = envelope.recipients
        letter = Letter(
            self._spool,
            incoming,
            envelope,
            client,
            trace_field=trace.format_received(
                client,
                hostname=self._settings.hostname,
                queue_id=format_queue_id(incoming.queue_id),
                recipient=recipients[0].address if len(recipients) == 1 else None,
                date=self._now(),
            ),
            hooks=self.after_commit,
            verdicts=verdicts,
            quota=self.quota,
        )
        wrap = self.wrap_letter
        return letter if wrap is None else wrap(letter, envelope, client, session)

    def _now(self) -> str:
        second = self._clock_us() // 1_000_000
        if second != self._date_second:
            self._date_second, self._date = second, trace.format_date(second)
        return self._date


def make_recipient(mailbox: Mailbox, judged: verdict.Verdict, notify: str, orcpt: str) -> Recipient:
    """The row to store: the client's spelling; a bare postmaster gets its domain."""
    domain = judged.domain
    return Recipient(
        address=mailbox.spelled if mailbox.domain else f"{mailbox.spelled}@{domain}",
        domain=domain,
        notify=notify,
        orcpt=orcpt,
        hold=verdict.UNVOUCHED if judged.hold else "",
    )
