"""Mail that is fetched (ATRN): our relays' mail goes over the one connection the primary opened.

When a primary has dialled in and turned its connection around, each worker's
relay sends over a private door to whoever holds that connection. Here their
transactions are passed on, one after the other, command by command, and every
reply is the primary's own: nothing is stored on the way, so what is not
answered 2xx stays in the worker's shard.

The line goes to whoever is next as soon as a message is answered, and from a
session none of whose recipients was taken: it may sit there for long.

Fails like a lost connection: once the primary's end is gone every session hears
421, so that the mail is nobody's fault, waits by no schedule, and goes with the
next call. Only what was lost between its final dot and the reply may be there
already (RFC 1047): that is put off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from posthouse.domain.verdict import Verdict
from posthouse.errors import NextHopFailure
from posthouse.mail.address import Mailbox
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.mail.reply import Reply
from posthouse.ports_session import OpenLetter, SessionFacts
from posthouse.ports_standby import PrimarySession
from posthouse.services.proxied_letter import ProxiedLetter, takes

SCRATCH: Final = "pulled"
LOST: Final = Reply(421, "4.4.2", "The connection with the primary was lost")
LOST_LATE: Final = Reply(
    451, "4.4.2", "The connection with the primary was lost after the final dot; it may come twice"
)


class _Turn:
    """One worker's session: its place in the queue for the line, and how far it got."""

    def __init__(self) -> None:
        self.transaction = -1  # the one in which MAIL was said
        self.holds_line = False
        self.asking = False
        self.taken = 0  # recipients, of this transaction
        self.refusal: Reply | None = None


class _NothingStored:
    """Stands for the spool: there is none here, the message lies with who sends it."""

    queue_id = "-"
    trace = b""

    def __init__(self) -> None:
        self.letter: ProxiedLetter | None = None

    def write(self, data: bytes) -> bool:  # noqa: ARG002 (the port names it)
        return True

    async def drain(self) -> None:
        return

    def discard(self) -> None:
        return

    def refusal(self) -> Reply | None:
        return None

    async def commit(self) -> None:
        return

    def accepted(self) -> Reply:
        """Said when the primary has not: the line was lost."""
        assert self.letter is not None
        return LOST_LATE if self.letter.ended else LOST


class PulledReception:
    """What the private door asks; a `ports_session.Receptionist`.

    on_gone: called once, before any session hears of it.
    """

    def __init__(self, session: PrimarySession, *, on_gone: Callable[[str], None]) -> None:
        self._session = session
        self._on_gone = on_gone
        self._line = asyncio.Lock()
        self._holder: _Turn | None = None
        self._waiting = 0  # turns that wait for the line
        self._open = False  # MAIL was said and its transaction is not over
        self.gone = False
        self.moves = 0  # replies of the primary so far: tells progress from silence

    @property
    def busy(self) -> bool:
        """The primary owes an answer, or a message is on its way: its own time-outs count."""
        holder = self._holder
        return holder is not None and (holder.asking or holder.taken > 0)

    def judge_mail(self) -> Reply | None:
        """MAIL is said with the first recipient."""
        return LOST if self.gone else None

    def judge_recipient(self, mailbox: Mailbox, session: SessionFacts) -> Awaitable[Verdict]:
        """The primary's own reply."""
        return self._judge(mailbox, session)

    def open_letter(
        self,
        envelope: Envelope,  # noqa: ARG002 (the door's call)
        client: Client,  # noqa: ARG002
        session: SessionFacts,
        verdicts: Sequence[Verdict],  # noqa: ARG002
    ) -> OpenLetter | Reply:
        """The content goes straight on."""
        if self.gone:
            return LOST
        turn: _Turn = session.scratch[SCRATCH]
        nothing = _NothingStored()
        letter = nothing.letter = ProxiedLetter(nothing, self._session, failed=self._lose)
        letter.then = lambda: self._finished(turn)
        return letter

    def leave(self, session: SessionFacts) -> None:
        """The worker's session is over; a message torn off within its content ends the line."""
        turn: _Turn | None = session.scratch.pop(SCRATCH, None)
        if turn is not None:
            self._end(turn)

    async def _judge(self, mailbox: Mailbox, session: SessionFacts) -> Verdict:
        turn = session.scratch.setdefault(SCRATCH, _Turn())
        await self._get_line(turn)
        turn.asking = True
        try:
            reply = await self._ask(turn, mailbox, session)
        except NextHopFailure as failure:
            self._lose(failure.detail)
            return Verdict(LOST)
        except asyncio.CancelledError:  # its answer would be taken for the next command's
            self._session.close()
            self._lose("a relay did not wait for the answer")
            raise
        finally:
            turn.asking = False
        if not turn.taken and self._waiting:
            self._end(turn)
        return Verdict(reply, mailbox.domain if reply.positive else "")

    async def _ask(self, turn: _Turn, mailbox: Mailbox, session: SessionFacts) -> Reply:
        await self._begin(turn, session)
        if turn.refusal is not None:
            return turn.refusal
        reply = await self._session.rcpt(
            Recipient(
                address=mailbox.spelled,
                domain=mailbox.domain,
                notify=session.rcpt.notify,
                orcpt=session.rcpt.orcpt,
            )
        )
        self.moves += 1
        turn.taken += takes(reply, "rcpt")
        return reply

    async def _get_line(self, turn: _Turn) -> None:
        if turn.holds_line:
            return
        holder = self._holder
        if holder is not None and not self.busy:
            self._end(holder)
        self._waiting += 1
        try:
            await self._line.acquire()
        finally:
            self._waiting -= 1
        turn.holds_line, self._holder = True, turn
        turn.transaction = -1

    async def _begin(self, turn: _Turn, session: SessionFacts) -> None:
        """Have MAIL said in this transaction. Raises NextHopFailure."""
        if turn.transaction == session.transaction and self._open:
            return
        if self._open:
            await self._session.reset()
        turn.transaction, turn.refusal, turn.taken = session.transaction, None, 0
        wish = session.mail
        if wish.smtputf8 and not self._session.smtputf8:
            turn.refusal = Reply(550, "5.6.7", "next hop does not offer SMTPUTF8")
            self._open = True  # a RSET too many harms nobody
            return
        self._open = True
        reply = await self._session.mail(
            session.sender,
            size=wish.size_bytes,
            body=wish.body,
            smtputf8=wish.smtputf8,
            ret=wish.ret,
            envid=wish.envid,
        )
        turn.refusal = None if takes(reply, "mail") else reply

    def _finished(self, turn: _Turn) -> None:
        self._open = False
        self.moves += 1
        self._end(turn)

    def _end(self, turn: _Turn) -> None:
        turn.taken = 0
        if turn.holds_line:
            turn.holds_line, self._holder = False, None
            self._line.release()

    def _lose(self, why: str) -> None:
        if not self.gone:
            self.gone = True
            self._on_gone(why)
