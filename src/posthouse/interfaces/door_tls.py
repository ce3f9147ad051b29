"""TLS on a connection of the SMTP door, from STARTTLS on.

The 220 has gone in clear before this begins; what the client said until then is
forgotten by the automaton when the handshake is done.

Spec: RFC 3207.
"""

from __future__ import annotations

import asyncio

from posthouse.errors import TlsFailed
from posthouse.interfaces.door_caller import Caller
from posthouse.ports_tls import TlsServer
from posthouse.proto.smtp_server import ServerSession


class DoorTls:
    """The channel of one connection. eof: the client said that it sends no more."""

    __slots__ = ("_caller", "_channel", "_session", "_transport", "eof", "established")

    def __init__(
        self,
        server: TlsServer,
        transport: asyncio.Transport,
        session: ServerSession,
        caller: Caller,
    ) -> None:
        self._channel = server.open_channel()
        self._transport = transport
        self._session = session
        self._caller = caller
        self.eof = False
        self.established = False
        self._channel.start()

    def receive(self, data: bytes) -> bytes:
        """Take octets from the socket; what was said in them.

        Raises TlsFailed, after the client and the log have been told.
        """
        channel, transport = self._channel, self._transport
        try:
            plain, reply = channel.feed(data)
        except TlsFailed as error:
            if error.alert:
                transport.write(error.alert)
            self._caller.log_cut(f"TLS failed ({error})", "STARTTLS")
            raise
        if reply:
            transport.write(reply)
        if not self.established and channel.established:
            self.established = True
            self._session.tls_started(channel.describe())
        self.eof = channel.eof
        return plain

    def send(self, out: bytes) -> None:
        """Say something. Raises TlsFailed, after the log has been told."""
        if not self.established:  # inside the handshake nothing can be said
            return
        try:
            self._transport.write(self._channel.wrap(out))
        except TlsFailed as error:
            self._caller.log_cut(f"TLS failed ({error})")
            raise

    def close(self) -> None:
        """Say goodbye, if anything was ever said."""
        if self.established:
            goodbye = self._channel.close()
            if goodbye:
                self._transport.write(goodbye)
