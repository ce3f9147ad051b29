"""Mail transactions at an SMTP door: asks Reception for every decision, and waits for its answers.

What the automaton tells of MAIL, RCPT, DATA, content and ETRN ends here in a reply.
An answer may take its time (a verdict, the disk, the client's name): the connection
is then `busy`, pulls no more events, and goes on when the answer is there; commands
pipelined behind wait too, so that replies keep their order.

Hot path: one call an event, and the facts of the session changed in place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol

from posthouse import observe
from posthouse.domain.verdict import NOT_JUDGED, Verdict
from posthouse.interfaces.door_caller import Caller
from posthouse.interfaces.doorkeeper import Doorkeeper
from posthouse.mail.envelope import Envelope, Recipient
from posthouse.mail.reply import Reply
from posthouse.ports_session import OpenLetter
from posthouse.proto import server_replies
from posthouse.proto.server_events import (
    Abort,
    Content,
    ContentEnd,
    DataRequest,
    Etrn,
    Event,
    Mail,
    Rcpt,
)
from posthouse.proto.smtp_server import ServerSession
from posthouse.services.reception import NO_STORAGE_AFTER, make_recipient


class Connection(Protocol):
    """What a transaction needs of the connection it comes over (`smtp_door.SmtpDoor`).

    busy: an answer of ours is under way, nothing is pulled; closing: nobody hears us any more.
    """

    busy: bool
    closing: bool

    def stall(self) -> None:
        """Read no more octets until all that were read are handled."""

    def pump(self) -> None:
        """Handle what was read."""

    def go_on(self) -> None:
        """An answer has been given: handle what was read, and count idle time from now."""


class _Gone:
    """The connection of a client that has gone."""

    __slots__ = ("busy", "closing")

    def __init__(self) -> None:
        self.busy = False
        self.closing = True

    def stall(self) -> None:
        """Nothing is read any more."""

    def pump(self) -> None:
        """Nothing is left to handle."""

    def go_on(self) -> None:
        """Nobody hears the answer."""


class MailTransactions:
    """The transactions of one session, one after the other.

    messages: how many were answered 2xx; committing: one is being stored; judging: the
    verdict or answer to ETRN that is awaited, since judging_since (the loop's clock).
    """

    __slots__ = (
        "_caller", "_connection", "_facts", "_keeper", "_letter", "_reception", "_recipients",
        "_session", "_verdicts", "committing", "judging", "judging_since", "messages",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, keeper: Doorkeeper, session: ServerSession, caller: Caller
    ) -> None:
        self._connection: Connection = connection
        self._keeper = keeper
        self._reception = keeper.reception
        self._session = session
        self._caller = caller
        self._facts = caller.facts
        self._letter: OpenLetter | None = None
        self._recipients: list[Recipient] = []
        self._verdicts: list[Verdict] = []  # of these recipients
        self.messages = 0
        self.committing = False
        self.judging: asyncio.Future[Any] | None = None
        self.judging_since = 0.0

    def drop_letter(self) -> None:
        """Forget the message that is on its way in, if there is one."""
        if self._letter is not None:
            self._letter.discard()
            self._letter = None

    def stop_judging(self) -> None:
        """Wait no more for a verdict; the client hears 451 if it still hears us."""
        if self.judging is not None:
            self.judging.cancel()

    def leave(self) -> None:
        """The client has gone: drop what is not being stored; a commit under way comes to its end.

        Lets go of the connection, so that session and transactions are freed at once and
        leave no cycle to the garbage collector.
        """
        self.stop_judging()
        if not self._connection.busy:
            self.drop_letter()
        self._connection = _Gone()

    # ------------------------------------------------------------------ MAIL and RCPT

    def _on_mail(self, _event: Mail | None = None) -> None:
        caller = self._caller
        if caller.lookup is not None and not caller.lookup.done():
            # MAIL waits for the reverse name: logs and trace fields want it.
            self._connection.busy = True
            caller.lookup.add_done_callback(self._name_ready)
            return
        refusal = self._reception.judge_mail()
        if refusal is not None:
            caller.log_refusal("MAIL", refusal)
        self._recipients, self._verdicts = [], []
        facts, session = self._facts, self._session
        facts.name, facts.helo, facts.tls = caller.name, session.helo, session.tls
        facts.sender, facts.mail = caller.sender_text(), session.params
        facts.transaction += 1
        session.answer(refusal if refusal is not None else server_replies.SENDER_OK)

    def _name_ready(self, _done: asyncio.Task[None]) -> None:
        connection = self._connection
        connection.busy = False
        if connection.closing:
            return
        self._on_mail()
        connection.pump()

    def _on_rcpt(self, event: Rcpt) -> None:
        self._facts.rcpt = event.params
        verdict = self._reception.judge_recipient(event.recipient, self._facts)
        if isinstance(verdict, Verdict):
            self._answer_rcpt(event, verdict)
        else:
            self._wait_for(verdict).add_done_callback(partial(self._judged, event))

    def _answer_rcpt(self, event: Rcpt, verdict: Verdict) -> None:
        mailbox = event.recipient
        reply = verdict.reply
        if reply.code < 400:
            self._recipients.append(
                make_recipient(mailbox, verdict, event.params.notify, event.params.orcpt)
            )
            self._verdicts.append(verdict)
            self._session.answer(server_replies.RECIPIENT_OK)
            return
        self._caller.log_recipient(reply, mailbox)
        self._session.answer(reply)

    def _wait_for(self, answer: Awaitable[Any]) -> asyncio.Future[Any]:
        self._connection.busy = True
        self.judging_since = asyncio.get_running_loop().time()
        self.judging = asyncio.ensure_future(answer)
        return self.judging

    def _judged(self, event: Rcpt, done: asyncio.Future[Verdict]) -> None:
        self._connection.busy, self.judging = False, None
        error = TimeoutError("it took too long") if done.cancelled() else done.exception()
        if self._connection.closing:
            return
        if error is None:
            verdict = done.result()
        else:
            observe.trouble("smtpd", f"no verdict for <{event.recipient.spelled}>", error)
            verdict = Verdict(NOT_JUDGED)
        self._answer_rcpt(event, verdict)
        self._connection.go_on()

    # ------------------------------------------------------------------ ETRN

    def _on_etrn(self, event: Etrn) -> None:
        desk = self._keeper.etrn
        if desk is None:
            self._session.answer(server_replies.NOT_IMPLEMENTED)
            return
        facts, session = self._facts, self._session
        facts.name, facts.helo, facts.tls = self._caller.name, session.helo, session.tls
        self._wait_for(desk(event.node, facts)).add_done_callback(self._etrn_decided)

    def _etrn_decided(self, done: asyncio.Future[Reply]) -> None:
        self._connection.busy, self.judging = False, None
        if self._connection.closing:
            return
        error = TimeoutError("it took too long") if done.cancelled() else done.exception()
        if error is not None:
            observe.trouble("smtpd", "no answer to ETRN", error)
        reply = server_replies.ETRN_LATER if error is not None else done.result()
        if not reply.positive:
            self._caller.log_refusal("ETRN", reply)
        self._session.answer(reply)
        self._connection.go_on()

    # ------------------------------------------------------------------ the message

    def _on_data(self, _event: DataRequest) -> None:
        session, caller = self._session, self._caller
        params = session.params
        opened = self._reception.open_letter(
            Envelope(
                sender=caller.sender_text(),
                recipients=tuple(self._recipients),
                body=params.body,
                smtputf8=params.smtputf8,
                ret=params.ret,
                envid=params.envid,
            ),
            caller.describe(),
            self._facts,
            self._verdicts,
        )
        if isinstance(opened, Reply):
            caller.log_refusal("DATA", opened)
            session.answer(opened)
            return
        self._letter = opened
        session.open_data()

    def _on_content(self, event: Content) -> None:
        letter = self._letter
        if letter is not None and not letter.write(event.data):
            self._connection.busy = True
            self._connection.stall()
            asyncio.ensure_future(letter.drain()).add_done_callback(self._disk_ready)

    def _disk_ready(self, done: asyncio.Future[None]) -> None:
        self._connection.busy = False
        if not done.cancelled() and done.exception() is not None:
            pass  # `commit` reports it: the client hears 451 after its content
        if self._connection.closing:
            self.drop_letter()
            return
        self._connection.go_on()

    def _on_abort(self, _event: Abort) -> None:
        self.drop_letter()
        self._recipients, self._verdicts = [], []

    def _on_end(self, event: ContentEnd) -> None:
        letter = self._letter
        assert letter is not None
        refusal = event.defect if event.defect is not None else letter.refusal()
        if refusal is not None:
            self.drop_letter()
            self._caller.log_refusal("END-OF-MESSAGE", refusal)
            self._session.answer(refusal)
            return
        self._connection.busy = self.committing = True
        asyncio.ensure_future(letter.commit()).add_done_callback(self._committed)

    def _committed(self, done: asyncio.Future[None]) -> None:
        """The disk has spoken: only now may the client hear 250."""
        letter, self._letter = self._letter, None
        self._connection.busy = self.committing = False
        self._recipients, self._verdicts = [], []
        if letter is None:
            return
        error = None if done.cancelled() else done.exception()
        if error is None and not done.cancelled():
            reply = letter.accepted()
            if reply.code < 300:
                self.messages += 1
            else:
                self._caller.log_refusal("END-OF-MESSAGE", reply)
            self._session.answer(reply)
        else:
            letter.discard()
            observe.counters.storage_refusals += 1
            observe.trouble("smtpd", f"{letter.queue_id}: not stored", error)
            self._caller.log_refusal("END-OF-MESSAGE", NO_STORAGE_AFTER)
            self._session.answer(NO_STORAGE_AFTER)
        self._connection.go_on()


ACTS: Final[dict[type[Event], Callable[[MailTransactions, Any], None]]] = {
    Content: MailTransactions._on_content,
    Rcpt: MailTransactions._on_rcpt,
    Mail: MailTransactions._on_mail,
    DataRequest: MailTransactions._on_data,
    ContentEnd: MailTransactions._on_end,
    Abort: MailTransactions._on_abort,
    Etrn: MailTransactions._on_etrn,
}
