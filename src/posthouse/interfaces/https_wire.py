"""One HTTPS connection: TCP and TLS below, uvicorn's HTTP/1.1 automaton above, bounds around both.

TLS goes through `ports_tls.TlsServer`, as at the SMTP door: a certificate is
swapped whole (SIGHUP), a handshake that never ends is counted and cut, and no
loop keeps buffers of its own for it. uvicorn sees a transport like any other.

Bounded, as its own server does not: connections in all and per client network,
the time of a handshake, the time a whole request may take to arrive, the time
a client may refuse to read an answer. Who exceeds one is cut without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import email.utils
import logging
import time
from functools import partial
from typing import Any, Final, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from posthouse import observe
from posthouse.domain.client_network import client_network, plain_address
from posthouse.errors import TlsFailed
from posthouse.interfaces.https_problems import encode_problem
from posthouse.ports_https import ProblemAnswer
from posthouse.ports_tls import TlsChannel, TlsServer

# Request line and headers together: nginx takes 8 KiB a line, and ours need far less.
_MAX_HEAD_BYTES: Final = 32 * 1024
_SLICE_BYTES: Final = 16 * 1024
# What running answers get at the end.
_LAST_SECONDS: Final = 3.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HttpsLimits:
    """Bounds of one door. Times in seconds.

    handshake: TLS in all. request: from the moment we wait for one until its last octet is
    here; 1 MiB in 30 s needs 35 KB/s. unread: how long a client may leave an answer
    unread. idle: between two requests.
    """

    max_connections: int = 256
    max_connections_per_client: int = 32
    handshake: float = 10.0
    request: float = 30.0
    unread: float = 30.0
    idle: int = 5
    watch: float = 1.0  # how often the clock is looked at


class Switchboard:
    """Knows every connection of the door: counts them in, watches the clock, ends them."""

    def __init__(self, app: Any, *, tls: TlsServer | None, limits: HttpsLimits) -> None:
        """app: an ASGI application. tls None: clear text (loopback only; the node sees to it)."""
        self.tls = tls
        self.limits = limits
        self.config = uvicorn.Config(
            app,
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=limits.idle,
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
        )
        self.config.load()
        _hear_uvicorn()
        self.state = ServerState()
        self._connections: set[Connection] = set()
        self._networks: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self, sockets: list[Any]) -> None:
        """Serve on listening sockets."""
        loop = asyncio.get_running_loop()
        self._tick()
        for listener in sockets:
            self._servers.append(await loop.create_server(partial(Connection, self), sock=listener))
        self._sweeper = loop.create_task(self._sweep())

    def reload(self, app: Any, *, tls: TlsServer | None) -> None:
        """Serve something else, under another certificate, to connections to come."""
        self.config.loaded_app = app
        self.tls = tls

    async def close(self, grace_seconds: float) -> None:
        """Accept no more; let running answers finish within the grace; cut the rest."""
        for server in self._servers:
            server.close()
        for connection in tuple(self._connections):
            connection.wind_up()
        for seconds in (grace_seconds, _LAST_SECONDS):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while self._connections or self.state.tasks:
                        await asyncio.sleep(0.02)
            for connection in tuple(self._connections):
                connection.abort()
            for task in tuple(self.state.tasks):
                task.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def admit(self, connection: Connection, network: str) -> bool:
        """Count a connection in, or say that it is one too many."""
        count = self._networks.get(network, 0)
        if (
            len(self._connections) >= self.limits.max_connections
            or count >= self.limits.max_connections_per_client
        ):
            return False
        self._networks[network] = count + 1
        self._connections.add(connection)
        return True

    def forget(self, connection: Connection, network: str) -> None:
        """Count a connection out; harmless when it was never in."""
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        count = self._networks.get(network, 0) - 1
        if count > 0:
            self._networks[network] = count
        else:
            self._networks.pop(network, None)

    @property
    def count(self) -> int:
        """Connections now."""
        return len(self._connections)

    def _tick(self) -> None:
        date = email.utils.formatdate(time.time(), usegmt=True).encode()
        self.state.default_headers = [(b"date", date)]

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.limits.watch)
            self._tick()
            now = loop.time()
            for connection in tuple(self._connections):
                connection.check_time(now)


class HttpProtocol(H11Protocol):
    """uvicorn's, with our words for what is no HTTP, and an eye on whose turn it is."""

    @property
    def waits_for_client(self) -> bool:
        """True while octets of a request are missing (or the next one has not begun)."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body

    def data_received(self, data: bytes) -> None:
        """Take octets in slices: h11 measures a head only while it is incomplete."""
        for start in range(0, len(data), _SLICE_BYTES):
            if self.transport.is_closing():
                return
            super().data_received(data[start : start + _SLICE_BYTES])

    def send_400_response(self, msg: str) -> None:
        """Answer in problem+json, if an answer is still possible, and close."""
        body = encode_problem(ProblemAnswer(status=400, title="Not HTTP", detail=msg))
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            with contextlib.suppress(h11.LocalProtocolError):
                response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
                self.transport.write(self.conn.send(response) or b"")
                self.transport.write(self.conn.send(h11.Data(data=body)) or b"")
        self.transport.close()


class Connection(asyncio.Protocol):
    """One client: the TCP side."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        self._tcp: asyncio.Transport | None = None
        self._channel: TlsChannel | None = None
        self._http: HttpProtocol | None = None
        self._network = ""
        self._since = 0.0  # when we began to wait for this client
        self._unread_since: float | None = None
        self._closing = False

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count in; begin with TLS, or at once with HTTP."""
        tcp = self._tcp = cast(asyncio.Transport, transport)
        peer = tcp.get_extra_info("peername")
        self._network = client_network(plain_address(peer[0])) if peer else ""
        if not peer or not self._switchboard.admit(self, self._network):
            self._closing = True
            tcp.abort()
            return
        self._since = asyncio.get_running_loop().time()
        if self._switchboard.tls is not None:
            self._channel = self._switchboard.tls.open_channel()
        else:
            self._begin_http()

    def data_received(self, data: bytes) -> None:
        """Take octets from the socket."""
        if self._closing:
            return
        channel = self._channel
        if channel is not None:
            try:
                data, due = channel.feed(data)
            except TlsFailed as error:
                self._write_tcp(error.alert)
                self.close()
                return
            self._write_tcp(due)
            if channel.established and self._http is None:
                self._since = asyncio.get_running_loop().time()
                self._begin_http()
        if data and self._http is not None:
            self._http.data_received(data)
        if channel is not None and channel.eof and not self.eof_received():
            self.close()

    def eof_received(self) -> bool:
        """A client that sends no more still gets the answer under way."""
        return self._http is not None and not self._http.waits_for_client

    def connection_lost(self, exc: Exception | None) -> None:
        """Count out."""
        self._closing = True
        if self._http is not None:
            self._http.connection_lost(exc)
        self._switchboard.forget(self, self._network)

    def pause_writing(self) -> None:
        """The client does not read."""
        self._unread_since = asyncio.get_running_loop().time()
        if self._http is not None:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        self._unread_since = None
        if self._http is not None:
            self._http.resume_writing()

    # ------------------------------------------------------------------ what HTTP asks for

    def write(self, data: bytes) -> None:
        """Send octets of HTTP; nothing once closing."""
        if not self._closing and data:
            self._write_tcp(self._channel.wrap(bytes(data)) if self._channel else data)

    def close(self) -> None:
        """Close once what was written is gone."""
        if self._closing:
            return
        if self._channel is not None and self._channel.established:
            self._write_tcp(self._channel.close())
        self._closing = True
        self._since = asyncio.get_running_loop().time()
        if self._tcp is not None:
            self._tcp.close()

    def abort(self) -> None:
        """Cut."""
        self._closing = True
        if self._tcp is not None:
            self._tcp.abort()

    @property
    def closing(self) -> bool:
        """True once nothing more is taken."""
        return self._closing

    @property
    def tcp(self) -> asyncio.Transport:
        """The transport below."""
        assert self._tcp is not None
        return self._tcp

    @property
    def encrypted(self) -> bool:
        """Whether TLS is between us."""
        return self._channel is not None

    # ------------------------------------------------------------------ time and end

    def check_time(self, now: float) -> None:
        """Cut a client that is too slow in the part that is its own."""
        limits = self._switchboard.limits
        if self._closing:
            if now - self._since > limits.unread:
                self.abort()
            return
        if self._unread_since is not None and now - self._unread_since > limits.unread:
            self.abort()
            return
        if self._http is None:
            if now - self._since > limits.handshake:
                self.abort()
        elif not self._http.waits_for_client:
            self._since = now
        elif now - self._since > limits.request:
            self.abort()

    def wind_up(self) -> None:
        """No further request; an answer under way may finish."""
        if self._http is None:
            self.abort()
        elif self._http.waits_for_client:
            self.close()
        else:
            self._http.shutdown()

    def _begin_http(self) -> None:
        board = self._switchboard
        self._http = HttpProtocol(config=board.config, server_state=board.state, app_state={})
        self._http.connection_made(_PlainTransport(self))

    def _write_tcp(self, data: bytes) -> None:
        if data and self._tcp is not None and not self._tcp.is_closing():
            self._tcp.write(data)


class _PlainTransport(asyncio.Transport):
    """What uvicorn holds for a transport: plain octets in and out of a `Connection`."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sslcontext":  # uvicorn takes the scheme from it
            return self._connection.encrypted or default
        return self._connection.tcp.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._connection.write(bytes(data))

    def close(self) -> None:
        self._connection.close()

    def abort(self) -> None:
        self._connection.abort()

    def is_closing(self) -> bool:
        return self._connection.closing

    def pause_reading(self) -> None:
        if not self._connection.closing:
            self._connection.tcp.pause_reading()

    def resume_reading(self) -> None:
        if not self._connection.closing:
            self._connection.tcp.resume_reading()


class _ToObserve(logging.Handler):
    """What uvicorn has to say goes where everything goes."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        observe.trouble("https", record.getMessage().strip(), error)


def _hear_uvicorn() -> None:
    logger = logging.getLogger("uvicorn.error")
    logger.propagate = False
    # What strangers send wrong is theirs to know; only our own faults are worth a line.
    logger.setLevel(logging.ERROR)
    if not any(isinstance(handler, _ToObserve) for handler in logger.handlers):
        logger.addHandler(_ToObserve())
