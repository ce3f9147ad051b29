"""How long a peer may take (RFC 5321 §4.5.3.2): the clock of one session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from posthouse.proto.client_events import Awaited
from posthouse.proto.smtp_client import ClientSession
from posthouse.transports.smtp_out_line import OutLine

if TYPE_CHECKING:
    from posthouse.transports.smtp_out import OutSettings

CLOSING_SECONDS: Final = 5.0  # for a peer to answer QUIT or to take our last octets


class Patience:
    """Begins anew with every reply and with every octet that the peer takes.

    All times are the loop's.
    """

    __slots__ = ("_client", "_line", "_progress", "_progress_at", "_settings")

    def __init__(
        self, settings: OutSettings, client: ClientSession, line: OutLine, now: float
    ) -> None:
        self._settings = settings
        self._client = client
        self._line = line
        self._progress = (0, 0, 0)
        self._progress_at = now

    def find_overdue(self, now: float) -> str | None:
        """What the peer has taken too long for, in words, or None."""
        transport = self._line.transport
        buffered = 0 if transport is None else transport.get_write_buffer_size()
        progress = (self._client.replies_seen, self._line.written, buffered)
        awaited = self._client.awaiting
        if progress != self._progress or (awaited is None and not buffered):
            self._progress = progress
            self._progress_at = now
        elif now - self._progress_at >= self._limit_seconds(awaited, buffered):
            return awaited.value if awaited is not None and not buffered else "the peer to read"
        return None

    def _limit_seconds(self, awaited: Awaited | None, buffered: int) -> float:
        settings = self._settings
        if buffered:
            return settings.data_block_timeout
        match awaited:
            case Awaited.GREETING:
                return settings.greeting_timeout
            case Awaited.DOT | Awaited.NO_MAIL_DOT:
                return settings.final_dot_timeout
            case Awaited.QUIT:
                return min(settings.command_timeout, CLOSING_SECONDS)
            case _:
                return settings.command_timeout
