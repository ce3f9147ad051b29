"""What the parts of a client session share: octets due, replies due, and how it ends.

`smtp_client` takes the driver's calls and reads replies, `client_formalities`
and `client_delivery` decide what follows each; all write here. Replies are
matched to commands strictly in order, so one queue tells what each is for.

Spec: RFC 5321 §3.8; RFC 2920.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from posthouse.proto.client_events import Awaited, Ended, Event, Returned, Settled
from posthouse.proto.client_extensions import NONE, Extensions
from posthouse.proto.client_transaction import ClientTransaction
from posthouse.proto.replies_in import PeerReply

SHUTTING_DOWN: Final = 421  # RFC 5321 §3.8: may come at any time; the session is over

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


class Wire:
    """The state of one session. Everything is harmless once it is `over`.

    output, events: for the driver to take. expected: the replies due, oldest first, each
    with the transaction it is for. transactions: under way, oldest first; streaming: the one
    whose content the driver is giving. ready: mail may go. reset_due: a transaction may be
    open still, so RSET goes before what follows. useful: transactions that got past MAIL.
    """

    __slots__ = (
        "events",
        "expected",
        "extensions",
        "handshaking",
        "output",
        "over",
        "quitting",
        "ready",
        "reset_due",
        "streaming",
        "transactions",
        "useful",
    )

    def __init__(self) -> None:
        self.output: list[bytes] = []
        self.events: list[Event] = []
        self.expected: deque[tuple[Awaited, ClientTransaction | None]] = deque()
        self.transactions: deque[ClientTransaction] = deque()
        self.streaming: ClientTransaction | None = None
        self.extensions: Extensions = NONE
        self.ready = False
        self.handshaking = False
        self.quitting = False
        self.over = False
        self.reset_due = False
        self.useful = 0

    @property
    def awaiting(self) -> Awaited | None:
        """The reply due next, or None."""
        if self.handshaking:
            return Awaited.HANDSHAKE
        return self.expected[0][0] if self.expected else None

    @property
    def busy(self) -> bool:
        """True while a transaction or a reply is under way."""
        return bool(self.expected or self.transactions or self.handshaking)

    @property
    def stage(self) -> str:
        """Where the session stands, in the words of `Ended`."""
        awaited = self.awaiting
        return "session" if awaited is None else _STAGES.get(awaited, "session")

    @property
    def in_good_order(self) -> bool:
        """True when the connection may be lost now and nobody is to blame."""
        idle = not self.transactions and (not self.expected or self.expected[0][0] is Awaited.QUIT)
        return self.ready and idle and (self.useful > 0 or self.quitting)

    def send(self, octets: bytes, awaited: Awaited, transaction: ClientTransaction | None) -> None:
        """Send a command; its reply will be for `transaction`."""
        self.output.append(octets)
        self.expected.append((awaited, transaction))

    def reset(self, transaction: ClientTransaction | None) -> None:
        """Send RSET; `transaction`: one to begin with the reply."""
        self.reset_due = False
        self.output.append(b"RSET\r\n")
        self.expected.append((Awaited.RESET, transaction))

    def unsent(self) -> ClientTransaction | None:
        """The transaction whose content was made ready by this very call, if any."""
        if self.output and self.expected and self.expected[-1][0] is Awaited.DOT:
            return self.expected[-1][1]
        return None

    # ------------------------------------------------------------------ ends

    def shut_down(self, reply: PeerReply, awaited: Awaited | None) -> None:
        """421: the session is over. In good order when mail had passed and none was under way.

        awaited: what it answers, None = nothing. Replies come in order and nothing comes
        after this one (RFC 5321 §3.8): whatever was sent behind that command was not taken.
        """
        for transaction in self.transactions:
            transaction.sent = False
        between = awaited is None or awaited is Awaited.MAIL
        stage = _STAGES.get(awaited, "session") if awaited is not None else "session"
        ended = ended_by(stage, reply)
        if between and self.useful:
            ended = Ended(stage=stage, reply_code=reply.code, reply_text=reply.text)
        self.end(str(reply), ended)

    def injected(self) -> None:
        """End it: octets were said in clear to be believed after the handshake.

        Spec: CVE-2021-33515, CVE-2026-55558.
        """
        self.break_off("octets in clear after the reply to STARTTLS", "starttls")

    def break_off(self, why: str, stage: str) -> None:
        """End the session over something that cannot be."""
        self.end(why, Ended(failure=why, stage=stage))

    def end(self, why: str, ended: Ended) -> None:
        """Settle what is decided, return the rest with `why`; `ended` is the last event."""
        unsent = self.unsent()
        if unsent is not None:
            unsent.sent = False
        if not ended.flush:
            self.output.clear()
        self.over = True
        self.ready = False
        self.handshaking = False
        self.streaming = None
        self.expected.clear()
        while self.transactions:
            transaction = self.transactions.popleft()
            if transaction.decided:
                answers = transaction.final_answers()
                self.events.append(Settled(transaction.token, answers))
            else:
                self.events.append(Returned(transaction.token, why, transaction.sent))
        self.events.append(ended)


def ended_by(stage: str, reply: PeerReply, *, flush: bool = False) -> Ended:
    """The end of a session that a reply was the cause of."""
    return Ended(
        failure=str(reply), stage=stage, reply_code=reply.code, reply_text=reply.text, flush=flush
    )
