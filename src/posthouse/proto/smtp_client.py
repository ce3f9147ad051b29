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

Failure: methods do not raise for anything a peer can do. After `Ended` every
method is harmless.
Spec: RFC 5321 §3, §4; RFC 2920; RFC 3030; RFC 3207; RFC 1870; RFC 6152; RFC 6531; RFC 3461;
RFC 4954.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from posthouse.mail.credentials import Credentials
from posthouse.proto.client_auth import Exchange, SessionAuth
from posthouse.proto.client_envelope import Deliverable, LocalRefusal, format_envelope
from posthouse.proto.client_events import (
    AuthAnswered,
    Awaited,
    ContentWanted,
    Ended,
    Event,
    Greeted,
    Probed,
    Returned,
    Settled,
    TlsWanted,
)
from posthouse.proto.client_extensions import NONE, Extensions
from posthouse.proto.client_opening import (
    Impossible,
    NoTls,
    Opening,
    Ready,
    Refused,
    Say,
    ShakeHands,
    Step,
    TlsWish,
)
from posthouse.proto.client_transaction import ClientTransaction, Manner, stuff_whole
from posthouse.proto.replies_in import PeerReply, ReplyParser

MAX_IN_FLIGHT: Final = 2
"""Transactions whose answer is due. Two keep the line busy; each more is one more
possible duplicate when a session is lost after the final dot."""

_SHUTTING_DOWN: Final = 421  # RFC 5321 §3.8: may come at any time; the session is over
_TAKEN: Final = 250  # RFC 5321 §4.3.2: no other code says that a message was taken
_STAGES: Final = {
    Awaited.GREETING: "greeting",
    Awaited.EHLO: "ehlo",
    Awaited.HELO: "ehlo",
    Awaited.STARTTLS: "starttls",
    Awaited.HANDSHAKE: "starttls",
    Awaited.AUTH: "auth",
    Awaited.MAIL: "mail",
    Awaited.PROBE: "mail",
}
_MAIL: Final = Awaited.MAIL
_RCPT: Final = Awaited.RCPT
_DATA: Final = Awaited.DATA
_DOT: Final = Awaited.DOT


class ClientSession:
    """One session with one server.

    helo_name: our name in EHLO. tls: when to ask for STARTTLS ("must": no mail in clear).
    chunking: use BDAT where offered. The driver writes `take_output` after each call.
    """

    def __init__(
        self,
        helo_name: str,
        *,
        tls: TlsWish = "if_offered",
        chunking: bool = True,
    ) -> None:
        self.extensions: Extensions = NONE
        self.replies_seen = 0
        self.over = False
        self._opening = Opening(helo_name, tls)
        self._use_chunking = chunking
        self._auth = SessionAuth()
        self._exchange: Exchange | None = None  # under way
        self._asking: list[bytes] = []  # RCPTs of a probe
        self._heard: list[PeerReply] = []  # its replies
        self._waiting: tuple[ClientTransaction, Credentials] | None = None  # for AUTH
        self._ready = False
        self._quitting = False
        self._useful = 0  # transactions that got past MAIL
        self._reset_due = False
        self._in_step = False  # a BDAT that waited for its RCPT was answered as it should be
        self._handshaking = False
        self._parser = ReplyParser()
        self._output: list[bytes] = []
        self._expected: deque[tuple[Awaited, ClientTransaction | None]] = deque()
        self._expected.append((Awaited.GREETING, None))
        self._transactions: deque[ClientTransaction] = deque()
        self._streaming: ClientTransaction | None = None
        self._events: list[Event] = []

    # ------------------------------------------------------------------ what the driver asks

    @property
    def awaiting(self) -> Awaited | None:
        """The reply due next, or None."""
        if self._handshaking:
            return Awaited.HANDSHAKE
        return self._expected[0][0] if self._expected else None

    @property
    def busy(self) -> bool:
        """True while a transaction or a reply is under way."""
        return bool(self._expected or self._transactions or self._handshaking)

    @property
    def may_begin(self) -> bool:
        """True when another transaction can be taken now."""
        if not self._ready or self._quitting or self._waiting is not None:
            return False
        under_way = self._transactions
        if not under_way:
            return self.extensions.pipelining or not self._expected
        return (
            self.extensions.pipelining
            and not under_way[-1].content_due
            and len(under_way) < MAX_IN_FLIGHT
        )

    def take_output(self) -> list[bytes]:
        """Octets to write now, in order; the caller owns the list."""
        output = self._output
        if output:
            self._output = []
        return output

    # ------------------------------------------------------------------ what the driver tells

    def feed(self, data: bytes) -> list[Event]:
        """Take octets from the server; returns what they mean, the same for every cut of them."""
        if self.over:
            return []
        if self._handshaking:  # the driver gives TLS its octets: these came in clear
            self._injected()
        else:
            self._read(data)
        return self._take_events()

    def _read(self, data: bytes) -> None:
        parser = self._parser
        expected = self._expected
        answerable = len(expected)  # a command that was not sent yet cannot have its reply here
        replies = parser.feed(data)
        if len(replies) > answerable and self._out_of_step(replies[answerable]):
            self._break("more replies than commands", "session")
            return
        for reply in replies:
            if self._handshaking:
                self._injected()
                break
            self.replies_seen += 1
            if answerable:
                answerable -= 1
                awaited, transaction = expected.popleft()
                self._dispatch(awaited, reply, transaction)
            else:
                self._on_unasked(reply)
            if self.over:
                break
        if self.over:
            return
        if self._handshaking:
            if parser.mid_reply or parser.broken:
                self._injected()
            else:
                self._events.append(TlsWanted())
        elif parser.broken:
            self._break(f"protocol error: {parser.broken}", self._stage())
        elif self._waiting is not None:
            self._authenticate()
        if self._quitting:
            self._quit_when_idle()

    def _out_of_step(self, unasked: PeerReply) -> bool:
        """True when it cannot be told any more which reply is that to a whole message."""
        return unasked.code != _SHUTTING_DOWN and any(
            awaited is _DOT
            and transaction is not None
            and transaction.manner is Manner.BDAT_AT_ONCE
            for awaited, transaction in self._expected
        )

    def tls_established(self) -> None:
        """The handshake is done: forget what was said in clear and greet again (RFC 3207 §4.2)."""
        if self.over or not self._handshaking:
            return
        self._handshaking = False
        self._take_step(self._opening.begin_secure())

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
        extensions = self.extensions
        # The message that makes us authenticate needs no AUTH=: it is the session's own if
        # that works, and without authentication there must be none.
        commands = format_envelope(mail, extensions, head, self._auth.parameter(credentials))
        if isinstance(commands, LocalRefusal):
            return commands
        if not (extensions.chunking and self._use_chunking):
            manner = Manner.DATA
        elif extensions.pipelining and body is not None and self._in_step:
            manner = Manner.BDAT_AT_ONCE
        else:
            manner = Manner.BDAT_LATER
        transaction = ClientTransaction(token, commands, manner, body, octets)
        self._transactions.append(transaction)
        if credentials is not None and self._auth.wants(credentials):
            self._waiting = (transaction, credentials)
            self._authenticate()
        else:
            self._launch(transaction)
        return None

    def content(self, piece: bytes) -> bool:
        """Give the next octets of the content that was asked for.

        False, and nothing of `piece` is sent, when it is more than was announced (behind
        BDAT the rest would be read as commands): the driver must drop the connection.
        """
        transaction = self._streaming
        if transaction is None:
            return True
        if len(piece) > transaction.content_octets:
            return False
        transaction.content_octets -= len(piece)
        if transaction.manner is Manner.DATA:
            piece = transaction.stuff(piece)
        self._output.append(piece)
        return True

    def end_content(self) -> bool:
        """End the content. False, and no end is sent, when it is less than was announced."""
        transaction = self._streaming
        if transaction is None:
            return True
        if transaction.content_octets:
            return False
        self._streaming = None
        if transaction.manner is Manner.DATA:
            self._output.append(transaction.end_of_data())
        self._expect_final(transaction)
        return True

    def probe(self, recipients: Sequence[str] = ()) -> None:
        """Ask whether mail is taken: MAIL FROM:<>, a RCPT each, RSET; the answer is `Probed`.

        recipients: mailboxes in ASCII, as they stand in an envelope.
        """
        if self._ready and not self.busy:
            self._asking = [f"RCPT TO:<{address}>\r\n".encode("ascii") for address in recipients]
            self._heard = []
            self._send(b"MAIL FROM:<>\r\n", Awaited.PROBE, None)

    def quit(self) -> None:
        """Take no more; QUIT once everything has its answer."""
        self._quitting = True
        self._quit_when_idle()

    def connection_lost(self, why: str) -> list[Event]:
        """The connection is gone (or is to be dropped); returns the last events."""
        if self.over:
            return []
        idle = not self._transactions and (
            not self._expected or self._expected[0][0] is Awaited.QUIT
        )
        in_order = self._ready and idle and (self._useful > 0 or self._quitting)
        self._end(why, Ended() if in_order else Ended(failure=why, stage=self._stage()))
        return self._take_events()

    # ------------------------------------------------------------------ replies

    def _dispatch(
        self, awaited: Awaited, reply: PeerReply, transaction: ClientTransaction | None
    ) -> None:
        if transaction is None or awaited is Awaited.RESET:
            self._on_session_reply(awaited, reply, transaction)
        elif awaited is _RCPT:
            self._on_rcpt(reply, transaction)
        elif awaited is _DOT:
            self._on_dot(reply, transaction)
        elif awaited is _MAIL:
            self._on_mail(reply, transaction)
        else:
            self._on_data(reply, transaction)
        if reply.code == _SHUTTING_DOWN and not self.over:
            self._on_shutdown(reply, awaited)

    def _on_session_reply(
        self, awaited: Awaited, reply: PeerReply, transaction: ClientTransaction | None
    ) -> None:
        match awaited:
            case Awaited.GREETING | Awaited.EHLO | Awaited.HELO | Awaited.STARTTLS:
                self._take_step(self._opening.decide(awaited, reply))
            case Awaited.RESET:
                if not 200 <= reply.code < 300:
                    if reply.code != _SHUTTING_DOWN:
                        self._break(f"RSET was answered {reply}", "session")
                elif transaction is not None:
                    self._send(transaction.commands.mail, _MAIL, transaction)
            case Awaited.PROBE:
                self._on_probe(reply)
            case Awaited.AUTH:
                self._on_auth(reply)
            case Awaited.QUIT:
                self._end("", Ended())
            case _:  # NO_MAIL_DOT: whatever was said to no message, nobody waits for it
                pass

    def _on_probe(self, reply: PeerReply) -> None:
        self._heard.append(reply)
        taken = 200 <= self._heard[0].code < 300
        if taken and len(self._heard) <= len(self._asking) and reply.code != _SHUTTING_DOWN:
            self._send(self._asking[len(self._heard) - 1], Awaited.PROBE, None)
            return
        self._events.append(Probed(self._heard[0], tuple(self._heard[1:])))
        if taken:
            self._reset(None)

    def _on_auth(self, reply: PeerReply) -> None:
        exchange, waiting = self._exchange, self._waiting
        assert exchange is not None
        assert waiting is not None
        line = exchange.answer(reply)
        if line is not None:
            self._send(line, Awaited.AUTH, None)
            return
        self._exchange = None
        self._auth.end(exchange)
        self._events.append(AuthAnswered(exchange.credentials, exchange.accepted, reply))
        if 300 <= reply.code < 400:  # it still waits for something: no command would be one
            self._break(f"AUTH was answered {reply}", "auth")
        elif reply.code != _SHUTTING_DOWN:
            self._waiting = None
            self._launch(waiting[0])

    def _take_step(self, step: Step) -> None:
        match step:
            case Say():
                self._send(step.command, step.awaited, None)
            case ShakeHands():
                self._handshaking = True
            case Ready():
                self.extensions = self._opening.extensions
                self._ready = True
                self._auth.offered(self.extensions.auth, secure=self._opening.secure)
                self._events.append(Greeted(self.extensions, step.tls_refused))
            case Impossible():
                self._break(step.why, step.stage)
            case Refused():
                self._output.append(b"QUIT\r\n")
                self._end(str(step.reply), _ended_by(step.stage, step.reply, flush=True))
            case NoTls():
                why = "the next hop offers no TLS"
                self._output.append(b"QUIT\r\n")
                self._end(why, Ended(failure=why, stage="starttls", flush=True))

    def _on_mail(self, reply: PeerReply, transaction: ClientTransaction) -> None:
        lock_step = not self.extensions.pipelining
        if reply.code < 300:
            if lock_step:
                self._send(transaction.commands.rcpts[0], _RCPT, transaction)
        elif reply.code < 400:
            self._break(f"MAIL was answered {reply}", "session")
        else:
            transaction.mail_refused = True
            transaction.refuse_all(reply, "mail")
            if lock_step:
                self._finish(transaction)

    def _on_rcpt(self, reply: PeerReply, transaction: ClientTransaction) -> None:
        if 300 <= reply.code < 400:
            self._break(f"RCPT was answered {reply}", "session")
            return
        transaction.note_recipient(reply)
        if reply.code == _SHUTTING_DOWN:
            transaction.refuse_all(reply, "rcpt")
            return
        rcpts = transaction.commands.rcpts
        if self.extensions.pipelining:
            if transaction.manner is not Manner.BDAT_LATER or transaction.asked < len(rcpts):
                return
        elif transaction.asked < len(rcpts):
            self._send(rcpts[transaction.asked], _RCPT, transaction)
            return
        if transaction.mail_refused or not transaction.accepted:
            self._reset_due = True
            self._finish(transaction)
        elif transaction.manner is Manner.DATA:
            self._send(b"DATA\r\n", _DATA, transaction)
        else:
            self._send_content(transaction)

    def _on_data(self, reply: PeerReply, transaction: ClientTransaction) -> None:
        code = reply.code
        if code >= 400:
            transaction.refuse_all(reply, "data")
            self._reset_due = True
            self._finish(transaction)
        elif code < 300 or transaction.stray_accept:
            # After a stray acceptance a lone dot could reach somebody as an empty message.
            self._break(f"DATA was answered {reply}", "session")
        elif transaction.accepted:
            self._send_content(transaction)
        else:  # RFC 2920 §3.1: all were refused, yet content is asked for: give none
            self._finish(transaction)
            self._send(b".\r\n", Awaited.NO_MAIL_DOT, None)

    def _on_dot(self, reply: PeerReply, transaction: ClientTransaction) -> None:
        code = reply.code
        if code < 400 and code != _TAKEN:
            self._break(f"end of data was answered {reply}", "session")
            return
        if transaction.manner is Manner.BDAT_LATER:
            self._in_step = True
        if transaction.manner is not Manner.DATA and len(self._transactions) == 1:
            # RFC 3030 §2: after a failed BDAT only RSET gives a known state.
            self._reset_due = code >= 400
        transaction.settle(reply)
        self._finish(transaction)

    def _on_unasked(self, reply: PeerReply) -> None:
        transaction = self._streaming or self._with_unsent_content()
        if transaction is not None and reply.code >= 400:
            # Told to stop before the end: nothing after this could be matched.
            transaction.refuse_all(reply, "data")
            self._end(str(reply), _ended_by("session", reply))
        elif reply.code == _SHUTTING_DOWN:
            self._on_shutdown(reply, None)
        else:
            self._break(f"a reply to nothing: {reply}", self._stage())

    def _on_shutdown(self, reply: PeerReply, awaited: Awaited | None) -> None:
        """421: the session is over. In good order when mail had passed and none was under way.

        Replies come in order and nothing comes after this one (RFC 5321 §3.8): whatever was
        sent behind the command that it answers was not taken.
        """
        for transaction in self._transactions:
            transaction.sent = False
        between = awaited is None or awaited is _MAIL
        stage = _STAGES.get(awaited, "session") if awaited is not None else "session"
        ended = _ended_by(stage, reply)
        if between and self._useful:
            ended = Ended(stage=stage, reply_code=reply.code, reply_text=reply.text)
        self._end(str(reply), ended)

    # ------------------------------------------------------------------ moves

    def _launch(self, transaction: ClientTransaction) -> None:
        """Send what of the envelope can go now."""
        if self.extensions.pipelining:
            self._send_envelope(transaction)
        elif self._reset_due:
            self._reset(transaction)
        else:
            self._send(transaction.commands.mail, _MAIL, transaction)

    def _authenticate(self) -> None:
        """Send AUTH once all is answered: none may come within a transaction (RFC 4954 §4)."""
        if self._expected or self._waiting is None or self.over:
            return
        if self._reset_due:  # a transaction whose recipients were all refused is still open
            self._reset(None)
            return
        self._exchange = self._auth.begin(self._waiting[1])
        self._send(self._exchange.first, Awaited.AUTH, None)

    def _send(self, octets: bytes, awaited: Awaited, transaction: ClientTransaction | None) -> None:
        self._output.append(octets)
        self._expected.append((awaited, transaction))

    def _reset(self, transaction: ClientTransaction | None) -> None:
        self._reset_due = False
        self._send(b"RSET\r\n", Awaited.RESET, transaction)

    def _send_envelope(self, transaction: ClientTransaction) -> None:
        """Pipelined: everything that needs no answer first."""
        output, expected = self._output, self._expected
        if self._reset_due:
            self._reset(None)
        commands = transaction.commands
        output.append(commands.mail)
        expected.append((_MAIL, transaction))
        for rcpt in commands.rcpts:
            output.append(rcpt)
            expected.append((_RCPT, transaction))
        if transaction.manner is Manner.DATA:
            output.append(b"DATA\r\n")
            expected.append((_DATA, transaction))
        elif transaction.manner is Manner.BDAT_AT_ONCE:
            self._send_content(transaction)

    def _send_content(self, transaction: ClientTransaction) -> None:
        body = transaction.body
        output = self._output
        if transaction.manner is not Manner.DATA:
            output.append(b"BDAT %d LAST\r\n" % transaction.content_octets)
        if body is None:
            self._streaming = transaction
            self._events.append(ContentWanted(transaction.token))
            return
        transaction.body = None
        if transaction.manner is Manner.DATA:
            output.append(stuff_whole(body))
            output.append(b".\r\n" if body[-2:] == b"\r\n" or not body else b"\r\n.\r\n")
        else:
            output.append(body)
        self._expect_final(transaction)

    def _expect_final(self, transaction: ClientTransaction) -> None:
        transaction.content_due = False
        transaction.sent = True
        if transaction.manner is not Manner.DATA:
            self._reset_due = True  # what follows at once cannot know how BDAT ends
        self._expected.append((_DOT, transaction))

    def _finish(self, transaction: ClientTransaction) -> None:
        """Tell the outcome. Replies come in order, so it is the oldest transaction."""
        self._transactions.popleft()
        if not transaction.mail_refused:
            self._useful += 1
        self._events.append(Settled(transaction.token, transaction.final_answers()))

    def _quit_when_idle(self) -> None:
        if self._ready and not self.over and not self.busy:
            self._send(b"QUIT\r\n", Awaited.QUIT, None)

    def _injected(self) -> None:
        # Said in clear to be believed after the handshake (CVE-2021-33515, CVE-2026-55558).
        self._break("octets in clear after the reply to STARTTLS", "starttls")

    def _break(self, why: str, stage: str) -> None:
        self._end(why, Ended(failure=why, stage=stage))

    def _end(self, why: str, ended: Ended) -> None:
        unsent = self._with_unsent_content()
        if unsent is not None:
            unsent.sent = False
        if not ended.flush:
            self._output.clear()
        self.over = True
        self._ready = False
        self._handshaking = False
        self._streaming = None
        self._waiting = self._exchange = None
        self._expected.clear()
        while self._transactions:
            transaction = self._transactions.popleft()
            if transaction.decided:
                answers = transaction.final_answers()
                self._events.append(Settled(transaction.token, answers))
            else:
                self._events.append(Returned(transaction.token, why, transaction.sent))
        self._events.append(ended)

    def _with_unsent_content(self) -> ClientTransaction | None:
        """The transaction whose content was made ready by this very call, if any."""
        if self._output and self._expected and self._expected[-1][0] is _DOT:
            return self._expected[-1][1]
        return None

    def _stage(self) -> str:
        awaited = self.awaiting
        return "session" if awaited is None else _STAGES.get(awaited, "session")

    def _take_events(self) -> list[Event]:
        events = self._events
        if events:
            self._events = []
        return events


def _ended_by(stage: str, reply: PeerReply, *, flush: bool = False) -> Ended:
    return Ended(
        failure=str(reply), stage=stage, reply_code=reply.code, reply_text=reply.text, flush=flush
    )
