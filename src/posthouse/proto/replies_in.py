"""Read what an SMTP server says: octets in, replies out (RFC 5321 §4.2).

The parser never raises and never grows: a line or a reply beyond the bounds,
or octets that are no reply, make it `broken` for good, and what was complete
before is still returned. That is the same for every way to cut the stream.

A line may end with a bare LF: servers that do so exist, Postfix and Exim read
them too, and a reply carries nothing of a message that LF could smuggle.
"""

from __future__ import annotations

from typing import Final

import msgspec

MAX_LINE_BYTES: Final = 4096
"""Without line end. RFC 5321 §4.5.3.1.5 allows 512, Postfix reads 2048 (line_length_limit)."""
MAX_REPLY_LINES: Final = 256
"""Lines of one reply; the longest EHLO answers in the field have about 30."""
MAX_TEXT: Final = 512
"""Characters of `text`: it ends up in logs and queue rows."""

_CODES: Final = {b"%d" % code: code for code in range(200, 600)}


class PeerReply(msgspec.Struct, frozen=True, gc=False):
    """One complete reply. code 200..599; first: text of its first line; more: of the others."""

    code: int
    first: bytes
    more: tuple[bytes, ...] = ()

    @property
    def text(self) -> str:
        """All lines as one printable line, an enhanced code that is repeated said once."""
        if not self.more:
            return _printable(self.first)
        words = [self.first]
        enhanced = self.first.split(b" ", 1)[0]
        for line in self.more:
            head, _, rest = line.partition(b" ")
            words.append(rest if head == enhanced and b"." in head else line)
        return _printable(b" ".join(words))

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class ReplyParser:
    """Turns a server's octets into replies.

    broken: why the stream cannot be read any further, "" while it can.
    """

    __slots__ = ("_code", "_lines", "_partial", "broken")

    def __init__(self) -> None:
        self._partial = b""
        self._lines: list[bytes] = []  # of an unfinished multi-line reply
        self._code = 0
        self.broken = ""

    @property
    def mid_reply(self) -> bool:
        """True when octets are held that belong to no complete reply."""
        return bool(self._partial or self._lines)

    def feed(self, data: bytes) -> list[PeerReply]:
        """Take octets; returns the replies they complete. See `broken` afterwards."""
        if self.broken:
            return []
        if self._partial:
            data = self._partial + data
        lines = data.split(b"\n")
        tail = lines.pop()
        replies: list[PeerReply] = []
        for line in lines:
            if line[-1:] == b"\r":
                line = line[:-1]
            if len(line) > MAX_LINE_BYTES:
                self._break("a reply line too long")
                return replies
            code = _CODES.get(line[:3])
            if code is None:
                self._break("a line that is no reply")
                return replies
            separator = line[3:4]
            if self._lines or separator == b"-":
                if not self._continue(code, separator, line, replies):
                    return replies
            elif separator == b" " or not separator:  # "250" alone: RFC 5321 §4.2, last paragraph
                replies.append(PeerReply(code, line[4:]))
            else:
                self._break("a line that is no reply")
                return replies
        if len(tail) > MAX_LINE_BYTES and (len(tail) > MAX_LINE_BYTES + 1 or tail[-1:] != b"\r"):
            self._break("a reply line too long")
            return replies
        self._partial = tail
        return replies

    def _continue(self, code: int, separator: bytes, line: bytes, replies: list[PeerReply]) -> bool:
        """Take one line of a multi-line reply; False when that broke the stream."""
        if not self._lines:
            self._code = code
        elif code != self._code:
            self._break("a reply whose lines have different codes")
            return False
        if separator not in (b"-", b" ", b""):
            self._break("a line that is no reply")
            return False
        self._lines.append(line[4:])
        if separator != b"-":
            first, *more = self._lines
            self._lines = []
            replies.append(PeerReply(code, first, tuple(more)))
        elif len(self._lines) >= MAX_REPLY_LINES:
            self._break("a reply of too many lines")
            return False
        return True

    def _break(self, why: str) -> None:
        self.broken = why
        self._partial = b""
        self._lines = []


def _printable(octets: bytes) -> str:
    text = octets[: MAX_TEXT * 4].decode("utf-8", "replace")[:MAX_TEXT]
    if text.isprintable():
        return text.strip()
    return "".join(c if c.isprintable() else "?" for c in text).strip()
