"""The SMTP door: one asyncio protocol a client, one doorkeeper a worker.

Moves octets between a socket, an optional TLS channel and the automaton, and
asks Reception for every decision. Promises: replies go out in the order of
the commands, all that are due in one write; nothing is read from a client
that does not read its replies, or while the disk is behind; every session is
bounded in idle and total time, every client network in connections.

Fails small: an unexpected error ends the one session with 421.

Spec: RFC 5321 §4.5.3.2 (time-outs), §3.8 (421), RFC 3207, RFC 2920.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, cast

import msgspec

from posthouse import observe
from posthouse.domain.client_network import client_network, plain_address
from posthouse.domain.verdict import NOT_JUDGED, Verdict
from posthouse.errors import PosthouseError, TlsFailed
from posthouse.interfaces.door_log import DoorLog
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.mail.reply import Reply
from posthouse.ports import Resolver, TlsChannel, TlsServer
from posthouse.ports_session import OpenLetter, Receptionist, SessionFacts
from posthouse.proto import server_replies
from posthouse.proto.server_events import (
    Abort,
    Closing,
    Content,
    ContentEnd,
    DataRequest,
    Etrn,
    Event,
    Mail,
    Rcpt,
    ServerLimits,
    StartTls,
)
from posthouse.proto.smtp_server import ServerSession
from posthouse.services.reception import NO_STORAGE_AFTER, make_recipient

# Commands looked at before other sessions get their turn: 200 RCPT are about a millisecond.
_EVENTS_A_TURN = 200
# Octets a client may send ahead while it waits for an answer of ours.
_READ_AHEAD_BYTES = 1 << 18
_SWEEP_SECONDS = 1.0
_TLS_HANDSHAKE_SECONDS = 60.0
# How long a closing connection may take to fetch its last replies.
_CLOSING_SECONDS = 5.0
# What commits and last replies get once the grace of a shutdown is over.
_LAST_SECONDS = 3.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DoorSettings:
    """Limits of one worker's door. Times in seconds, the rest counts.

    max_connections_per_client counts a client network (domain/client_network).
    verdict_timeout: how long one recipient may take to be checked; clients wait five
    minutes for a reply to RCPT (RFC 5321 §4.5.3.2.3), often for several in turn.
    """

    limits: ServerLimits
    max_connections: int = 2000
    max_connections_per_client: int = 100
    idle_timeout: float = 300.0
    total_timeout: float = 3600.0
    reverse_dns: bool = True
    reverse_dns_timeout: float = 5.0
    verdict_timeout: float = 60.0


Etrns = Callable[[str, SessionFacts], Awaitable[Reply]]
"""Answers ETRN: its argument, and who asks."""


class Doorkeeper:
    """Knows every session of this worker: limits, time-outs, the way out."""

    def __init__(
        self,
        settings: DoorSettings,
        *,
        reception: Receptionist,
        resolver: Resolver | None,
        tls: TlsServer | None,
    ) -> None:
        self.settings = settings
        self.reception = reception
        self.resolver = resolver if settings.reverse_dns else None
        self.tls = tls
        self.etrn: Etrns | None = None
        self.private = False  # clients are this node's own, over unix sockets
        self.log: DoorLog = observe
        self.sessions: set[SmtpDoor] = set()
        self._networks: dict[str, int] = {}
        self._leaving = False
        self._empty = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None

    def make_session(self) -> SmtpDoor:
        """The protocol factory for loop.create_server."""
        return SmtpDoor(self)

    def start(self) -> None:
        """Begin to watch the clock."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    def reload(self, settings: DoorSettings, *, resolver: Resolver | None) -> None:
        """Put new limits in force for sessions to come; running ones keep theirs."""
        self.settings = settings
        self.resolver = resolver if settings.reverse_dns else None

    async def leave(self, grace_seconds: float) -> None:
        """Let running sessions finish their message, 421 to the rest; all gone at the end.

        After the grace a commit under way still gets its answer, and every
        client a few seconds to read what it was told.
        """
        self._leaving = True
        for session in tuple(self.sessions):
            self._guard(session, session.wind_up)
        await self._wait_empty(grace_seconds)
        for session in tuple(self.sessions):
            self._guard(session, session.part)
        await self._wait_empty(_LAST_SECONDS)
        for session in tuple(self.sessions):
            session.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def hang_up(self, why: str) -> None:
        """Say 421 to every session at once; one whose message is committed hears its answer."""
        for session in tuple(self.sessions):
            self._guard(session, partial(session.part, why))

    async def _wait_empty(self, seconds: float) -> None:
        if self.sessions:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), seconds)

    @staticmethod
    def _guard(session: SmtpDoor, act: Callable[[], None]) -> None:
        """A session that fails when it is to end is torn down; the others never notice."""
        try:
            act()
        except Exception as error:
            observe.trouble("smtpd", "a session could not be ended in order", error)
            session.abort()

    @property
    def leaving(self) -> bool:
        """True once the worker is shutting down."""
        return self._leaving

    def admit(self, session: SmtpDoor, address: str, network: str) -> Reply | None:
        """Count a session in, or say why not (421)."""
        host = self.settings.limits.hostname
        if self._leaving:
            return Reply(421, "4.3.2", f"{host} Service shutting down, try again later")
        if len(self.sessions) >= self.settings.max_connections:
            return Reply(421, "4.7.0", f"{host} Error: too many connections, try again later")
        count = self._networks.get(network, 0)
        if count >= self.settings.max_connections_per_client:
            return Reply(421, "4.7.0", f"{host} Error: too many connections from {address}")
        self._networks[network] = count + 1
        self.sessions.add(session)
        return None

    def forget(self, session: SmtpDoor, network: str) -> None:
        """Count a session out."""
        if session not in self.sessions:
            return
        self.sessions.discard(session)
        count = self._networks.get(network, 0) - 1
        if count > 0:
            self._networks[network] = count
        else:
            self._networks.pop(network, None)
        if self._leaving and not self.sessions:
            self._empty.set()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = loop.time()
            for session in tuple(self.sessions):
                self._guard(session, partial(session.check_time, now))


_NOBODY = SessionFacts(address="", network="")


class SmtpDoor(asyncio.Protocol):
    """One client."""

    __slots__ = (
        "_address", "_began", "_busy", "_channel", "_client", "_clock", "_closing",
        "_closing_since", "_committing", "_facts", "_judging", "_judging_since", "_keeper",
        "_last", "_letter", "_messages", "_name", "_name_task", "_parting", "_port",
        "_recipients", "_session", "_stalled", "_tls", "_transport", "_turn", "_unread",
        "_verdicts", "_writing_paused",
    )  # fmt: skip

    def __init__(self, keeper: Doorkeeper) -> None:
        self._keeper = keeper
        limits = keeper.settings.limits
        # Kept for the whole session: a reload may take the certificate away after EHLO offered it.
        self._tls = keeper.tls
        if self._tls is None and limits.offer_starttls:
            limits = msgspec.structs.replace(limits, offer_starttls=False)
        self._session = ServerSession(limits)
        self._clock = asyncio.get_running_loop().time  # asking for the loop is a system call
        self._client: Client | None = None  # as it was for the last message
        self._transport: asyncio.Transport | None = None
        self._channel: TlsChannel | None = None
        self._letter: OpenLetter | None = None
        self._recipients: list[Recipient] = []
        self._verdicts: list[Verdict] = []  # of these recipients
        self._facts = _NOBODY
        self._judging: asyncio.Future[Any] | None = None  # a verdict, or the answer to ETRN
        self._judging_since = 0.0
        self._name = "unknown"
        self._name_task: asyncio.Task[None] | None = None
        self._address = ""
        self._port = 0
        self._began = self._last = 0.0
        self._messages = 0
        self._busy = False  # an answer of ours is under way: nothing is pulled
        self._stalled = False  # reading is paused
        self._writing_paused = False
        self._unread = False  # the client sends no more: close when the answers have been given
        self._committing = False
        self._parting = False  # close as soon as the commit under way has been answered
        self._closing = False
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
            self._closing = True
            transport.abort()
            return
        self._address, self._port = plain_address(peer[0]), peer[1]
        self._facts = SessionFacts(address=self._address, network=client_network(self._address))
        refusal = self._keeper.admit(self, self._address, self._facts.network)
        if refusal is not None:
            self._keeper.log.connection_refused(self._address, str(refusal))
            self._closing = True
            transport.write(refusal.encode())
            transport.close()
            return
        self._began = self._last = self._clock()
        if self._keeper.resolver is not None:
            self._name_task = asyncio.get_running_loop().create_task(
                self._find_name(self._keeper.resolver)
            )
        else:
            self._keeper.log.client_connected(self._name, self._address, self._port)
        self._session.greet()
        transport.write(self._session.take_output())

    def data_received(self, data: bytes) -> None:
        """Take octets from the socket."""
        if self._closing:
            return
        self._last = self._clock()
        channel = self._channel
        if channel is not None:
            plain = self._decrypt(channel, data)
            if not plain:
                if self._unread and not self._waits():
                    self._close()
                return
            data = plain
        self._session.receive(data)
        if self._busy or self._writing_paused or self._turn is not None:  # `_waits`, at each read
            if self._session.buffered_bytes > _READ_AHEAD_BYTES:
                self._stall()
            return
        self._pump()

    def eof_received(self) -> bool:
        """A half-closed client still gets the replies that are due (e.g. `nc -q`)."""
        if not self._waits():
            return False
        self._unread = True
        return True

    def _waits(self) -> bool:
        """True while commands may be left that a later `_pump` will handle."""
        return self._busy or self._writing_paused or self._turn is not None

    def connection_lost(self, _exc: Exception | None) -> None:
        """Drop what was not committed."""
        session = self._session
        if self._turn is not None:
            self._turn.cancel()
        if self._name_task is not None:
            self._name_task.cancel()
        if self._judging is not None:
            self._judging.cancel()
        if self._letter is not None and not self._busy:
            self._letter.discard()
            self._letter = None
        if not self._closing:
            self._keeper.log.session_cut(
                self._name, self._address, session.last_command, "lost connection"
            )
        self._closing = True
        if self._began:
            self._keeper.log.client_gone(
                self._name, self._address, commands=session.commands, messages=self._messages
            )
        self._keeper.forget(self, self._facts.network)
        self._keeper.reception.leave(self._facts)

    def pause_writing(self) -> None:
        """The client does not read its replies: read no more commands."""
        self._writing_paused = True
        self._stall()

    def resume_writing(self) -> None:
        """Go on."""
        self._writing_paused = False
        self._pump()

    # ------------------------------------------------------------------ time and end

    def check_time(self, now: float) -> None:
        """End an idle or endless session (421); an answer of ours under way is waited for."""
        if self._closing:
            if now - self._closing_since > _CLOSING_SECONDS:
                self.abort()  # it does not fetch its last replies
            return
        settings = self._keeper.settings
        judging = self._judging
        if judging is not None:
            if now - self._judging_since > settings.verdict_timeout:
                judging.cancel()  # 451: `_judged`
        elif self._busy:
            return
        channel = self._channel
        if channel is not None and not channel.established:
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
        if not self._session.in_transaction and not self._busy:
            self.cut("server shutting down")

    def part(self, why: str = "server shutting down") -> None:
        """The grace is over: end now, but a message being stored is answered first."""
        if self._closing:
            self.abort()
        elif self._committing:
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
        if self._closing:
            return
        host = self._keeper.settings.limits.hostname
        code = "4.3.2" if why.startswith("server") else "4.4.2"
        if self._judging is not None:
            self._judging.cancel()
        self._session.close_with(Reply(421, code, f"{host} Error: {why}"), why)
        self._keeper.log.session_cut(self._name, self._address, self._session.last_command, why)
        if self._writing_paused:
            self.abort()
            return
        self._send_due()
        self._close()

    def _begin_closing(self) -> None:
        if not self._closing_since:
            self._closing_since = self._clock()
        self._closing = True

    def _close(self) -> None:
        self._begin_closing()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._channel is not None and self._channel.established:
            goodbye = self._channel.close()
            if goodbye:
                transport.write(goodbye)
        transport.close()

    # ------------------------------------------------------------------ the pump

    def _pump(self) -> None:
        """Handle events until octets or an answer are missing; then send all that is due."""
        if self._turn is not None:  # this is that turn, come earlier
            self._turn.cancel()
            self._turn = None
        if self._closing or self._busy:
            return
        if not self._writing_paused:
            self._pull()
        self._send_due()
        if self._over():
            return
        session = self._session
        if self._busy or self._writing_paused or self._turn is not None:
            if session.buffered_bytes > _READ_AHEAD_BYTES:
                self._stall()
            return
        if self._stalled:
            self._stalled = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
        if self._unread:
            self._close()
        elif self._keeper.leaving and not session.in_transaction:
            self.cut("server shutting down")

    def _over(self) -> bool:
        return self._closing  # it may have been set by what was called meanwhile

    def _pull(self) -> None:
        session = self._session
        try:
            for _ in range(_EVENTS_A_TURN):
                event = session.next_event()
                if event is None:
                    return
                act = _ACTS.get(type(event))
                if act is None:  # Pause
                    break
                act(self, event)
                if self._busy or self._closing:
                    return
            self._next_turn()
        except PosthouseError as error:
            self._fail(error)
        except Exception as error:  # a door session is one of the three places (HOUSE.md)
            self._fail(error)

    def _next_turn(self) -> None:
        """Go on after the others; a client that does not read waits for `resume_writing`."""
        if not self._writing_paused:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        self._pump()

    def _fail(self, error: Exception) -> None:
        observe.trouble("smtpd", f"session of {self._address} failed", error)
        if self._letter is not None:
            self._letter.discard()
            self._letter = None
        self.cut("local error in processing")

    def _stall(self) -> None:
        if not self._stalled and self._transport is not None and not self._transport.is_closing():
            self._stalled = True
            self._transport.pause_reading()

    def _send_due(self) -> None:
        out = self._session.take_output()
        transport = self._transport
        if not out or transport is None or transport.is_closing():
            return
        channel = self._channel
        if channel is None:
            transport.write(out)
            return
        if not channel.established:  # inside the handshake nothing can be said
            return
        try:
            transport.write(channel.wrap(out))
        except TlsFailed as error:
            self._keeper.log.session_cut(
                self._name, self._address, self._session.last_command, f"TLS failed ({error})"
            )
            self.abort()

    def _on_content(self, event: Content) -> None:
        letter = self._letter
        if letter is not None and not letter.write(event.data):
            self._wait_for_disk(letter)

    def _on_abort(self, _event: Abort) -> None:
        self._drop_letter()
        self._recipients, self._verdicts = [], []

    # ------------------------------------------------------------------ events

    def _protocol(self) -> str:
        """The `with` keyword (RFC 3848, RFC 6531 §4.3)."""
        session = self._session
        if not session.esmtp:
            return "SMTP"
        name = "UTF8SMTP" if session.smtputf8 else "ESMTP"
        return name + "S" if session.tls else name

    def _sender_text(self) -> str:
        sender = self._session.sender
        return "" if sender is None else sender.spelled

    def _on_mail(self, _event: Mail | None = None) -> None:
        if self._name_task is not None and not self._name_task.done():
            self._wait_for_name()
            return
        refusal = self._keeper.reception.judge_mail()
        if refusal is not None:
            self._log_refusal("MAIL", refusal)
        self._recipients, self._verdicts = [], []
        facts, session = self._facts, self._session
        facts.name, facts.helo, facts.tls = self._name, session.helo, session.tls
        facts.sender, facts.mail = self._sender_text(), session.params
        facts.transaction += 1
        session.answer(refusal if refusal is not None else server_replies.SENDER_OK)

    def _on_rcpt(self, event: Rcpt) -> None:
        self._facts.rcpt = event.params
        verdict = self._keeper.reception.judge_recipient(event.recipient, self._facts)
        if isinstance(verdict, Verdict):
            self._answer_rcpt(event, verdict)
        else:
            self._wait_for_verdict(event, verdict)

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
        self._keeper.log.recipient_refused(
            self._name,
            self._address,
            str(reply),
            mailbox.spelled,
            self._sender_text(),
            self._protocol(),
            self._session.helo,
        )
        self._session.answer(reply)

    def _on_etrn(self, event: Etrn) -> None:
        desk = self._keeper.etrn
        if desk is None:
            self._session.answer(server_replies.NOT_IMPLEMENTED)
            return
        facts, session = self._facts, self._session
        facts.name, facts.helo, facts.tls = self._name, session.helo, session.tls
        self._busy = True
        self._judging_since = self._clock()
        self._judging = asyncio.ensure_future(desk(event.node, facts))
        self._judging.add_done_callback(self._etrn_decided)

    def _etrn_decided(self, done: asyncio.Future[Reply]) -> None:
        self._busy, self._judging = False, None
        self._last = self._clock()
        if self._closing:
            return
        error = TimeoutError("it took too long") if done.cancelled() else done.exception()
        if error is not None:
            observe.trouble("smtpd", "no answer to ETRN", error)
        reply = server_replies.ETRN_LATER if error is not None else done.result()
        if not reply.positive:
            self._log_refusal("ETRN", reply)
        self._session.answer(reply)
        self._pump()

    def _on_data(self, _event: DataRequest) -> None:
        session = self._session
        params = session.params
        opened = self._keeper.reception.open_letter(
            Envelope(
                sender=self._sender_text(),
                recipients=tuple(self._recipients),
                body=params.body,
                smtputf8=params.smtputf8,
                ret=params.ret,
                envid=params.envid,
            ),
            self._describe_client(),
            self._facts,
            self._verdicts,
        )
        if isinstance(opened, Reply):
            self._log_refusal("DATA", opened)
            session.answer(opened)
            return
        self._letter = opened
        session.open_data()

    def _describe_client(self) -> Client:
        session, protocol, known = self._session, self._protocol(), self._client
        if known is None or (
            known.protocol != protocol
            or known.helo is not session.helo  # each EHLO makes another
            or known.tls is not session.tls
            or known.name is not self._name
        ):
            known = self._client = Client(
                address=self._address,
                port=self._port,
                name=self._name,
                helo=session.helo,
                protocol=protocol,
                tls=session.tls,
            )
        return known

    def _on_end(self, event: ContentEnd) -> None:
        letter = self._letter
        assert letter is not None
        refusal = event.defect if event.defect is not None else letter.refusal()
        if refusal is not None:
            self._drop_letter()
            self._log_refusal("END-OF-MESSAGE", refusal)
            self._session.answer(refusal)
            return
        self._busy = self._committing = True
        asyncio.ensure_future(letter.commit()).add_done_callback(self._committed)

    def _committed(self, done: asyncio.Future[None]) -> None:
        """The disk has spoken: only now may the client hear 250."""
        letter, self._letter = self._letter, None
        self._busy = self._committing = False
        self._recipients, self._verdicts = [], []
        if letter is None:
            return
        error = None if done.cancelled() else done.exception()
        if error is None and not done.cancelled():
            reply = letter.accepted()
            if reply.code < 300:
                self._messages += 1
            else:
                self._log_refusal("END-OF-MESSAGE", reply)
            self._session.answer(reply)
        else:
            letter.discard()
            observe.counters.storage_refusals += 1
            observe.trouble("smtpd", f"{letter.queue_id}: not stored", error)
            self._log_refusal("END-OF-MESSAGE", NO_STORAGE_AFTER)
            self._session.answer(NO_STORAGE_AFTER)
        self._last = self._clock()
        if self._parting:
            self.cut("server shutting down")
        else:
            self._pump()

    def _drop_letter(self) -> None:
        if self._letter is not None:
            self._letter.discard()
            self._letter = None

    def _on_closing(self, event: Closing) -> None:
        self._drop_letter()
        if event.why != "quit":
            self._keeper.log.session_cut(
                self._name, self._address, self._session.last_command, event.why
            )
        self._send_due()
        self._close()

    def _log_refusal(self, stage: str, reply: Reply) -> None:
        self._keeper.log.command_refused(
            self._name,
            self._address,
            stage,
            str(reply),
            self._protocol(),
            self._session.helo,
            self._sender_text(),
        )

    # ------------------------------------------------------------------ waiting

    def _wait_for_disk(self, letter: OpenLetter) -> None:
        self._busy = True
        self._stall()
        asyncio.ensure_future(letter.drain()).add_done_callback(self._disk_ready)

    def _disk_ready(self, done: asyncio.Future[None]) -> None:
        self._busy = False
        self._last = self._clock()
        if not done.cancelled() and done.exception() is not None:
            pass  # `commit` reports it: the client hears 451 after its content
        if self._closing:
            self._drop_letter()
            return
        self._pump()

    def _wait_for_verdict(self, event: Rcpt, verdict: Awaitable[Verdict]) -> None:
        """Commands pipelined behind this one wait too, so that replies keep their order."""
        self._busy = True
        self._judging_since = self._clock()
        self._judging = asyncio.ensure_future(verdict)
        self._judging.add_done_callback(partial(self._judged, event))

    def _judged(self, event: Rcpt, done: asyncio.Future[Verdict]) -> None:
        self._busy, self._judging = False, None
        self._last = self._clock()
        error: BaseException | None = TimeoutError("it took too long")
        if not done.cancelled():
            error = done.exception()
        if self._closing:
            return
        if error is None:
            verdict = done.result()
        else:
            observe.trouble("smtpd", f"no verdict for <{event.recipient.spelled}>", error)
            verdict = Verdict(NOT_JUDGED)
        self._answer_rcpt(event, verdict)
        self._pump()

    def _wait_for_name(self) -> None:
        """MAIL waits for the reverse name: logs and trace fields want it."""
        task = self._name_task
        assert task is not None
        self._busy = True
        task.add_done_callback(self._name_ready)

    def _name_ready(self, _done: asyncio.Task[None]) -> None:
        self._busy = False
        if self._closing:
            return
        self._on_mail()
        self._pump()

    async def _find_name(self, resolver: Resolver) -> None:
        try:
            name = await asyncio.wait_for(
                resolver.find_name(self._address), self._keeper.settings.reverse_dns_timeout
            )
        except TimeoutError:
            name = None
        self._name = name or "unknown"
        self._keeper.log.client_connected(self._name, self._address, self._port)

    # ------------------------------------------------------------------ TLS

    def _on_starttls(self, _event: StartTls) -> None:
        assert self._tls is not None  # else it was never offered
        self._send_due()  # the 220 goes in clear
        self._channel = self._tls.open_channel()
        self._channel.start()

    def _decrypt(self, channel: TlsChannel, data: bytes) -> bytes:
        before = channel.established
        transport = self._transport
        assert transport is not None
        try:
            plain, reply = channel.feed(data)
        except TlsFailed as error:
            if error.alert:
                transport.write(error.alert)
            self._keeper.log.session_cut(
                self._name, self._address, "STARTTLS", f"TLS failed ({error})"
            )
            self._begin_closing()
            if not self._busy:
                self._drop_letter()
            transport.close()
            return b""
        if reply:
            transport.write(reply)
        if channel.established and not before:
            self._session.tls_started(channel.describe())
        if channel.eof:
            self._unread = True  # what came with the close_notify is handled first
        return plain


_ACTS: Final[dict[type[Event], Callable[[SmtpDoor, Any], None]]] = {
    Content: SmtpDoor._on_content,
    Rcpt: SmtpDoor._on_rcpt,
    Mail: SmtpDoor._on_mail,
    DataRequest: SmtpDoor._on_data,
    ContentEnd: SmtpDoor._on_end,
    Abort: SmtpDoor._on_abort,
    Etrn: SmtpDoor._on_etrn,
    StartTls: SmtpDoor._on_starttls,
    Closing: SmtpDoor._on_closing,
}
