"""The connection under a session: octets both ways, TLS, and a peer that is slow to read.

What the client automaton wants said leaves in one write. A write never waits:
who has much to say asks `paused` and waits with `wait_writable`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from posthouse.errors import TlsFailed
from posthouse.proto.smtp_client import ClientSession
from posthouse.transports.tls import ClientTls, MemoryTls


class OutLine:
    """Moves the octets of `client`; lose: called with the reason when TLS comes to nothing.

    gone: the connection is lost, nothing leaves any more. written: octets so far.
    paused: the peer does not read as fast as we write.
    """

    __slots__ = (
        "_client",
        "_host",
        "_lose",
        "_tls_maker",
        "_writable",
        "gone",
        "paused",
        "tls",
        "transport",
        "written",
    )

    def __init__(
        self, client: ClientSession, tls_maker: ClientTls, host: str, lose: Callable[[str], None]
    ) -> None:
        self.transport: asyncio.Transport | None = None
        self.tls: MemoryTls | None = None
        self.gone = False
        self.paused = False
        self.written = 0
        self._client = client
        self._tls_maker = tls_maker
        self._host = host
        self._lose = lose
        self._writable: asyncio.Future[None] | None = None

    @property
    def shaking(self) -> bool:
        """True while a handshake is under way, or has failed."""
        return self.tls is not None and not self.tls.established

    # ------------------------------------------------------------------ octets

    def flush(self) -> None:
        """Write what is due."""
        output = self._client.take_output()
        if not output:
            return
        data = output[0] if len(output) == 1 else b"".join(output)
        tls = self.tls
        if tls is not None:
            try:
                data = tls.wrap(data)
            except TlsFailed as failure:
                self._fail_tls(failure)
                return
        self._write(data)

    def _write(self, data: bytes) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():  # uvloop raises where asyncio warns
            return
        self.written += len(data)
        transport.write(data)

    # ------------------------------------------------------------------ TLS

    def shake_hands(self) -> None:
        """Begin TLS."""
        try:
            self.tls = self._tls_maker.open_channel(self._host)
            self._write(self.tls.start())
        except TlsFailed as failure:
            self._fail_tls(failure)

    def decrypt(self, data: bytes) -> bytes:
        """Take octets from the peer, under TLS; returns what is in them."""
        tls = self.tls
        assert tls is not None
        was_established = tls.established
        try:
            plain, due = tls.feed(data)
        except TlsFailed as failure:
            self._fail_tls(failure)
            return b""
        if due:
            self._write(due)
        if tls.established and not was_established:
            self._client.tls_established()
            self.flush()
        return plain

    def _fail_tls(self, failure: TlsFailed) -> None:
        if failure.alert:
            self._write(failure.alert)  # goes out at once where the socket takes it
        self._lose(f"TLS failed: {failure.detail}")

    # ------------------------------------------------------------------ a peer that does not read

    def resume(self) -> bool:
        """The peer reads again. False: nobody has waited for it."""
        self.paused = False
        return self.wake_writer()

    def wake_writer(self) -> bool:
        """Let who waits go on. False: nobody does."""
        writable = self._writable
        if writable is None:
            return False
        if not writable.done():
            writable.set_result(None)
        return True

    async def wait_writable(self) -> None:
        """Wait until the peer reads again or is gone."""
        if self.gone:
            return
        self._writable = asyncio.get_running_loop().create_future()
        try:
            await self._writable
        finally:
            self._writable = None

    # ------------------------------------------------------------------ ends

    def finish(self) -> None:
        """Say what is left to say, and close."""
        self.flush()
        if self.tls is not None and self.tls.established:
            self._write(self.tls.close())
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()
