"""`standby = "proxy"`: the primary's own verdicts and final reply, within the client's session.

At RCPT the primary is asked, over a session of its own for each client; the
content goes to it while it comes in, and to our spool beside, uncommitted. Its
reply to the final dot is what the client hears, and our copy is forgotten. When
the primary fails on the way (connection lost, silence, 421, or it turns *us*
away), the message becomes ours: later recipients are judged as if it were down,
the copy is made durable, and only then the client hears 250. So it hears one
250 or one refusal, never both. Lost between the final dot and its reply the
message may arrive twice, as with any relay (RFC 1047). An answer that makes no
sense where it comes (250 to DATA, 354 to RCPT) takes nothing over: a failure, too.

One transaction leads to one next hop; recipients elsewhere get 452 4.5.3 and
come in a transaction of their own (RFC 5321 §4.5.3.1.10).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from posthouse import observe
from posthouse.domain.replies import classify_reply
from posthouse.domain.reply_table import Fate
from posthouse.domain.standby import speaks_of_us
from posthouse.domain.verdict import Verdict
from posthouse.errors import NextHopFailure
from posthouse.mail.credentials import Credentials
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.mail.reply import Reply
from posthouse.ports_relay import Target
from posthouse.ports_session import OpenLetter, SessionFacts
from posthouse.ports_standby import PrimaryConnector, PrimarySession
from posthouse.services.proxied_letter import ProxiedLetter, takes
from posthouse.services.relay_vouching import Vouching

SCRATCH: Final = "proxy"
TURNED_US_AWAY: Final = "it turns us away"
ELSEWHERE: Final = Reply(452, "4.5.3", "Too many recipients: one destination at a time")

PATIENCE_SECONDS: Final = 30.0
"""For one recipient, from RSET or the connection on: half of what the door gives a verdict
(DoorSettings.verdict_timeout): a silent primary's mail is ours before the client hears 451."""

Fallback = Callable[[], Verdict | Awaitable[Verdict]]


class Ways(Protocol):
    """Where a domain's primary is."""

    def next_hop_of(self, domain: str) -> str:
        """The key of the next hop: domains with the same one may share a transaction."""

    async def find_targets(self, domain: str) -> tuple[Target, ...]:
        """Where to connect, in order; () when there is nobody to ask."""


class _Conversation:
    """One client's session with its primary, over all transactions of the client."""

    def __init__(self) -> None:
        self.session: PrimarySession | None = None
        self.target: Target | None = None
        self.proving = False  # AUTH has no answer yet
        self.next_hop = ""  # where `session` leads
        self.transaction = -1
        self.asked = False  # MAIL was said in this transaction
        self.taken = 0  # recipients the primary accepted
        self.ours = 0  # recipients that did not come from the primary
        self.broken = False
        self.refusal: Reply | None = None  # of MAIL: every recipient hears it
        self.letter: ProxiedLetter | None = None

    def begin(self, transaction: int) -> None:
        self.transaction = transaction
        self.asked, self.broken, self.refusal = False, False, None
        self.taken = self.ours = 0

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None


class Proxy:
    """See the module. `max_sessions`: with primaries, in this worker; beyond it mail is ours.

    patience_seconds: how long the primary may take over one recipient. vouching: whom we speak
    for with SMTP AUTH (`services.relay_vouching`), None for nobody.
    """

    def __init__(
        self,
        connector: PrimaryConnector,
        ways: Ways,
        *,
        max_sessions: int,
        patience_seconds: float = PATIENCE_SECONDS,
        vouching: Vouching | None = None,
    ) -> None:
        self._connector = connector
        self._ways = ways
        self.max_sessions = max_sessions
        self._patience_seconds = patience_seconds
        self._vouching = vouching
        self._open: set[_Conversation] = set()

    # ------------------------------------------------------------------ RCPT

    def must_wait(self, domain: str, facts: SessionFacts) -> Reply | None:
        """Refuse for now a recipient that may not join this transaction. None: it may."""
        talk = self._current(facts)
        if talk is None or not talk.asked or talk.ours or talk.broken:
            return None
        return None if talk.next_hop == self._ways.next_hop_of(domain) else ELSEWHERE

    def note_ours(self, facts: SessionFacts) -> None:
        """A recipient was accepted by our own verdict: this message needs our spool."""
        talk = facts.scratch.setdefault(SCRATCH, _Conversation())
        if talk.transaction != facts.transaction:
            self._renew(talk, facts.transaction)
        talk.ours += 1

    async def judge(self, recipient: Recipient, facts: SessionFacts, fallback: Fallback) -> Verdict:
        """The primary's verdict; `fallback` judges where the primary cannot be asked."""
        talk = facts.scratch.setdefault(SCRATCH, _Conversation())
        try:
            async with asyncio.timeout(self._patience_seconds):
                if talk.transaction != facts.transaction:
                    await self._start(talk, facts.transaction)
                reply = None
                if not talk.broken and not talk.ours:
                    reply = await self._ask(talk, recipient, facts)
        except NextHopFailure as failure:
            self._give_up(talk, failure.detail)
        except TimeoutError:
            self._give_up(talk, "no answer in time")
        except asyncio.CancelledError:  # its answer would be taken for the next command's
            talk.broken = True
            self._drop(talk)
            raise
        else:
            if reply is not None:
                return Verdict(reply=reply, domain=recipient.domain if reply.positive else "")
        verdict = fallback()
        return verdict if isinstance(verdict, Verdict) else await verdict

    async def _ask(
        self, talk: _Conversation, recipient: Recipient, facts: SessionFacts
    ) -> Reply | None:
        """Say MAIL where it is due, then RCPT. None: the primary is not to be asked."""
        if not talk.asked and not await self._connect(talk, recipient.domain):
            return None
        session = talk.session
        assert session is not None
        wish = facts.mail
        if wish.smtputf8 and not session.smtputf8:
            talk.broken = True
            return None
        if not talk.asked:
            talk.asked = True
            credentials = await self._authenticate(talk, session, recipient)
            reply = await session.mail(
                facts.sender,
                size=wish.size_bytes,
                body=wish.body,
                smtputf8=wish.smtputf8,
                ret=wish.ret,
                envid=wish.envid,
                credentials=credentials,
            )
            if not takes(reply, "mail"):
                if classify_reply(reply.code, reply.text, "mail").fate is Fate.BLOCKED:
                    raise NextHopFailure(f"{TURNED_US_AWAY}: {reply}", stage="mail")
                talk.refusal = reply
        if talk.refusal is not None:
            return talk.refusal
        reply = await session.rcpt(recipient)
        if takes(reply, "rcpt"):
            talk.taken += 1
        elif reply.permanent and speaks_of_us(reply.text):
            raise NextHopFailure(f"{TURNED_US_AWAY}: {reply}", stage="rcpt")
        return reply

    async def _authenticate(
        self, talk: _Conversation, session: PrimarySession, recipient: Recipient
    ) -> Credentials | None:
        """Say whom we speak for where the recipient has an agreement. Raises NextHopFailure."""
        vouching, target = self._vouching, talk.target
        if vouching is None or target is None:
            return None
        credentials = vouching.find_for(target, (recipient.address,))
        if credentials is not None:
            talk.proving = True
            reply = await session.authenticate(credentials)
            talk.proving = False
            if reply is not None:
                vouching.answered(target, credentials, reply.code, reply.text)
        return credentials

    async def _connect(self, talk: _Conversation, domain: str) -> bool:
        next_hop = self._ways.next_hop_of(domain)
        if talk.session is not None and talk.next_hop == next_hop and not talk.session.over:
            return True  # primaries close what is idle for long
        talk.close()
        self._open.discard(talk)
        if len(self._open) >= self.max_sessions:
            talk.broken = True
            return False
        self._open.add(talk)
        try:
            failure = NextHopFailure(f"nobody to ask for {domain}", stage="connect")
            for target in await self._ways.find_targets(domain):
                try:
                    talk.session = await self._connector.open(target)
                except NextHopFailure as error:
                    failure = error
                else:
                    talk.next_hop, talk.target = next_hop, target
                    return True
            raise failure
        finally:
            if talk.session is None:
                self._open.discard(talk)

    async def _start(self, talk: _Conversation, transaction: int) -> None:
        """Leave the transaction before behind, RSET where it is needed."""
        session, asked = talk.session, talk.asked
        talk.begin(transaction)
        if session is not None and asked:
            try:
                await session.reset()
            except NextHopFailure:  # idle too long, as primaries do: a new one will be opened
                self._drop(talk)

    def _renew(self, talk: _Conversation, transaction: int) -> None:
        if talk.asked:
            self._drop(talk)
        talk.begin(transaction)

    def _give_up(self, talk: _Conversation, why: str) -> None:
        if talk.proving and talk.target is not None and self._vouching is not None:
            self._vouching.broke(talk.target)
        talk.proving = False
        if not talk.broken:
            observe.note("proxy", f"{talk.next_hop or 'next hop'}: {why}; the message becomes ours")
        talk.broken = True
        self._drop(talk)

    def _drop(self, talk: _Conversation) -> None:
        talk.close()
        self._open.discard(talk)

    def _current(self, facts: SessionFacts) -> _Conversation | None:
        talk: _Conversation | None = facts.scratch.get(SCRATCH)
        return talk if talk is not None and talk.transaction == facts.transaction else None

    # ------------------------------------------------------------------ content, and the end

    def wrap(
        self, letter: OpenLetter, envelope: Envelope, client: Client, facts: SessionFacts
    ) -> OpenLetter:
        """See `ports_session.WrapLetter`: the content goes to the primary too."""
        talk = self._current(facts)
        if talk is None or talk.broken or talk.ours or not talk.taken or talk.session is None:
            return letter
        talk.letter = ProxiedLetter(
            letter, talk.session, failed=lambda why: self._give_up(talk, why)
        )
        talk.letter.passed = functools.partial(_log_passed, letter.queue_id, envelope, client)
        talk.letter.over = lambda: setattr(talk, "asked", False)  # no RSET is due
        return talk.letter

    def leave(self, facts: SessionFacts) -> None:
        """The client has gone."""
        talk: _Conversation | None = facts.scratch.pop(SCRATCH, None)
        if talk is None:
            return
        if talk.letter is not None and talk.letter.committing:  # the primary has its final dot
            talk.letter.then = lambda: self._drop(talk)
        else:
            talk.broken = True  # whatever fails now: the message is nobody's
            self._drop(talk)


def _log_passed(
    queue_id: str, envelope: Envelope, client: Client, reply: Reply, size_bytes: int
) -> None:
    observe.message_proxied(
        queue_id,
        client.name,
        client.address,
        reply=str(reply),
        sender=envelope.sender,
        recipients=[recipient.address for recipient in envelope.recipients],
        proto=client.protocol,
        helo=client.helo,
        size_bytes=size_bytes,
    )
