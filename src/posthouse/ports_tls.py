"""TLS as doors and sessions use it: octets in, octets out; whoever owns the socket moves them."""

from __future__ import annotations

from typing import Protocol


class TlsChannel(Protocol):
    """One TLS connection as a sans-IO filter (ssl.MemoryBIO inside): the owner moves the octets.

    Chosen over loop.start_tls, which keeps 256 KiB a connection in Python 3.11
    and loses octets that were read before the handshake.
    """

    established: bool

    def start(self) -> bytes:
        """Begin the handshake; returns octets for the peer (b"" on the server side)."""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take octets from the peer; returns (plain text, octets for the peer).

        b"" for both while the handshake is under way and nothing is due.
        Raises TlsFailed when the handshake or a record fails; its `alert` holds
        octets that should still be sent. After the peer's close_notify: `eof` is True.
        """

    def wrap(self, plain: bytes) -> bytes:
        """Encrypt; only once `established`."""

    def close(self) -> bytes:
        """Our close_notify, b"" if none can be made. Never raises."""

    eof: bool

    def describe(self) -> str:
        """E.g. "TLSv1.3 TLS_AES_256_GCM_SHA384"; "" before the handshake is done."""


class TlsServer(Protocol):
    """Makes channels from the certificate in force; reload happens inside (SIGHUP)."""

    def open_channel(self) -> TlsChannel:
        """A server-side channel, handshake not begun."""
