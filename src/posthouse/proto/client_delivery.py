"""Transactions of a client session: what follows each reply to MAIL, RCPT, DATA and the dot.

::

    pipelined    MAIL RCPT… DATA ─→ 354 ─→ content, dot
                 MAIL RCPT… BDAT content                  (small, once the server did it right)
                 MAIL RCPT… ─→ taken ─→ BDAT content      (large, or the first)
    in step      MAIL ─→ RCPT ─→ … ─→ DATA or BDAT ─→ content

This is the hot path of a drain. The promises are those of `smtp_client`.
Spec: RFC 5321 §3.3; RFC 2920; RFC 3030.
"""

from __future__ import annotations

from typing import Final

from posthouse.proto.client_envelope import EnvelopeCommands
from posthouse.proto.client_events import Awaited, ContentWanted, Settled
from posthouse.proto.client_transaction import ClientTransaction, Manner, stuff_whole
from posthouse.proto.client_wire import SHUTTING_DOWN, Wire, ended_by
from posthouse.proto.replies_in import PeerReply

_TAKEN: Final = 250  # RFC 5321 §4.3.2: no other code says that a message was taken
_MAIL: Final = Awaited.MAIL
_RCPT: Final = Awaited.RCPT
_DATA: Final = Awaited.DATA
_DOT: Final = Awaited.DOT


class Deliveries:
    """The transactions of one session. chunking: use BDAT where offered."""

    __slots__ = ("_chunking", "_in_step", "_wire")

    def __init__(self, wire: Wire, *, chunking: bool) -> None:
        self._wire = wire
        self._chunking = chunking
        self._in_step = False  # a BDAT that waited for its RCPT was answered as it should be

    @property
    def out_of_step(self) -> bool:
        """True when a reply too many leaves open which one is that to a whole message."""
        return any(
            awaited is _DOT
            and transaction is not None
            and transaction.manner is Manner.BDAT_AT_ONCE
            for awaited, transaction in self._wire.expected
        )

    def begin(
        self, token: object, commands: EnvelopeCommands, body: bytes | None, octets: int
    ) -> ClientTransaction:
        """Put a transaction behind the others; its content goes as the session allows now."""
        wire = self._wire
        extensions = wire.extensions
        if not (extensions.chunking and self._chunking):
            manner = Manner.DATA
        elif extensions.pipelining and body is not None and self._in_step:
            manner = Manner.BDAT_AT_ONCE
        else:
            manner = Manner.BDAT_LATER
        transaction = ClientTransaction(token, commands, manner, body, octets)
        wire.transactions.append(transaction)
        return transaction

    def launch(self, transaction: ClientTransaction) -> None:
        """Send what of the envelope needs no answer first; it is the newest transaction."""
        wire = self._wire
        commands = transaction.commands
        if not wire.extensions.pipelining:
            if wire.reset_due:
                wire.reset(transaction)
            else:
                wire.send(commands.mail, _MAIL, transaction)
            return
        output, expected = wire.output, wire.expected
        if wire.reset_due:
            wire.reset(None)
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

    # ------------------------------------------------------------------ replies

    def on_reply(self, awaited: Awaited, reply: PeerReply, transaction: ClientTransaction) -> None:
        """Take the reply to a command of `transaction`."""
        if awaited is _RCPT:
            self._on_rcpt(reply, transaction)
        elif awaited is _DOT:
            self._on_dot(reply, transaction)
        elif awaited is _MAIL:
            self._on_mail(reply, transaction)
        else:
            self._on_data(reply, transaction)

    def on_unasked(self, reply: PeerReply) -> None:
        """Take a reply while none is due."""
        wire = self._wire
        transaction = wire.streaming or wire.unsent()
        if transaction is not None and reply.code >= 400:
            # Told to stop before the end: nothing after this could be matched.
            transaction.refuse_all(reply, "data")
            wire.end(str(reply), ended_by("session", reply))
        elif reply.code == SHUTTING_DOWN:
            wire.shut_down(reply, None)
        else:
            wire.break_off(f"a reply to nothing: {reply}", wire.stage)

    def _on_mail(self, reply: PeerReply, transaction: ClientTransaction) -> None:
        wire = self._wire
        lock_step = not wire.extensions.pipelining
        if reply.code < 300:
            if lock_step:
                wire.send(transaction.commands.rcpts[0], _RCPT, transaction)
        elif reply.code < 400:
            wire.break_off(f"MAIL was answered {reply}", "session")
        else:
            transaction.mail_refused = True
            transaction.refuse_all(reply, "mail")
            if lock_step:
                self._finish(transaction)

    def _on_rcpt(self, reply: PeerReply, transaction: ClientTransaction) -> None:
        wire = self._wire
        if 300 <= reply.code < 400:
            wire.break_off(f"RCPT was answered {reply}", "session")
            return
        transaction.note_recipient(reply)
        if reply.code == SHUTTING_DOWN:
            transaction.refuse_all(reply, "rcpt")
            return
        rcpts = transaction.commands.rcpts
        if wire.extensions.pipelining:
            if transaction.manner is not Manner.BDAT_LATER or transaction.asked < len(rcpts):
                return
        elif transaction.asked < len(rcpts):
            wire.send(rcpts[transaction.asked], _RCPT, transaction)
            return
        if transaction.mail_refused or not transaction.accepted:
            wire.reset_due = True
            self._finish(transaction)
        elif transaction.manner is Manner.DATA:
            wire.send(b"DATA\r\n", _DATA, transaction)
        else:
            self._send_content(transaction)

    def _on_data(self, reply: PeerReply, transaction: ClientTransaction) -> None:
        code = reply.code
        if code >= 400:
            transaction.refuse_all(reply, "data")
            self._wire.reset_due = True
            self._finish(transaction)
        elif code < 300 or transaction.stray_accept:
            # After a stray acceptance a lone dot could reach somebody as an empty message.
            self._wire.break_off(f"DATA was answered {reply}", "session")
        elif transaction.accepted:
            self._send_content(transaction)
        else:  # RFC 2920 §3.1: all were refused, yet content is asked for: give none
            self._finish(transaction)
            self._wire.send(b".\r\n", Awaited.NO_MAIL_DOT, None)

    def _on_dot(self, reply: PeerReply, transaction: ClientTransaction) -> None:
        code = reply.code
        wire = self._wire
        if code < 400 and code != _TAKEN:
            wire.break_off(f"end of data was answered {reply}", "session")
            return
        if transaction.manner is Manner.BDAT_LATER:
            self._in_step = True
        if transaction.manner is not Manner.DATA and len(wire.transactions) == 1:
            # RFC 3030 §2: after a failed BDAT only RSET gives a known state.
            wire.reset_due = code >= 400
        transaction.settle(reply)
        self._finish(transaction)

    def _finish(self, transaction: ClientTransaction) -> None:
        """Tell the outcome. Replies come in order, so it is the oldest transaction."""
        wire = self._wire
        wire.transactions.popleft()
        if not transaction.mail_refused:
            wire.useful += 1
        wire.events.append(Settled(transaction.token, transaction.final_answers()))

    # ------------------------------------------------------------------ content

    def _send_content(self, transaction: ClientTransaction) -> None:
        wire = self._wire
        body = transaction.body
        output = wire.output
        if transaction.manner is not Manner.DATA:
            output.append(b"BDAT %d LAST\r\n" % transaction.content_octets)
        if body is None:
            wire.streaming = transaction
            wire.events.append(ContentWanted(transaction.token))
            return
        transaction.body = None
        if transaction.manner is Manner.DATA:
            output.append(stuff_whole(body))
            output.append(b".\r\n" if body[-2:] == b"\r\n" or not body else b"\r\n.\r\n")
        else:
            output.append(body)
        self._expect_final(transaction)

    def _expect_final(self, transaction: ClientTransaction) -> None:
        wire = self._wire
        transaction.content_due = False
        transaction.sent = True
        if transaction.manner is not Manner.DATA:
            wire.reset_due = True  # what follows at once cannot know how BDAT ends
        wire.expected.append((_DOT, transaction))

    def give(self, piece: bytes) -> bool:
        """See `ClientSession.content`."""
        transaction = self._wire.streaming
        if transaction is None:
            return True
        if len(piece) > transaction.content_octets:
            return False
        transaction.content_octets -= len(piece)
        if transaction.manner is Manner.DATA:
            piece = transaction.stuff(piece)
        self._wire.output.append(piece)
        return True

    def end_content(self) -> bool:
        """See `ClientSession.end_content`."""
        wire = self._wire
        transaction = wire.streaming
        if transaction is None:
            return True
        if transaction.content_octets:
            return False
        wire.streaming = None
        if transaction.manner is Manner.DATA:
            wire.output.append(transaction.end_of_data())
        self._expect_final(transaction)
        return True
