"""What a client session says that is no transaction: the opening, AUTH, a probe, RSET, QUIT.

None of it is ever pipelined behind a message but RSET: it waits until all is
answered. What follows a reply in the opening is decided in `client_opening`,
when and as whom to authenticate in `client_auth`.

Spec: RFC 5321 §3.1, §4.1.1.5, §4.1.1.10; RFC 3207; RFC 4954.
"""

from __future__ import annotations

from collections.abc import Sequence

from posthouse.mail.credentials import Credentials
from posthouse.proto.client_auth import Exchange, SessionAuth
from posthouse.proto.client_delivery import Deliveries
from posthouse.proto.client_events import AuthAnswered, Awaited, Ended, Greeted, Probed
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
from posthouse.proto.client_transaction import ClientTransaction
from posthouse.proto.client_wire import SHUTTING_DOWN, Wire, ended_by
from posthouse.proto.replies_in import PeerReply


class Formalities:
    """Of one session. waiting: the transaction that AUTH comes before, and what it goes under."""

    __slots__ = (
        "_asking",
        "_deliveries",
        "_exchange",
        "_heard",
        "_opening",
        "_wire",
        "auth",
        "waiting",
    )

    def __init__(self, wire: Wire, deliveries: Deliveries, *, helo_name: str, tls: TlsWish) -> None:
        self.auth = SessionAuth()
        self.waiting: tuple[ClientTransaction, Credentials] | None = None
        self._wire = wire
        self._deliveries = deliveries
        self._opening = Opening(helo_name, tls)
        self._exchange: Exchange | None = None  # under way
        self._asking: list[bytes] = []  # RCPTs of a probe
        self._heard: list[PeerReply] = []  # its replies

    def on_reply(
        self, awaited: Awaited, reply: PeerReply, transaction: ClientTransaction | None
    ) -> None:
        """Take a reply; `transaction`: the one that RSET was sent to make way for."""
        wire = self._wire
        match awaited:
            case Awaited.GREETING | Awaited.EHLO | Awaited.HELO | Awaited.STARTTLS:
                self._take_step(self._opening.decide(awaited, reply))
            case Awaited.RESET:
                if not 200 <= reply.code < 300:
                    if reply.code != SHUTTING_DOWN:
                        wire.break_off(f"RSET was answered {reply}", "session")
                elif transaction is not None:
                    wire.send(transaction.commands.mail, Awaited.MAIL, transaction)
            case Awaited.PROBE:
                self._on_probe(reply)
            case Awaited.AUTH:
                self._on_auth(reply)
            case Awaited.QUIT:
                wire.end("", Ended())
            case _:  # NO_MAIL_DOT: whatever was said to no message, nobody waits for it
                pass

    # ------------------------------------------------------------------ the opening

    def begin_secure(self) -> None:
        """The handshake is done: greet again."""
        self._wire.handshaking = False
        self._take_step(self._opening.begin_secure())

    def _take_step(self, step: Step) -> None:
        wire = self._wire
        match step:
            case Say():
                wire.send(step.command, step.awaited, None)
            case ShakeHands():
                wire.handshaking = True
            case Ready():
                wire.extensions = self._opening.extensions
                wire.ready = True
                self.auth.offered(wire.extensions.auth, secure=self._opening.secure)
                wire.events.append(Greeted(wire.extensions, step.tls_refused))
            case Impossible():
                wire.break_off(step.why, step.stage)
            case Refused():
                wire.output.append(b"QUIT\r\n")
                wire.end(str(step.reply), ended_by(step.stage, step.reply, flush=True))
            case NoTls():
                why = "the next hop offers no TLS"
                wire.output.append(b"QUIT\r\n")
                wire.end(why, Ended(failure=why, stage="starttls", flush=True))

    # ------------------------------------------------------------------ AUTH

    def authenticate(self) -> None:
        """Send AUTH once all is answered: none may come within a transaction (RFC 4954 §4)."""
        wire = self._wire
        if wire.expected or self.waiting is None or wire.over:
            return
        if wire.reset_due:  # a transaction whose recipients were all refused is still open
            wire.reset(None)
            return
        self._exchange = self.auth.begin(self.waiting[1])
        wire.send(self._exchange.first, Awaited.AUTH, None)

    def _on_auth(self, reply: PeerReply) -> None:
        exchange, waiting = self._exchange, self.waiting
        assert exchange is not None
        assert waiting is not None
        line = exchange.answer(reply)
        if line is not None:
            self._wire.send(line, Awaited.AUTH, None)
            return
        self._exchange = None
        self.auth.end(exchange)
        self._wire.events.append(AuthAnswered(exchange.credentials, exchange.accepted, reply))
        if 300 <= reply.code < 400:  # it still waits for something: no command would be one
            self._wire.break_off(f"AUTH was answered {reply}", "auth")
        elif reply.code != SHUTTING_DOWN:
            self.waiting = None
            self._deliveries.launch(waiting[0])

    # ------------------------------------------------------------------ a probe, and QUIT

    def probe(self, recipients: Sequence[str]) -> None:
        """See `ClientSession.probe`."""
        if self._wire.ready and not self._wire.busy:
            self._asking = [f"RCPT TO:<{address}>\r\n".encode("ascii") for address in recipients]
            self._heard = []
            self._wire.send(b"MAIL FROM:<>\r\n", Awaited.PROBE, None)

    def _on_probe(self, reply: PeerReply) -> None:
        self._heard.append(reply)
        taken = 200 <= self._heard[0].code < 300
        if taken and len(self._heard) <= len(self._asking) and reply.code != SHUTTING_DOWN:
            self._wire.send(self._asking[len(self._heard) - 1], Awaited.PROBE, None)
            return
        self._wire.events.append(Probed(self._heard[0], tuple(self._heard[1:])))
        if taken:
            self._wire.reset(None)

    def quit_when_idle(self) -> None:
        """QUIT if everything has its answer."""
        wire = self._wire
        if wire.ready and not wire.over and not wire.busy:
            wire.send(b"QUIT\r\n", Awaited.QUIT, None)
