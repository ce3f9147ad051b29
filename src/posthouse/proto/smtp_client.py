"""The SMTP client as an automaton: replies in, commands and events out, no I/O.

A session goes ::

    greeting → EHLO (→ HELO) [→ STARTTLS → handshake → EHLO] → mail … → QUIT

A message with credentials makes a session under TLS authenticate first, once
(`client_auth`); that waits for the answers under way, everything else is pipelined.

With PIPELINING a transaction costs one write and one read (RFC 2920): MAIL,
RCPT and DATA go together, and with the content, behind its final dot, the
envelope of the next transaction. With CHUNKING a small message goes with its
envelope, one more waits behind it, and none needs dot-stuffing (RFC 3030);
without either, command by command. Replies are matched strictly in order.

What a server says is never trusted to be sane: a reply nobody asked for, a
class of reply that cannot be, octets in clear behind the 220 to STARTTLS, or
garbage end the session, and what was under way is `Returned`. A message is
delivered only by a 2xx to its own end of data.

The parts: `client_wire` (what is due, and how a session ends), `client_delivery`
(transactions), `client_formalities` (all else), `replies_in` (octets to replies).

Failure: methods do not raise for anything a peer can do. After `Ended` every
method is harmless.
Spec: RFC 5321 §3, §4; RFC 2920; RFC 3030; RFC 3207; RFC 1870; RFC 6152; RFC 6531; RFC 3461;
RFC 4954.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from posthouse.mail.credentials import Credentials
from posthouse.proto.client_delivery import Deliveries
from posthouse.proto.client_envelope import Deliverable, LocalRefusal, format_envelope
from posthouse.proto.client_events import Awaited, Ended, Event, TlsWanted
from posthouse.proto.client_extensions import Extensions
from posthouse.proto.client_formalities import Formalities
from posthouse.proto.client_opening import TlsWish
from posthouse.proto.client_wire import SHUTTING_DOWN, Wire
from posthouse.proto.replies_in import ReplyParser

MAX_IN_FLIGHT: Final = 2
"""Transactions whose answer is due. Two keep the line busy; each more is one more
possible duplicate when a session is lost after the final dot."""


class ClientSession:
    """One session with one server.

    helo_name: our name in EHLO. tls: when to ask for STARTTLS ("must": no mail in clear).
    chunking: use BDAT where offered. The driver writes `take_output` after each call.
    replies_seen: so many replies came so far.
    """

    __slots__ = ("_deliveries", "_formalities", "_parser", "_wire", "replies_seen")

    def __init__(
        self,
        helo_name: str,
        *,
        tls: TlsWish = "if_offered",
        chunking: bool = True,
    ) -> None:
        self.replies_seen = 0
        self._parser = ReplyParser()
        self._wire = Wire()
        self._deliveries = Deliveries(self._wire, chunking=chunking)
        self._formalities = Formalities(self._wire, self._deliveries, helo_name=helo_name, tls=tls)
        self._wire.expected.append((Awaited.GREETING, None))

    # ------------------------------------------------------------------ what the driver asks

    @property
    def extensions(self) -> Extensions:
        """What the server offers, once it has greeted us."""
        return self._wire.extensions

    @property
    def over(self) -> bool:
        """True once `Ended` was told."""
        return self._wire.over

    @property
    def awaiting(self) -> Awaited | None:
        """The reply due next, or None."""
        return self._wire.awaiting

    @property
    def busy(self) -> bool:
        """True while a transaction or a reply is under way."""
        return self._wire.busy

    @property
    def may_begin(self) -> bool:
        """True when another transaction can be taken now."""
        wire = self._wire
        if not wire.ready or wire.quitting or self._formalities.waiting is not None:
            return False
        under_way = wire.transactions
        if not under_way:
            return wire.extensions.pipelining or not wire.expected
        return (
            wire.extensions.pipelining
            and not under_way[-1].content_due
            and len(under_way) < MAX_IN_FLIGHT
        )

    def take_output(self) -> list[bytes]:
        """Octets to write now, in order; the caller owns the list."""
        output = self._wire.output
        if output:
            self._wire.output = []
        return output

    # ------------------------------------------------------------------ what the driver tells

    def feed(self, data: bytes) -> list[Event]:
        """Take octets from the server; returns what they mean, the same for every cut of them."""
        wire = self._wire
        if wire.over:
            return []
        if wire.handshaking:  # the driver gives TLS its octets: these came in clear
            wire.injected()
        else:
            self._read(data)
        events = wire.events
        if events:
            wire.events = []
        return events

    def tls_established(self) -> None:
        """The handshake is done: forget what was said in clear and greet again (RFC 3207 §4.2)."""
        if self._wire.handshaking:
            self._formalities.begin_secure()

    def begin(
        self,
        token: object,
        mail: Deliverable,
        body: bytes | None,
        *,
        octets: int,
        head: bytes,
        credentials: Credentials | None = None,
    ) -> LocalRefusal | None:
        """Start a transaction; only when `may_begin`.

        body: the whole message, or None: then `ContentWanted` asks for it. octets: its
        exact length. head: its first octets (the header section at least); may be `body`.
        credentials: what the message goes under, used where the server lets us.
        Returns why nothing was sent, or None.
        """
        formalities = self._formalities
        # The message that makes us authenticate needs no AUTH=: it is the session's own if
        # that works, and without authentication there must be none.
        auth = formalities.auth
        commands = format_envelope(mail, self._wire.extensions, head, auth.parameter(credentials))
        if isinstance(commands, LocalRefusal):
            return commands
        transaction = self._deliveries.begin(token, commands, body, octets)
        if credentials is not None and auth.wants(credentials):
            formalities.waiting = (transaction, credentials)
            formalities.authenticate()
        else:
            self._deliveries.launch(transaction)
        return None

    def content(self, piece: bytes) -> bool:
        """Give the next octets of the content that was asked for.

        False, and nothing of `piece` is sent, when it is more than was announced (behind
        BDAT the rest would be read as commands): the driver must drop the connection.
        """
        return self._deliveries.give(piece)

    def end_content(self) -> bool:
        """End the content. False, and no end is sent, when it is less than was announced."""
        return self._deliveries.end_content()

    def probe(self, recipients: Sequence[str] = ()) -> None:
        """Ask whether mail is taken: MAIL FROM:<>, a RCPT each, RSET; the answer is `Probed`.

        recipients: mailboxes in ASCII, as they stand in an envelope.
        """
        self._formalities.probe(recipients)

    def quit(self) -> None:
        """Take no more; QUIT once everything has its answer."""
        self._wire.quitting = True
        self._formalities.quit_when_idle()

    def connection_lost(self, why: str) -> list[Event]:
        """The connection is gone (or is to be dropped); returns the last events."""
        wire = self._wire
        if wire.over:
            return []
        wire.end(why, Ended() if wire.in_good_order else Ended(failure=why, stage=wire.stage))
        events, wire.events = wire.events, []
        return events

    # ------------------------------------------------------------------ reading

    def _read(self, data: bytes) -> None:
        wire = self._wire
        expected = wire.expected
        answerable = len(expected)  # a command that was not sent yet cannot have its reply here
        replies = self._parser.feed(data)
        if len(replies) > answerable:
            first_unasked = replies[answerable].code
            if first_unasked != SHUTTING_DOWN and self._deliveries.out_of_step:
                wire.break_off("more replies than commands", "session")
                return
        for reply in replies:
            if wire.handshaking:
                wire.injected()
                break
            self.replies_seen += 1
            if answerable:
                answerable -= 1
                awaited, transaction = expected.popleft()
                if transaction is None or awaited is Awaited.RESET:
                    self._formalities.on_reply(awaited, reply, transaction)
                else:
                    self._deliveries.on_reply(awaited, reply, transaction)
                if reply.code == SHUTTING_DOWN and not wire.over:
                    wire.shut_down(reply, awaited)
            else:
                self._deliveries.on_unasked(reply)
            if wire.over:
                return
        if (
            wire.handshaking
            or wire.quitting
            or self._parser.broken
            or self._formalities.waiting is not None
        ):
            self._follow_up()

    def _follow_up(self) -> None:
        """What is rarely left to do once the replies are dealt with."""
        wire, parser = self._wire, self._parser
        if wire.handshaking:
            if parser.mid_reply or parser.broken:
                wire.injected()
            else:
                wire.events.append(TlsWanted())
        elif parser.broken:
            wire.break_off(f"protocol error: {parser.broken}", wire.stage)
        elif self._formalities.waiting is not None:
            self._formalities.authenticate()
        if wire.quitting:
            self._formalities.quit_when_idle()
