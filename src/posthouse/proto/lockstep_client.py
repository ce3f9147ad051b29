"""An SMTP client that says one command at a time and hands out each reply: for `proxy`.

The relay's automaton (`smtp_client`) takes whole messages and pipelines them;
here somebody else's session decides what comes next, so every command waits
for its reply. The same rules of distrust hold: a reply nobody asked for,
garbage, or octets in clear behind the 220 to STARTTLS break the session.

Raises nothing for what a peer does; after `Broken` every method is harmless.
Spec: RFC 5321 §3, §4; RFC 3207.
"""

from __future__ import annotations

import msgspec

from posthouse.proto.client_events import Awaited
from posthouse.proto.client_extensions import Extensions
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
from posthouse.proto.client_wire import SHUTTING_DOWN
from posthouse.proto.replies_in import PeerReply, ReplyParser


class Opened(msgspec.Struct, frozen=True):
    """Commands may be given now."""


class HandshakeWanted(msgspec.Struct, frozen=True):
    """Begin the TLS handshake, then call `secured`."""


class Answered(msgspec.Struct, frozen=True):
    """The reply to the command said last."""

    reply: PeerReply


class Broken(msgspec.Struct, frozen=True):
    """The session is over. stage as in `NextHopFailure`; reply: what the peer refused with."""

    why: str
    stage: str
    reply: PeerReply | None = None


Event = Opened | HandshakeWanted | Answered | Broken


class LockstepClient:
    """One session. `over`: nothing more will come of it; `in_content`: between 354 and the dot."""

    def __init__(self, helo_name: str, *, tls: TlsWish) -> None:
        self.over = False
        self.in_content = False
        self._opening = Opening(helo_name, tls)
        self._awaited: Awaited | None = Awaited.GREETING
        self._asked = False
        self._handshaking = False
        self._parser = ReplyParser()
        self._output: list[bytes] = []
        self._tail = b"\r\n"

    @property
    def extensions(self) -> Extensions:
        """What the peer offers as of now."""
        return self._opening.extensions

    @property
    def secure(self) -> bool:
        """What is said now goes under TLS."""
        return self._opening.secure

    @property
    def waiting(self) -> bool:
        """True while the peer owes a reply or a handshake."""
        return not self.over and (self._awaited is not None or self._asked or self._handshaking)

    def take_output(self) -> bytes:
        """Octets to write now."""
        out = b"".join(self._output)
        self._output.clear()
        return out

    def say(self, line: str) -> None:
        """Give one command, without its CRLF. Only when nothing is awaited."""
        assert not self.waiting
        if not self.over:
            self._output.append(f"{line}\r\n".encode())
            self._asked = True

    def begin_content(self) -> None:
        """The 354 came: `content` may follow."""
        self._tail = b"\r\n"
        self.in_content = True

    def content(self, piece: bytes) -> bytes:
        """Content as it goes on the wire: dots that begin a line are doubled (RFC 5321 §4.5.2)."""
        tail = self._tail
        together = tail + piece
        self._tail = together[-2:]
        return together.replace(b"\r\n.", b"\r\n..")[len(tail) :]

    def end_content(self) -> None:
        """Say the final dot; its reply is awaited."""
        if not self.over:
            self.in_content = False
            self._output.append(b".\r\n" if self._tail == b"\r\n" else b"\r\n.\r\n")
            self._asked = True

    def secured(self) -> list[Event]:
        """The handshake is done."""
        self._handshaking = False
        return self._follow(self._opening.begin_secure())

    def lost(self, why: str) -> list[Event]:
        """The connection is gone."""
        return self._break(why, "session")

    def feed(self, data: bytes) -> list[Event]:
        """Take octets from the peer."""
        if self.over:
            return []
        if self._handshaking:
            return self._break("octets in clear behind STARTTLS", "starttls")
        events: list[Event] = []
        replies = self._parser.feed(data)
        for position, reply in enumerate(replies):
            last = position == len(replies) - 1 and not self._parser.mid_reply
            events += self._take(reply, last=last)
            if events and isinstance(events[-1], Broken):
                return events
        if self._parser.broken:
            events += self._break(self._parser.broken, "session")
        return events

    def _take(self, reply: PeerReply, *, last: bool) -> list[Event]:
        if self._awaited is not None:
            awaited, self._awaited = self._awaited, None
            step = self._opening.decide(awaited, reply)
            if isinstance(step, ShakeHands) and not last:
                return self._break("octets in clear behind STARTTLS", "starttls")
            return self._follow(step)
        if reply.code == SHUTTING_DOWN:
            self._asked = False
            return self._break(f"the peer says {reply}", "session", reply)
        if not self._asked:
            return self._break("a reply nobody asked for", "session")
        self._asked = False
        return [Answered(reply)]

    def _follow(self, step: Step) -> list[Event]:
        match step:
            case Say():
                self._output.append(step.command)
                self._awaited = step.awaited
                return []
            case ShakeHands():
                self._handshaking = True
                return [HandshakeWanted()]
            case Ready():
                return [Opened()]
            case Refused():
                return self._break(f"{step.stage} refused: {step.reply}", step.stage, step.reply)
            case NoTls():
                return self._break("TLS is required and not offered", "starttls")
            case Impossible():
                return self._break(step.why, step.stage)

    def _break(self, why: str, stage: str, reply: PeerReply | None = None) -> list[Event]:
        if self.over:
            return []
        self.over = True
        self._asked, self._awaited, self._handshaking = False, None, False
        return [Broken(why, stage, reply)]
