"""Trace fields: the Received line we prepend, and the loop guard (RFC 5321 §4.4, §6.3)."""

from __future__ import annotations

import re

from posthouse.mail.envelope import Client

# RFC 5321 §6.3: a threshold of at least 100 Received lines.
MAX_RECEIVED = 100
# How far a header is searched; Postfix header_size_limit is 102400, real ones with 100
# Received lines and ARC sets stay below 256 KiB.
MAX_HEADER_OCTETS = 1 << 18

_UNSAFE = re.compile(r"[^A-Za-z0-9._:\[\]-]")
_RECEIVED = re.compile(rb"^received[ \t]*:", re.IGNORECASE | re.MULTILINE)
_MESSAGE_ID = re.compile(rb"^message-id[ \t]*:\s*(\S{1,250})", re.IGNORECASE | re.MULTILINE)

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
    None otherwise. What the client said is reduced to host-name characters first.
    """
    helo = _UNSAFE.sub("?", client.helo) or "unknown"
    address = f"IPv6:{client.address}" if ":" in client.address else client.address
    tls = ""
    if client.tls:
        version, _, cipher = client.tls.partition(" ")
        tls = f"\t(using {version} with cipher {cipher})\r\n"
    clause = f"\r\n\tfor <{recipient}>" if recipient is not None else ""
    return (
        f"Received: from {helo} ({client.name} [{address}])\r\n{tls}"
        f"\tby {hostname} (Posthouse) with {client.protocol} id {queue_id}{clause}; {date}\r\n"
    ).encode("utf-8", "replace")


class HeaderScan:
    """Looks at the header of a message while it streams by: Received lines and Message-ID.

    Only the header counts: a forwarded message in the body may carry hundreds
    of Received lines of its own. Octets are looked at once, when the header has
    ended or MAX_HEADER_OCTETS are there; they are not changed.
    """

    __slots__ = ("_held", "_size", "done", "message_id", "received")

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._size = 0
        self.done = False
        self.received = 0
        self.message_id = ""

    def feed(self, data: bytes) -> None:
        """Take the next octets of the message (never a CR LF pair split over two calls)."""
        if self.done:
            return
        end = data.find(b"\r\n\r\n")
        if end >= 0 and not self._held:
            self._conclude(data[: end + 2])
            return
        self._held.append(data)
        self._size += len(data)
        joined = b"".join(self._held)
        self._held = [joined]
        end = joined.find(b"\r\n\r\n")
        if end >= 0 or joined.startswith(b"\r\n") or self._size > MAX_HEADER_OCTETS:
            self._conclude(joined[: end + 2] if end >= 0 else joined[:MAX_HEADER_OCTETS])

    def finish(self) -> None:
        """The message has ended; a message without an empty line is all header."""
        if not self.done:
            self._conclude(b"".join(self._held))

    def _conclude(self, header: bytes) -> None:
        self.done = True
        self._held = []
        if header.startswith(b"\r\n"):  # an empty header: everything is body
            return
        self.received = len(_RECEIVED.findall(header))
        found = _MESSAGE_ID.search(header)
        if found is not None:
            self.message_id = found.group(1).decode("utf-8", "replace")
