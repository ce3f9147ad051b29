"""The SMTP door: one asyncio protocol a client.

Moves octets between a socket, an optional TLS channel and the automaton, and
hands every decision to `door_transaction`. Promises: replies go out in the order of
the commands, all that are due in one write; nothing is read from a client
that does not read its replies, or while the disk is behind; every session ends
when its doorkeeper says so, and no message being stored goes unanswered by that.

Fails small: an unexpected error ends the one session with 421.

Spec: RFC 5321 §4.5.3.2 (time-outs), §3.8 (421), RFC 3207, RFC 2920.
"""

from __future__ import annotations

import asyncio
from typing import cast

import msgspec

from posthouse import observe
from posthouse.errors import PosthouseError, TlsFailed
from posthouse.interfaces.door_caller import Caller
from posthouse.interfaces.door_tls import DoorTls
from posthouse.interfaces.door_transaction import ACTS, MailTransactions
from posthouse.interfaces.doorkeeper import Doorkeeper
from posthouse.mail.reply import Reply
from posthouse.proto.server_events import Closing, Event, StartTls
from posthouse.proto.smtp_server import ServerSession

# Commands looked at before other sessions get their turn: 200 RCPT are about a millisecond.
_EVENTS_A_TURN = 200
# Octets a client may send ahead while it waits for an answer of ours.
_READ_AHEAD_BYTES = 1 << 18
_TLS_HANDSHAKE_SECONDS = 60.0
# How long a closing connection may take to fetch its last replies.
_CLOSING_SECONDS = 5.0


class SmtpDoor(asyncio.Protocol):
    """One client: a `doorkeeper.Guest`, and a `door_transaction.Connection`."""

    __slots__ = (
        "_began", "_caller", "_clock", "_closing_since", "_keeper", "_last", "_parting",
        "_session", "_stalled", "_tls", "_tls_server", "_transport", "_turn", "_unread",
        "_writing_paused", "busy", "closing", "transactions",
    )  # fmt: skip

    def __init__(self, keeper: Doorkeeper) -> None:
        self._keeper = keeper
        limits = keeper.settings.limits
        # Kept for the whole session: a reload may take the certificate away after EHLO offered it.
        self._tls_server = keeper.tls
        if self._tls_server is None and limits.offer_starttls:
            limits = msgspec.structs.replace(limits, offer_starttls=False)
        self._session = ServerSession(limits)
        self._caller = Caller(self._session, keeper.log)
        self.transactions = MailTransactions(self, keeper, self._session, self._caller)
        self._clock = asyncio.get_running_loop().time  # asking for the loop is a system call
        self._transport: asyncio.Transport | None = None
        self._tls: DoorTls | None = None
        self._began = self._last = 0.0
        self.busy = False  # an answer of ours is under way: nothing is pulled
        self._stalled = False  # reading is paused
        self._writing_paused = False
        self._unread = False  # the client sends no more: close when the answers have been given
        self._parting = False  # close as soon as the commit under way has been answered
        self.closing = False
        self._closing_since = 0.0
        self._turn: asyncio.Handle | None = None

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, or turn away."""
        transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses
        self._transport = transport
        peer = transport.get_extra_info("peername")
        if peer == "" and self._keeper.private:  # a unix socket: this node itself
            peer = ("127.0.0.1", 0)
        if not peer:  # gone before we looked
            self.closing = True
            transport.abort()
            return
        caller, keeper = self._caller, self._keeper
        caller.meet(peer[0], peer[1])
        refusal = keeper.admit(self, caller.address, caller.facts.network)
        if refusal is not None:
            keeper.log.connection_refused(caller.address, str(refusal))
            self.closing = True
            transport.write(refusal.encode())
            transport.close()
            return
        self._began = self._last = self._clock()
        caller.learn_name(keeper.resolver, keeper.settings.reverse_dns_timeout)
        self._session.greet()
        transport.write(self._session.take_output())

    def data_received(self, data: bytes) -> None:
        """Take octets from the socket."""
        if self.closing:
            return
        self._last = self._clock()
        tls = self._tls
        if tls is not None:
            try:
                data = tls.receive(data)
            except TlsFailed:
                self._fail_tls()
                return
            if tls.eof:
                self._unread = True  # what came with the close_notify is handled first
            if not data:
                if self._unread and not self._waits():
                    self._close()
                return
        self._session.receive(data)
        if self.busy or self._writing_paused or self._turn is not None:  # `_waits`, at each read
            if self._session.buffered_bytes > _READ_AHEAD_BYTES:
                self.stall()
            return
        self.pump()

    def eof_received(self) -> bool:
        """A half-closed client still gets the replies that are due (e.g. `nc -q`)."""
        if not self._waits():
            return False
        self._unread = True
        return True

    def _waits(self) -> bool:
        """True while commands may be left that a later `pump` will handle."""
        return self.busy or self._writing_paused or self._turn is not None

    def connection_lost(self, _exc: Exception | None) -> None:
        """Drop what was not committed."""
        caller, transactions = self._caller, self.transactions
        if self._turn is not None:
            self._turn.cancel()
        if caller.lookup is not None:
            caller.lookup.cancel()
        transactions.leave()
        if not self.closing:
            caller.log_cut("lost connection")
        self.closing = True
        if self._began:
            caller.log_gone(transactions.messages)
        self._keeper.forget(self, caller.facts.network)
        self._keeper.reception.leave(caller.facts)

    def pause_writing(self) -> None:
        """The client does not read its replies: read no more commands."""
        self._writing_paused = True
        self.stall()

    def resume_writing(self) -> None:
        """Go on."""
        self._writing_paused = False
        self.pump()

    # ------------------------------------------------------------------ time and end

    def check_time(self, now: float) -> None:
        """End an idle or endless session (421); an answer of ours under way is waited for."""
        if self.closing:
            if now - self._closing_since > _CLOSING_SECONDS:
                self.abort()  # it does not fetch its last replies
            return
        settings = self._keeper.settings
        judging = self.transactions.judging
        if judging is not None:
            if now - self.transactions.judging_since > settings.verdict_timeout:
                judging.cancel()  # the client hears 451
        elif self.busy:
            return
        if self._tls is not None and not self._tls.established:
            if now - self._last > _TLS_HANDSHAKE_SECONDS:
                self.cut("timeout")
                return
        elif judging is None and now - self._last > settings.idle_timeout:
            self.cut("timeout")
            return
        # A message under way may finish, but not for ever.
        total = settings.total_timeout * (2 if self._session.in_transaction else 1)
        if now - self._began > total:
            self.cut("session time limit")

    def wind_up(self) -> None:
        """The worker is leaving: end now unless a message is on its way."""
        if not self._session.in_transaction and not self.busy:
            self.cut("server shutting down")

    def part(self, why: str = "server shutting down") -> None:
        """The grace is over: end now, but a message being stored is answered first."""
        if self.closing:
            self.abort()
        elif self.transactions.committing:
            self._parting = True
        else:
            self.cut(why)

    def abort(self) -> None:
        """Tear the connection down; what was not sent is lost."""
        self._begin_closing()
        if self._transport is not None:
            self._transport.abort()

    def cut(self, why: str) -> None:
        """Say 421 and close; a client that does not read its replies is not told."""
        if self.closing:
            return
        host = self._keeper.settings.limits.hostname
        code = "4.3.2" if why.startswith("server") else "4.4.2"
        self.transactions.stop_judging()
        self._session.close_with(Reply(421, code, f"{host} Error: {why}"), why)
        self._caller.log_cut(why)
        if self._writing_paused:
            self.abort()
            return
        self._send_due()
        self._close()

    def _begin_closing(self) -> None:
        if not self._closing_since:
            self._closing_since = self._clock()
        self.closing = True

    def _close(self) -> None:
        self._begin_closing()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._tls is not None:
            self._tls.close()
        transport.close()

    # ------------------------------------------------------------------ the pump

    def pump(self) -> None:
        """Handle events until octets or an answer are missing; then send all that is due."""
        if self._turn is not None:  # this is that turn, come earlier
            self._turn.cancel()
            self._turn = None
        if self.closing or self.busy:
            return
        if not self._writing_paused:
            self._pull()
        self._send_due()
        if self._over():
            return
        session = self._session
        if self.busy or self._writing_paused or self._turn is not None:
            if session.buffered_bytes > _READ_AHEAD_BYTES:
                self.stall()
            return
        if self._stalled:
            self._stalled = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
        if self._unread:
            self._close()
        elif self._keeper.leaving and not session.in_transaction:
            self.cut("server shutting down")

    def go_on(self) -> None:
        """An answer of ours was given: idle time counts from now, and what waited is handled."""
        self._last = self._clock()
        if self._parting:
            self.cut("server shutting down")
        else:
            self.pump()

    def _over(self) -> bool:
        return self.closing  # it may have been set by what was called meanwhile

    def _pull(self) -> None:
        session, transactions = self._session, self.transactions
        try:
            for _ in range(_EVENTS_A_TURN):
                event = session.next_event()
                if event is None:
                    return
                act = ACTS.get(type(event))
                if act is not None:
                    act(transactions, event)
                elif not self._change(event):
                    break
                if self.busy or self.closing:
                    return
            self._next_turn()
        except PosthouseError as error:
            self._fail(error)
        except Exception as error:  # a door session is one of the three places (HOUSE.md)
            self._fail(error)

    def _change(self, event: Event) -> bool:
        """Do what concerns the connection itself; False for Pause, which only wants a new turn."""
        if isinstance(event, StartTls):
            server, transport = self._tls_server, self._transport
            assert server is not None  # else it was never offered
            assert transport is not None
            self._send_due()  # the 220 goes in clear
            self._tls = DoorTls(server, transport, self._session, self._caller)
            return True
        if isinstance(event, Closing):
            self.transactions.drop_letter()
            if event.why != "quit":
                self._caller.log_cut(event.why)
            self._send_due()
            self._close()
            return True
        return False

    def _next_turn(self) -> None:
        """Go on after the others; a client that does not read waits for `resume_writing`."""
        if not self._writing_paused:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        self.pump()

    def _fail(self, error: Exception) -> None:
        observe.trouble("smtpd", f"session of {self._caller.address} failed", error)
        self.transactions.drop_letter()
        self.cut("local error in processing")

    def stall(self) -> None:
        """Read no more octets until `pump` has handled all that were read."""
        if not self._stalled and self._transport is not None and not self._transport.is_closing():
            self._stalled = True
            self._transport.pause_reading()

    # ------------------------------------------------------------------ the wire

    def _send_due(self) -> None:
        out = self._session.take_output()
        transport = self._transport
        if not out or transport is None or transport.is_closing():
            return
        tls = self._tls
        if tls is None:
            transport.write(out)
            return
        try:
            tls.send(out)
        except TlsFailed:
            self.abort()

    def _fail_tls(self) -> None:
        self._begin_closing()
        if not self.busy:
            self.transactions.drop_letter()
        if self._transport is not None:
            self._transport.close()
