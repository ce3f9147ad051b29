"""Trace fields: the Received line we prepend, and the loop guard (RFC 5321 §4.4, §6.3)."""

from __future__ import annotations

import re

from posthouse.mail.envelope import Client

# RFC 5321 §6.3: a threshold of at least 100 Received lines.
MAX_RECEIVED = 100
# How far a header is searched; Postfix header_size_limit is 102400, real ones with 100
# Received lines and ARC sets stay below 256 KiB.
MAX_HEADER_OCTETS = 1 << 18

_MAX_NAMED = 200

_UNSAFE = re.compile(r"[^A-Za-z0-9._:\[\]-]")
# White space before the colon is obsolete (RFC 5322 §4.5); nobody puts 32 of it there.
# A pattern that begins with a literal is searched for several times as fast as one with "^".
_FIELD = re.compile(rb"\n(?:(received)|message-id)[ \t]{0,32}:", re.IGNORECASE)
_ID_VALUE = re.compile(rb"[^:]*:(?:[ \t]|\r\n[ \t])*(\S{1,250})")
_NAME_OCTETS = 64  # a field name both patterns know is shorter
_ID_FIELD_OCTETS = 600

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def format_date(seconds: int) -> str:
    """An instant (seconds since 1970) as RFC 5322 §3.3 date-time in UTC; no locale involved."""
    days, rest = divmod(seconds, 86400)
    hour, rest = divmod(rest, 3600)
    minute, second = divmod(rest, 60)
    # civil-from-days, valid for the proleptic Gregorian calendar from 1970 on
    z = days + 719468
    era, doe = divmod(z, 146097)
    yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
    doy = doe - (365 * yoe + yoe // 4 - yoe // 100)
    mp = (5 * doy + 2) // 153
    day = doy - (153 * mp + 2) // 5 + 1
    month = mp + 3 if mp < 10 else mp - 9
    year = yoe + era * 400 + (1 if month <= 2 else 0)
    return (
        f"{_DAYS[(days + 3) % 7]}, {day:02d} {_MONTHS[month - 1]} {year:04d} "
        f"{hour:02d}:{minute:02d}:{second:02d} +0000 (UTC)"
    )


def format_received(
    client: Client, *, hostname: str, queue_id: str, recipient: str | None, date: str
) -> bytes:
    """The Received field in Postfix's form, which filters parse (peers.md §4b.11).

    recipient: named in a `for` clause only when it is the only one (RFC 5321 §7.2);
    None otherwise; left out too when it is long or would need RFC 6531 in a message that
    does not have it. What the client said is reduced to host-name characters first.
    """
    helo = _UNSAFE.sub("?", client.helo) or "unknown"
    address = f"IPv6:{client.address}" if ":" in client.address else client.address
    tls = ""
    if client.tls:
        version, _, cipher = client.tls.partition(" ")
        tls = f"\t(using {version} with cipher {cipher})\r\n"
    clause = ""
    if recipient is not None and _may_be_named(recipient, client.protocol):
        clause = f"\r\n\tfor <{recipient}>"
    return (
        f"Received: from {helo} ({client.name} [{address}])\r\n{tls}"
        f"\tby {hostname} (Posthouse) with {client.protocol} id {queue_id}{clause}; {date}\r\n"
    ).encode("utf-8", "replace")


def _may_be_named(recipient: str, protocol: str) -> bool:
    """A line of at most 998 octets, no control characters, UTF-8 only as UTF8SMTP (RFC 6532)."""
    if len(recipient) > _MAX_NAMED or not recipient.isprintable():
        return False
    return recipient.isascii() or protocol.startswith("UTF8SMTP")


class HeaderScan:
    """Looks at the header of a message while it streams by: Received lines and Message-ID.

    Only the header counts: a forwarded message in the body may carry hundreds
    of Received lines of its own. Of MAX_HEADER_OCTETS every octet is looked at
    once, however the network cut them; less than a kilobyte is held.
    """

    __slots__ = ("_id_field", "_line", "_size", "done", "message_id", "received")

    def __init__(self) -> None:
        # The last line as far as it came; "." stands for one that has been looked at.
        self._line = b""
        self._id_field: bytes | None = None
        self._size = 0
        self.done = False
        self.received = 0
        self.message_id = ""

    def feed(self, data: bytes) -> None:
        """Take the next octets of the message."""
        if self.done:
            return
        data = data[: MAX_HEADER_OCTETS - self._size]
        self._size += len(data)
        held = len(self._line)
        text = self._line + data if held else data
        if text.startswith(b"\r\n"):
            end, last = 0, True
        else:
            end = text.find(b"\n\r\n") + 1
            last = end > 0
            end = end or len(text)
        last = last or self._size >= MAX_HEADER_OCTETS
        if self._id_field is not None and len(self._id_field) < _ID_FIELD_OCTETS:
            self._id_field += text[held : min(end, held + _ID_FIELD_OCTETS)]
        line = text.rfind(b"\n", 0, end) + 1
        if last or end - line > _NAME_OCTETS:
            self._look(text, end, end)
            self._line = b"."
        else:
            self._look(text, line, end)
            self._line = text[line:end]
        if last:
            self._conclude()

    def finish(self) -> None:
        """The message has ended; a message without an empty line is all header."""
        if not self.done:
            self._look(self._line, len(self._line), len(self._line))
            self._conclude()

    def _look(self, text: bytes, stop: int, end: int) -> None:
        """Search the lines in text[:stop]; what is behind, up to `end`, may belong to a field."""
        if not stop:
            return
        for found in _FIELD.finditer(b"\n" + text[:stop]):
            if found.group(1) is not None:
                self.received += 1
            elif self._id_field is None:
                start = found.start()  # of the LF put in front: of the field, in `text`
                self._id_field = text[start : min(end, start + _ID_FIELD_OCTETS)]

    def _conclude(self) -> None:
        self.done = True
        self._line = b""
        if self._id_field is not None:
            found = _ID_VALUE.match(self._id_field[:_ID_FIELD_OCTETS])
            if found is not None:
                self.message_id = found.group(1).decode("utf-8", "replace")
            self._id_field = None
