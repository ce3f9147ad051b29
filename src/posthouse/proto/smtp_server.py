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

Limits and their precedents: line 2048 (Postfix line_length_limit), errors 10
to 20 (smtpd_hard_error_limit 20), idle commands 100 (smtpd_junk_command_limit).
Raises nothing on any input; that is the fuzz oracle.

Spec: RFC 5321 §4, RFC 2920, RFC 1870, RFC 3030, RFC 3207, RFC 3461, RFC 6531, RFC 2034.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import Final

from posthouse.errors import AddressError
from posthouse.mail.address import Mailbox, NeedsUtf8, parse_path
from posthouse.mail.reply import Reply
from posthouse.proto import server_params
from posthouse.proto import server_replies as replies
from posthouse.proto.dotdata import ChunkDecoder, DotDecoder
from posthouse.proto.server_events import (
    Abort,
    Closing,
    Content,
    ContentEnd,
    DataRequest,
    Etrn,
    Event,
    Mail,
    Pause,
    Rcpt,
    ServerLimits,
    StartTls,
)

# The reply of the owner was a 421 itself.
_SAID: Final = "refused for now"


class _Mode(enum.Enum):
    COMMAND = enum.auto()
    DATA = enum.auto()
    CHUNK = enum.auto()
    SKIP_LINE = enum.auto()
    TLS = enum.auto()
    CLOSED = enum.auto()


_COMMAND = _Mode.COMMAND  # read at every command: an attribute of an Enum costs more
_OK = replies.OK.encode()
_CACHED: Final = {
    id(reply): reply.encode() for reply in (replies.OK, replies.SENDER_OK, replies.RECIPIENT_OK)
}
_MANY_RCPT = replies.MANY_RCPT.encode()
_GO_AHEAD = b"354 End data with <CR><LF>.<CR><LF>\r\n"
_TLS_READY = b"220 2.0.0 Ready to start TLS\r\n"
# Commands answered before the owner gets a word in: a fraction of a millisecond.
_LINES_A_TURN = 100
# Recipients over the limit that are no error yet (precedent: Postfix
# smtpd_recipient_overshoot_limit); a client that goes on for ever is cut.
_RECIPIENT_OVERSHOOT = 1000
# Content octets decoded before the owner gets a word in: under two milliseconds even to normalise.
_CONTENT_SLICE = 1 << 16
_PAUSE = Pause()
_REFUSED_LINE = b"\n"  # no line holds a LF: a mark that costs nothing
_TEXT = re.compile(rb"[\x20-\x7e\x80-\xff]*\Z")
_HELO = re.compile(rb"[\x21-\x7e]{1,255}\Z")
_BDAT = re.compile(rb"(\d{1,20})(?:[ ]+(LAST))?\s*\Z", re.IGNORECASE)
_RCPT_FAST = re.compile(rb"[Rr][Cc][Pp][Tt] [Tt][Oo]:<([^<>\s\"]+)>\Z")
_MAIL_FAST = re.compile(
    rb"[Mm][Aa][Ii][Ll] [Ff][Rr][Oo][Mm]:<([!#-;=?-\[\]-~]*)>(?: ([!-~]+(?: [!-~]+)*))?\Z"
)
_LETTER_R, _LETTER_M = ord("r"), ord("m")
# Known to RFCs but not offered here: 502 says so (RFC 5321 §4.2.4).
_KNOWN = frozenset({b"EXPN", b"AUTH", b"ATRN", b"TURN", b"SEND", b"SOML", b"SAML"})
# A browser or proxy made to speak to us (precedent: Postfix smtpd_forbidden_commands).
_FOREIGN = frozenset({b"GET", b"POST", b"PUT", b"CONNECT", b"OPTIONS"})


class ServerSession:
    """One client's session. See the module docstring.

    Readable at any time: helo, esmtp, tls, smtputf8, sender, recipients (accepted
    count), errors, commands, last_command (for logs).
    """

    __slots__ = (
        "_accepted", "_awaiting", "_buffer", "_chunk_left", "_chunks", "_content_bytes",
        "_decoder", "_ended", "_idle_commands", "_in_mail", "_last_chunk", "_limits", "_mode",
        "_out", "_over_limit", "_pending_close", "_pos", "_refusal", "_refused_rcpt", "_sliced",
        "_starttls", "_verdict", "commands", "errors", "esmtp", "helo", "last_command", "params",
        "sender", "tls",
    )  # fmt: skip

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._buffer = b""
        self._pos = 0
        self._out: list[bytes] = []
        self._mode = _Mode.COMMAND
        self._awaiting: type | None = None
        self._starttls = limits.offer_starttls
        self._pending_close = ""
        self.helo = ""
        self.esmtp = False
        self.tls = ""
        self.errors = 0
        self.commands = 0
        self.last_command = "CONNECT"
        self._idle_commands = 0
        self._decoder: DotDecoder | ChunkDecoder | None = None
        self._chunk_left = 0
        self._last_chunk = False
        self._sliced = False  # content is left of what the last turn decoded
        self._refusal: Reply | None = None  # for a BDAT whose octets are still coming
        self._forget()

    def _forget(self) -> None:
        """Drop the transaction."""
        self._in_mail = False
        self.sender: Mailbox | None = None
        self.params = server_params.MailParams()
        self._accepted = 0
        self._refused_rcpt = 0
        self._over_limit = 0
        self._decoder = None
        self._content_bytes = 0
        self._verdict: Reply | None = None  # what is wrong with the content
        self._ended = False  # ContentEnd is due
        self._chunks = False  # a BDAT sequence is open

    # ------------------------------------------------------------------ the owner's side

    @property
    def smtputf8(self) -> bool:
        """True when the transaction asked for SMTPUTF8."""
        return self.params.smtputf8

    @property
    def in_content(self) -> bool:
        """True while message octets are expected."""
        return self._mode in (_Mode.DATA, _Mode.CHUNK)

    @property
    def in_transaction(self) -> bool:
        """True between an accepted MAIL and its end."""
        return self._in_mail

    @property
    def buffered_bytes(self) -> int:
        """Octets received and not yet looked at."""
        return len(self._buffer) - self._pos

    def greet(self) -> None:
        """Put the 220 greeting into the output."""
        self._out.append(f"220 {self._limits.hostname} ESMTP Posthouse\r\n".encode())

    def receive(self, data: bytes) -> None:
        """Take octets from the client."""
        if self._pos >= len(self._buffer):
            self._buffer = data
        else:
            self._buffer = self._buffer[self._pos :] + data
        self._pos = 0

    def take_output(self) -> bytes:
        """All replies that are due, in one piece; b"" when none are."""
        if not self._out:
            return b""
        out = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        return out

    def next_event(self) -> Event | None:
        """The next thing the owner must know; None: more octets, or an answer, are needed."""
        if (  # nothing to read, nothing to say: the usual end of a turn
            self._pos >= len(self._buffer)
            and self._mode is _COMMAND
            and not (self._ended or self._pending_close)
            and self.errors < self._limits.max_errors
        ):
            return None
        lines = 0
        while self._awaiting is None:
            event: Event | None
            mode = self._mode
            if self._ended:
                self._ended = False
                self._awaiting = ContentEnd
                return ContentEnd(self._verdict)
            if mode is _COMMAND:
                if self._pending_close:
                    return self._close(self._pending_close)
                if self.errors >= self._limits.max_errors:
                    return self._close("too many errors")
                lines += 1
                if lines > _LINES_A_TURN:
                    return _PAUSE
                line = self._take_line()
                if line is None:
                    return None
                event = self._command(line) if line is not _REFUSED_LINE else None
            elif mode is _Mode.SKIP_LINE:
                if not self._skip_line():
                    return None
                continue
            elif mode is _Mode.DATA or mode is _Mode.CHUNK:
                if self._pos >= len(self._buffer) and (mode is _Mode.DATA or self._chunk_left):
                    return None
                if self._sliced:
                    self._sliced = False
                    return _PAUSE
                event = self._read_data() if mode is _Mode.DATA else self._read_chunk()
            else:
                return None
            if event is not None:
                return event
        return None

    def answer(self, reply: Reply) -> None:
        """Answer the event that waits. 2xx/3xx accepts, 4xx/5xx refuses, 421 ends the session."""
        waiting, self._awaiting = self._awaiting, None
        positive = reply.code < 400
        if waiting is DataRequest:  # a refusal: `open_data` accepts
            chunked = self._chunks
            self._forget()
            if chunked:
                self._refusal = reply  # said when the octets of the chunk have been swallowed
            else:
                self._say(reply)
            return
        self._say(reply)
        if reply.code == 421:
            self._pending_close = _SAID
        if waiting is Rcpt:
            if positive:
                self._accepted += 1
            else:
                self._refused_rcpt += 1
        elif waiting is Mail:
            if not positive:
                self._forget()
        elif waiting is ContentEnd:
            if positive:
                self._idle_commands = 0
            self._forget()

    def open_data(self) -> None:
        """Let the message come (the answer to DataRequest)."""
        self._awaiting = None
        normalize = self._limits.bare_newlines == "normalize"
        if self._chunks:
            self._decoder = ChunkDecoder(normalize=normalize)
            self._mode = _Mode.CHUNK
        else:
            self._decoder = DotDecoder(normalize=normalize)
            self._mode = _Mode.DATA
            self._out.append(_GO_AHEAD)

    def tls_started(self, description: str) -> None:
        """The handshake is done: forget all that was said in clear (RFC 3207 §4.2)."""
        self._buffer, self._pos = b"", 0
        self._forget()
        self.helo, self.esmtp = "", False
        self.tls = description
        self._starttls = False
        self._awaiting = None
        self._mode = _Mode.COMMAND

    def close_with(self, reply: Reply, why: str) -> None:
        """Say `reply` (421) and close as soon as no answer is awaited; the owner met a limit."""
        if self._mode is not _Mode.CLOSED and not self._pending_close:
            self._out.append(reply.encode())
            self._mode = _Mode.CLOSED
            self._pending_close = why

    # ------------------------------------------------------------------ lines

    def _take_line(self) -> bytes | None:
        """One line without CR LF; _REFUSED_LINE when it was answered here; None: not all there."""
        buffer, start = self._buffer, self._pos
        end = buffer.find(b"\n", start)
        if end < 0:
            if len(buffer) - start <= self._limits.max_line:
                return None
            self._mode = _Mode.SKIP_LINE
            end = len(buffer)
        self._pos = end + 1
        if end - start > self._limits.max_line:
            self._say(replies.TOO_LONG)
        elif end == start or buffer[end - 1] != 13:
            self._say(replies.BARE_LINE)
        else:
            return buffer[start : end - 1]
        self.commands += 1
        return _REFUSED_LINE

    def _skip_line(self) -> bool:
        end = self._buffer.find(b"\n", self._pos)
        if end < 0:
            self._pos = len(self._buffer)
            return False
        self._pos = end + 1
        self._mode = _Mode.COMMAND
        return True

    def _say(self, reply: Reply) -> None:
        cached = _CACHED.get(id(reply))
        self._out.append(reply.encode() if cached is None else cached)
        if reply.code >= 400:
            self.errors += 1

    def _close(self, why: str) -> Closing:
        if why not in ("quit", _SAID):
            self._out.append(f"421 4.7.0 {self._limits.hostname} Error: {why}\r\n".encode())
        self._mode = _Mode.CLOSED
        return Closing(why)

    # ------------------------------------------------------------------ commands

    def _command(self, line: bytes) -> Event | None:
        self.commands += 1
        letter = line[0] | 0x20 if line else 0
        if letter == _LETTER_R:  # the hot path: RCPT TO:<simple@address>
            fast = _RCPT_FAST.match(line)
            if fast is not None:
                self.last_command = "RCPT"
                return self._rcpt_path(fast.group(1), b"")
        elif letter == _LETTER_M:
            fast = _MAIL_FAST.match(line)
            if fast is not None:
                self.last_command = "MAIL"
                return self._mail_path(fast.group(1), fast.group(2) or b"")
        if _TEXT.match(line) is None:
            self._say(replies.UNKNOWN)
            return None
        verb, _, argument = line.partition(b" ")
        verb = verb.upper()
        handler = _HANDLERS.get(verb)
        if handler is None:
            return self._unknown(verb)
        self.last_command = verb.decode("ascii")
        return handler(self, argument.strip(b" \t"))

    def _unknown(self, verb: bytes) -> Event | None:
        if verb in _FOREIGN:
            return self._close("not an SMTP client")
        self._say(replies.NOT_IMPLEMENTED if verb in _KNOWN else replies.UNKNOWN)
        return None

    def _hello(self, argument: bytes, esmtp: bool) -> Event | None:
        if _HELO.match(argument) is None:
            self._say(replies.HELO_SYNTAX)
            return None
        self._count_idle()
        self.helo = argument.decode("ascii")
        self.esmtp = esmtp
        event = Abort() if self._in_mail else None
        self._forget()
        if not esmtp:
            self._out.append(f"250 {self._limits.hostname}\r\n".encode())
            return event
        words = [
            self._limits.hostname, "PIPELINING", f"SIZE {self._limits.max_message_bytes}",
            "ENHANCEDSTATUSCODES", "8BITMIME", "DSN", "SMTPUTF8", "CHUNKING",
        ]  # fmt: skip
        if self._starttls:
            words.insert(3, "STARTTLS")
        if self._limits.offer_etrn:
            words.append("ETRN")
        text = "".join(f"250-{word}\r\n" for word in words[:-1]) + f"250 {words[-1]}\r\n"
        self._out.append(text.encode())
        return event

    def _on_ehlo(self, argument: bytes) -> Event | None:
        return self._hello(argument, esmtp=True)

    def _on_helo(self, argument: bytes) -> Event | None:
        return self._hello(argument, esmtp=False)

    def _on_mail(self, argument: bytes) -> Event | None:
        split = _split_path(argument, b"FROM:")
        if split is not None:
            return self._mail_path(*split)
        if not self.helo:
            self._say(replies.HELO_FIRST)
        else:
            self._say(replies.NESTED_MAIL if self._in_mail else replies.MAIL_SYNTAX)
        return None

    def _mail_path(self, path: bytes, rest: bytes) -> Event | None:
        if not self.helo:
            self._say(replies.HELO_FIRST)
            return None
        if self._in_mail:
            self._say(replies.NESTED_MAIL)
            return None
        if rest and not self.esmtp:
            self._say(server_params.UNKNOWN_PARAMETER)
            return None
        params = server_params.parse_mail_params(rest, max_bytes=self._limits.max_message_bytes)
        if isinstance(params, Reply):
            self._say(params)
            return None
        try:
            sender = parse_path(path, utf8=params.smtputf8)
        except AddressError as error:
            self._say(replies.SENDER_UTF8 if isinstance(error, NeedsUtf8) else replies.BAD_SENDER)
            return None
        self.sender, self.params, self._in_mail = sender, params, True
        self._awaiting = Mail
        return Mail(sender, params)

    def _on_rcpt(self, argument: bytes) -> Event | None:
        split = _split_path(argument, b"TO:")
        if split is None:
            self._say(replies.RCPT_SYNTAX if self._in_mail else replies.NEED_MAIL)
            return None
        return self._rcpt_path(*split)

    def _rcpt_path(self, path: bytes, rest: bytes) -> Event | None:
        if not self._in_mail:
            self._say(replies.NEED_MAIL if self.helo else replies.HELO_FIRST)
            return None
        if self._chunks:
            self._say(replies.NOT_NOW)
            return None
        if self._accepted >= self._limits.max_recipients:
            self._refuse_one_more()
            return None
        params = server_params.parse_rcpt_params(rest, smtputf8=self.params.smtputf8)
        if rest and not self.esmtp:
            params = server_params.UNKNOWN_PARAMETER
        if isinstance(params, Reply):
            self._say(params)
            return None
        try:
            mailbox = parse_path(path, utf8=self.params.smtputf8, allow_bare="postmaster")
        except AddressError as error:
            self._refused_rcpt += 1
            self._say(
                replies.SENDER_UTF8 if isinstance(error, NeedsUtf8) else replies.BAD_RECIPIENT
            )
            return None
        if mailbox is None:
            self._refused_rcpt += 1
            self._say(replies.BAD_RECIPIENT)
            return None
        self._awaiting = Rcpt
        return Rcpt(mailbox, params)

    def _refuse_one_more(self) -> None:
        """Over the limit, which is no error of the client's (RFC 5321 §4.5.3.1.10) for long."""
        self._out.append(_MANY_RCPT)
        self._over_limit += 1
        if self._over_limit > _RECIPIENT_OVERSHOOT:
            self.errors += 1

    def _on_data(self, argument: bytes) -> Event | None:
        if argument:
            self._say(replies.NO_ARGUMENT)
        elif not self._in_mail:
            self._say(replies.NEED_MAIL if self.helo else replies.HELO_FIRST)
        elif self._chunks:
            self._say(replies.MIXED)
        elif not self._accepted:
            self._say(replies.NO_VALID if self._refused_rcpt else replies.NEED_RCPT)
        else:
            self._awaiting = DataRequest
            return DataRequest(chunked=False)
        return None

    def _on_bdat(self, argument: bytes) -> Event | None:
        found = _BDAT.match(argument)
        if found is None:
            # Without a size nobody can tell commands from content: stop here.
            self._say(replies.BDAT_SYNTAX)
            self._pending_close = "BDAT without a readable size"
            return None
        self._chunk_left = int(found.group(1))
        self._last_chunk = found.group(2) is not None
        if self._chunk_left > 2 * self._limits.max_message_bytes:
            self._say(server_params.TOO_BIG)  # not worth swallowing
            self._pending_close = "chunk too large"
            return None
        self._mode = _Mode.CHUNK
        if not self._chunk_left and not self._last_chunk:
            self._count_idle()
        if self._chunks:
            return None
        # The octets come in any case and are swallowed before a refusal (RFC 3030 §2).
        if not self._in_mail:
            self._refusal = replies.NEED_MAIL if self.helo else replies.HELO_FIRST
        elif not self._accepted:
            self._refusal = replies.NO_VALID if self._refused_rcpt else replies.NEED_RCPT
        else:
            self._chunks = True
            self._awaiting = DataRequest
            return DataRequest(chunked=True)
        return None

    def _on_rset(self, argument: bytes) -> Event | None:
        if argument:
            self._say(replies.NO_ARGUMENT)
            return None
        self._count_idle()
        event = Abort() if self._in_mail else None
        self._forget()
        self._out.append(_OK)
        return event

    def _on_noop(self, _argument: bytes) -> Event | None:
        self._count_idle()
        self._out.append(_OK)
        return None

    def _on_vrfy(self, argument: bytes) -> Event | None:
        self._count_idle()
        self._say(replies.VRFY if argument else replies.VRFY_SYNTAX)
        return None

    def _on_help(self, _argument: bytes) -> Event | None:
        self._count_idle()
        self._say(replies.HELP)
        return None

    def _on_etrn(self, argument: bytes) -> Event | None:
        if not self._limits.offer_etrn:
            self._say(replies.NOT_IMPLEMENTED)
        elif not self.helo:
            self._say(replies.HELO_FIRST)
        elif self._in_mail:
            self._say(replies.NOT_IN_TRANSACTION)
        elif not argument or not argument.isascii() or b" " in argument:
            self._say(replies.ETRN_SYNTAX)
        else:
            self._count_idle()
            self._awaiting = Etrn
            return Etrn(argument.decode("ascii"))
        return None

    def _on_quit(self, argument: bytes) -> Event | None:
        if argument:
            self._say(replies.NO_ARGUMENT)
            return None
        self._out.append(b"221 2.0.0 Bye\r\n")
        self._pending_close = "quit"
        return Abort() if self._in_mail else None

    def _on_starttls(self, argument: bytes) -> Event | None:
        if argument:
            self._say(replies.NO_ARGUMENT)
        elif self.tls:
            self._say(replies.TLS_TWICE)
        elif not self._starttls:
            self._say(replies.NOT_IMPLEMENTED)
        elif self._in_mail:
            self._say(replies.NOT_IN_TRANSACTION)
        else:
            self._out.append(_TLS_READY)
            self._buffer, self._pos = b"", 0  # what came in clear behind it is dropped
            self._mode = _Mode.TLS
            return StartTls()
        return None

    def _count_idle(self) -> None:
        self._idle_commands += 1
        if self._idle_commands > self._limits.max_idle_commands:
            self.errors += 1

    # ------------------------------------------------------------------ content

    def _take_slice(self, size: int) -> bytes:
        """At most `size` octets of what was received; `_sliced` tells that there are more."""
        buffer, start = self._buffer, self._pos
        self._sliced = len(buffer) - start > size
        if self._sliced:
            self._pos = start + size
            return buffer[start : start + size]
        self._buffer, self._pos = b"", 0
        return buffer[start:] if start else buffer

    def _read_data(self) -> Event | None:
        data = self._take_slice(_CONTENT_SLICE)
        decoder = self._decoder
        assert isinstance(decoder, DotDecoder)
        content, rest = decoder.feed(data)
        if rest is not None:
            if self._sliced:
                self._sliced = False
                self._pos -= len(rest)
            else:
                self._buffer, self._pos = rest, 0
            self._mode = _Mode.COMMAND
            self._ended = True
        elif self._content_bytes > 2 * self._limits.max_message_bytes + (1 << 20):
            self._say(server_params.TOO_BIG)
            self._forget()
            self._mode = _Mode.COMMAND
            self._pending_close = "message without end"
            return Abort()
        return self._pass_content(content, decoder.bare)

    def _read_chunk(self) -> Event | None:
        data = self._take_slice(min(self._chunk_left, _CONTENT_SLICE))
        self._chunk_left -= len(data)
        done = not self._chunk_left
        if done:
            self._sliced = False
        event: Event | None = None
        decoder = self._decoder
        if isinstance(decoder, ChunkDecoder):
            content = decoder.feed(data)
            if done and self._last_chunk:
                content += decoder.finish()
            event = self._pass_content(content, decoder.bare)
        if done:
            self._mode = _Mode.COMMAND
            return self._end_chunk() or event
        return event

    def _end_chunk(self) -> Event | None:
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            self._say(refusal)
        elif self._last_chunk:
            self._ended = True
        elif self._verdict is not None:  # RFC 3030 §2: a 5xx to a chunk ends the transaction
            self._say(self._verdict)
            self._forget()
            return Abort()
        else:
            self._out.append(b"250 2.0.0 Chunk received\r\n")
        return None

    def _pass_content(self, content: bytes, bare: bool) -> Event | None:
        self._content_bytes += len(content)
        if self._verdict is not None or not content:
            return None
        if self._content_bytes > self._limits.max_message_bytes:
            self._verdict = server_params.TOO_BIG
            return None
        if bare and self._limits.bare_newlines != "normalize":
            self._verdict = replies.BARE_CONTENT
            return None
        return Content(content)


def _split_path(argument: bytes, keyword: bytes) -> tuple[bytes, bytes] | None:
    """Split 'FROM:<path> params' into (path, params); quotes may hide ">" (RFC 5321 §4.1.2)."""
    if argument[: len(keyword)].upper() != keyword:
        return None
    text = argument[len(keyword) :].lstrip(b" ")
    if not text.startswith(b"<"):
        return None
    quoted = False
    index = 1
    while index < len(text):
        octet = text[index]
        if octet == 0x5C and quoted:  # backslash
            index += 1
        elif octet == 0x22:
            quoted = not quoted
        elif octet == 0x3E and not quoted:
            rest = text[index + 1 :]
            if rest and not rest.startswith(b" "):
                return None
            return text[1:index], rest.strip(b" ")
        index += 1
    return None


_HANDLERS: Final[dict[bytes, Callable[[ServerSession, bytes], Event | None]]] = {
    b"EHLO": ServerSession._on_ehlo,
    b"HELO": ServerSession._on_helo,
    b"MAIL": ServerSession._on_mail,
    b"RCPT": ServerSession._on_rcpt,
    b"DATA": ServerSession._on_data,
    b"BDAT": ServerSession._on_bdat,
    b"RSET": ServerSession._on_rset,
    b"NOOP": ServerSession._on_noop,
    b"VRFY": ServerSession._on_vrfy,
    b"HELP": ServerSession._on_help,
    b"ETRN": ServerSession._on_etrn,
    b"QUIT": ServerSession._on_quit,
    b"STARTTLS": ServerSession._on_starttls,
}
