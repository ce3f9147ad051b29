"""The server's side of an SMTP session as an automaton without I/O.

The owner gives it octets (`receive`), pulls events (`next_event`) and takes
octets to send (`take_output`). Syntax, order and limits are answered here;
everything that is a decision comes out as an event and waits for `answer`,
`open_data` or `tls_started`. While an event waits, nothing more is read:
replies leave strictly in the order of the commands (RFC 2920 §3.2), and all
that were due are given out in one piece, so that a pipelined group costs one
write.

States of a session, and what moves them::

    greeted  --EHLO, HELO-->  ready
    ready    --MAIL-->        mail      --RCPT-->   rcpt (more RCPT stay here)
    rcpt     --DATA-->        content   --CRLF.CRLF-->  ready
    rcpt     --BDAT-->        chunk     --its octets--> rcpt; after LAST: ready
    mail, rcpt --RSET, EHLO-->  ready
    ready    --STARTTLS-->    greeted, all knowledge dropped
    any      --QUIT, a limit--> closed

A command that breaks a limit is refused whole, never obeyed in part. Octets
that came in clear behind STARTTLS are dropped (RFC 3207 §6; CVE-2011-0411).

Commands: `server_commands`; content: `server_content`; what all know: `server_state`.

Limits and their precedents: line 2048 (Postfix line_length_limit), errors 10
to 20 (smtpd_hard_error_limit 20), idle commands 100 (smtpd_junk_command_limit).
Raises nothing on any input; that is the fuzz oracle.

Spec: RFC 5321 §4, RFC 2920, RFC 1870, RFC 3030, RFC 3207, RFC 3461, RFC 6531, RFC 2034.
"""

from __future__ import annotations

from typing import Final

from posthouse.mail.reply import Reply
from posthouse.proto import server_replies as replies
from posthouse.proto.dotdata import ChunkDecoder, DotDecoder
from posthouse.proto.server_commands import read_command
from posthouse.proto.server_content import read_chunk, read_data
from posthouse.proto.server_events import ContentEnd, DataRequest, Event, Mail, Pause, Rcpt
from posthouse.proto.server_state import COMMAND, SAID, Mode, ServerState

_GO_AHEAD: Final = b"354 End data with <CR><LF>.<CR><LF>\r\n"
# Commands answered before the owner gets a word in: a fraction of a millisecond.
_LINES_A_TURN: Final = 100
_PAUSE: Final = Pause()
_REFUSED_LINE: Final = b"\n"  # no line holds a LF: a mark that costs nothing


class ServerSession(ServerState):
    """One client's session. See the module docstring.

    Readable at any time: helo, esmtp, tls, smtputf8, sender, params (those of MAIL),
    in_transaction (between an accepted MAIL and its end), errors, commands,
    last_command (for logs). The rest of the state is of the automaton's own parts.
    """

    __slots__ = ()

    @property
    def smtputf8(self) -> bool:
        """True when the transaction asked for SMTPUTF8."""
        return self.params.smtputf8

    @property
    def buffered_bytes(self) -> int:
        """Octets received and not yet looked at."""
        return len(self.buffer) - self.pos

    def greet(self) -> None:
        """Put the 220 greeting into the output."""
        self.out.append(f"220 {self.limits.hostname} ESMTP Posthouse\r\n".encode())

    def receive(self, data: bytes) -> None:
        """Take octets from the client."""
        if self.pos >= len(self.buffer):
            self.buffer = data
        else:
            self.buffer = self.buffer[self.pos :] + data
        self.pos = 0

    def take_output(self) -> bytes:
        """All replies that are due, in one piece; b"" when none are."""
        if not self.out:
            return b""
        out = self.out[0] if len(self.out) == 1 else b"".join(self.out)
        self.out.clear()
        return out

    def next_event(self) -> Event | None:
        """The next thing the owner must know; None: more octets, or an answer, are needed."""
        if (  # nothing to read, nothing to say: the usual end of a turn
            self.pos >= len(self.buffer)
            and self.mode is COMMAND
            and not (self.ended or self.pending_close)
            and self.errors < self.limits.max_errors
        ):
            return None
        lines = 0
        while self.awaiting is None:
            event: Event | None
            mode = self.mode
            if self.ended:
                self.ended = False
                self.awaiting = ContentEnd
                return ContentEnd(self.verdict)
            if mode is COMMAND:
                if self.pending_close:
                    return self.close(self.pending_close)
                if self.errors >= self.limits.max_errors:
                    return self.close("too many errors")
                lines += 1
                if lines > _LINES_A_TURN:
                    return _PAUSE
                line = self._take_line()
                if line is None:
                    return None
                event = read_command(self, line) if line is not _REFUSED_LINE else None
            elif mode is Mode.SKIP_LINE:
                if not self._skip_line():
                    return None
                continue
            elif mode is Mode.DATA or mode is Mode.CHUNK:
                if self.pos >= len(self.buffer) and (mode is Mode.DATA or self.chunk_left):
                    return None
                if self.sliced:
                    self.sliced = False
                    return _PAUSE
                event = read_data(self) if mode is Mode.DATA else read_chunk(self)
            else:
                return None
            if event is not None:
                return event
        return None

    def answer(self, reply: Reply) -> None:
        """Answer the event that waits. 2xx/3xx accepts, 4xx/5xx refuses, 421 ends the session."""
        waiting, self.awaiting = self.awaiting, None
        positive = reply.code < 400
        if waiting is DataRequest:  # a refusal: `open_data` accepts
            chunked = self.chunks
            self.forget()
            if chunked:
                self.refusal = reply  # said when the octets of the chunk have been swallowed
            else:
                self.say(reply)
            return
        self.say(reply)
        if reply.code == 421:
            self.pending_close = SAID
        if waiting is Rcpt:
            if positive:
                self.accepted += 1
            else:
                self.refused_rcpt += 1
        elif waiting is Mail:
            if not positive:
                self.forget()
        elif waiting is ContentEnd:
            if positive:
                self.idle_commands = 0
            self.forget()

    def open_data(self) -> None:
        """Let the message come (the answer to DataRequest)."""
        self.awaiting = None
        normalize = self.limits.bare_newlines == "normalize"
        if self.chunks:
            self.decoder = ChunkDecoder(normalize=normalize)
            self.mode = Mode.CHUNK
        else:
            self.decoder = DotDecoder(normalize=normalize)
            self.mode = Mode.DATA
            self.out.append(_GO_AHEAD)

    def tls_started(self, description: str) -> None:
        """The handshake is done: forget all that was said in clear (RFC 3207 §4.2)."""
        self.buffer, self.pos = b"", 0
        self.forget()
        self.helo, self.esmtp = "", False
        self.tls = description
        self.offers_starttls = False
        self.awaiting = None
        self.mode = COMMAND

    def close_with(self, reply: Reply, why: str) -> None:
        """Say `reply` (421) and close as soon as no answer is awaited; the owner met a limit."""
        if self.mode is not Mode.CLOSED and not self.pending_close:
            self.out.append(reply.encode())
            self.mode = Mode.CLOSED
            self.pending_close = why

    def _take_line(self) -> bytes | None:
        """One line without CR LF; _REFUSED_LINE when it was answered here; None: not all there."""
        buffer, start = self.buffer, self.pos
        end = buffer.find(b"\n", start)
        if end < 0:
            if len(buffer) - start < self.limits.max_line:
                return None
            self.mode = Mode.SKIP_LINE
            end = len(buffer)
        self.pos = end + 1
        if end - start >= self.limits.max_line:  # its LF makes it one more
            self.say(replies.TOO_LONG)
        elif end == start or buffer[end - 1] != 13:
            self.say(replies.BARE_LINE)
        else:
            return buffer[start : end - 1]
        self.commands += 1
        return _REFUSED_LINE

    def _skip_line(self) -> bool:
        end = self.buffer.find(b"\n", self.pos)
        if end < 0:
            self.pos = len(self.buffer)
            return False
        self.pos = end + 1
        self.mode = COMMAND
        return True
