"""On-demand mail relay in the control process: who may fetch, and the lines that were turned.

A granted ATRN opens, for each domain asked for, a private unix socket in
`data_dir/run`. The relays of all workers know these places as the domains'
next hops: they find nobody there until somebody calls, and send to it like to
any primary while the line lasts. What they say is passed on over the one
connection, in turn (`services.pulled`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Final

from posthouse import node_settings, observe
from posthouse.config_schema import Config
from posthouse.domain.nexthop import pull_socket_name
from posthouse.errors import ConfigError, NextHopFailure
from posthouse.interfaces.control import bind_unix_socket
from posthouse.interfaces.door_log import QuietLog
from posthouse.interfaces.doorkeeper import Doorkeeper, DoorSettings
from posthouse.interfaces.odmr_door import Line, OdmrDesk, OdmrKeeper
from posthouse.interfaces.smtp_door import SmtpDoor
from posthouse.mail.reply import Reply
from posthouse.node_pending import count_pending
from posthouse.node_process import clock_us
from posthouse.ports_drain import NextHopStates
from posthouse.ports_relay import Target
from posthouse.proto.server_events import ServerLimits
from posthouse.services.etrn import EtrnDesk
from posthouse.services.pulled import PulledReception
from posthouse.services.ways import DomainWays
from posthouse.transports.proxy_out import ProxySession
from posthouse.transports.smtp_out import OutSettings
from posthouse.transports.tls import TlsServer

REVERSING: Final = Reply(250, "2.0.0", "OK now reversing the connection")
NO_MAIL: Final = Reply(453, "4.0.0", "You have no mail")
REFUSED: Final = Reply(450, "4.7.1", "ATRN request refused")
BEING_SERVED: Final = Reply(450, "4.2.1", "ATRN request refused: another connection is served")
NOT_NOW: Final = Reply(451, "4.3.0", "Unable to process ATRN request now")
TLS_FIRST: Final = Reply(530, "5.7.0", "Must issue a STARTTLS command first")

# A line that nobody uses ends when nothing is left to send (or to be had now). One in use has
# the time-outs of SMTP: a large message may take long over it.
QUIET_SECONDS: Final = 3.0
STUCK_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.25
_ACCEPT_TURNS: Final = 4  # of the loop: select, accept, transport, `connection_made`
_LARGEST: Final = 1 << 32
_LONGEST_SECONDS: Final = 86400.0  # of a relay's session: the line's own time-outs end it

Count = Callable[[Collection[str]], Awaitable[int | None]]


def make_challenge(hostname: str) -> str:
    """A fresh CRAM-MD5 challenge (RFC 2195 §2): random, time and host."""
    return f"<{secrets.token_hex(8)}.{int(time.time())}@{hostname}>"


class Turns:
    """Decides who gets a turn, and serves the lines.

    domains_of: by user; retry: look at one domain's next hop now; count: what waits in the node.
    tls_required: no mail goes in clear. `close` ends every line.
    """

    def __init__(
        self,
        run: Path,
        domains_of: Mapping[str, Collection[str]],
        *,
        out: OutSettings,
        tls_required: bool,
        count: Count,
        retry: Callable[[str], None],
        quiet_seconds: float = QUIET_SECONDS,
        stuck_seconds: float = STUCK_SECONDS,
    ) -> None:
        self.domains_of = domains_of
        self.tls_required = tls_required
        self._run = run
        self._out = out
        self._count = count
        self._retry = retry
        self._quiet_seconds = quiet_seconds
        self._stuck_seconds = stuck_seconds
        self._granted: dict[str, tuple[str, ...]] = {}  # asked for, the line is on its way
        self._serving: dict[str, asyncio.Task[None]] = {}

    async def decide(self, user: str, domains: tuple[str, ...], tls: str) -> Reply:
        """The answer to ATRN."""
        mine = self.domains_of.get(user, ())
        wanted = domains or tuple(mine)
        if self.tls_required and not tls:
            return TLS_FIRST
        if not wanted or not set(wanted) <= set(mine):
            return REFUSED  # nothing at all is sent then (RFC 2645 §5.2.1)
        if user in self._serving:
            return BEING_SERVED
        pending = await self._count(wanted)
        if pending is None:
            return NOT_NOW
        if pending == 0:
            return NO_MAIL
        self._granted[user] = wanted
        return REVERSING

    def take(self, line: Line) -> None:
        """Serve a line that was granted."""
        wanted = self._granted.pop(line.user, ())
        if line.user in self._serving:  # two of one user were granted at once
            line.transport.abort()
            return
        gone = asyncio.Event()
        session = ProxySession.adopt(  # at once: the peer's greeting may be here the next instant
            line.transport,
            line.channel,
            line.rest,
            target=Target(host=f"atrn-{line.user}", address=line.address),
            settings=self._out,
        )
        session.when_gone = lambda _session: gone.set()
        task = asyncio.get_running_loop().create_task(self._serve(line, wanted, session, gone))
        self._serving[line.user] = task
        task.add_done_callback(lambda done: self._served(line.user, done))

    async def close(self) -> None:
        """End every line; what was not answered stays queued."""
        for task in tuple(self._serving.values()):
            task.cancel()
        await asyncio.gather(*self._serving.values(), return_exceptions=True)

    def _served(self, user: str, done: asyncio.Task[None]) -> None:
        self._serving.pop(user, None)
        if not done.cancelled() and (error := done.exception()) is not None:
            observe.trouble("odmr", f"the line of {user} failed", error)

    async def _serve(
        self, line: Line, domains: tuple[str, ...], session: ProxySession, gone: asyncio.Event
    ) -> None:
        try:
            await session.opened(self._out.greeting_timeout)
        except NextHopFailure as failure:
            observe.note("odmr", f"{line.user}[{line.address}]: {failure.detail}")
            session.abort("given up")
            return
        observe.note("odmr", f"{line.user}[{line.address}] fetches {', '.join(domains)}")
        try:
            async with contextlib.AsyncExitStack() as stack:
                reception = await self._open_doors(stack, session, domains, gone)
                for domain in domains:
                    self._retry(domain)
                await self._wait_until_done(reception, domains, gone)
        finally:
            session.close()
        observe.note("odmr", f"{line.user}[{line.address}]: done")

    async def _open_doors(
        self,
        stack: contextlib.AsyncExitStack,
        session: ProxySession,
        domains: tuple[str, ...],
        gone: asyncio.Event,
    ) -> PulledReception:
        def lost(why: str) -> None:
            gone.set()
            keeper.hang_up(f"the primary is gone ({why})")

        reception = PulledReception(session, on_gone=lost)
        limits = ServerLimits(
            hostname="atrn.invalid",
            max_message_bytes=session.size_limit or _LARGEST,
            max_recipients=50_000,
            max_errors=1 << 30,  # refusals are the primary's, not a stranger's mistakes
            max_idle_commands=1 << 30,
        )
        keeper = Doorkeeper(
            DoorSettings(
                limits=limits,
                reverse_dns=False,
                max_connections_per_client=2000,
                total_timeout=_LONGEST_SECONDS,
                verdict_timeout=_LONGEST_SECONDS,  # it waits for its turn, then for the primary
            ),
            reception=reception,
            resolver=None,
            tls=None,
        )
        keeper.private, keeper.log = True, QuietLog()
        keeper.start()
        servers: list[asyncio.Server] = []
        paths = [self._run / pull_socket_name(domain) for domain in domains]
        stack.push_async_callback(_see_through, lambda: _close_doors(keeper, servers, paths))
        loop, make_session = asyncio.get_running_loop(), functools.partial(SmtpDoor, keeper)
        for path in paths:
            server = await loop.create_unix_server(make_session, sock=bind_unix_socket(path))
            servers.append(server)
        return reception

    async def _wait_until_done(
        self,
        reception: PulledReception,
        domains: tuple[str, ...],
        gone: asyncio.Event,
    ) -> None:
        loop = asyncio.get_running_loop()
        moves, since = -1, loop.time()
        while not gone.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gone.wait(), _LOOK_SECONDS)
            now = loop.time()
            if reception.moves != moves or reception.busy:
                moves, since = reception.moves, now
            still = now - since
            if still >= self._stuck_seconds:
                return
            if still >= self._quiet_seconds and await self._count(domains) == 0:
                return


async def _close_doors(
    keeper: Doorkeeper, servers: Sequence[asyncio.Server], paths: Sequence[Path]
) -> None:
    """Let nobody in any more, send everybody home.

    asyncio loses a connection whose server closes between accept and the next turns of its
    loop: it stays open, and a relay would wait for the greeting. So those are let in first.
    """
    for path in paths:
        path.unlink(missing_ok=True)
    for _ in range(_ACCEPT_TURNS):
        await asyncio.sleep(0)
    for server in servers:
        server.close()
    await keeper.leave(0)


async def _see_through(work: Callable[[], Coroutine[None, None, None]]) -> None:
    """Do it to its end, cancelled meanwhile or not."""
    task = asyncio.get_running_loop().create_task(work())
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


class OdmrDuty:
    """The door for ATRN in the control process, where one is configured."""

    def __init__(
        self,
        config: Config,
        *,
        workers: int,
        states: NextHopStates,
        ways: DomainWays,
    ) -> None:
        self._run = config.data_dir / "run"
        self._workers = workers
        self._states = states
        self._ways = ways
        self._servers: list[asyncio.Server] = []
        self._turns = Turns(
            self._run,
            {},
            out=node_settings.make_out(config),
            tls_required=False,
            count=self._count,
            retry=states.retry,
        )
        self._keeper = OdmrKeeper(self._make_desk(config))

    async def open(self, listeners: Sequence[socket.socket]) -> None:
        """Take calls. Raises OSError."""
        loop = asyncio.get_running_loop()
        for listener in listeners:
            self._servers.append(await loop.create_server(self._keeper.make_session, sock=listener))

    def reload(self, config: Config) -> None:
        """Users, secrets and certificate as they are now; lines under way go on."""
        self._keeper.desk = self._make_desk(config)

    async def close(self) -> None:
        """Take no more calls, end every line."""
        for server in self._servers:
            server.close()
        self._keeper.close()
        await self._turns.close()

    def _make_desk(self, config: Config) -> OdmrDesk:
        domains = {pull.user: pull.domains for pull in config.pulls}
        self._turns.domains_of = domains
        self._turns.tls_required = config.relay.tls in ("required", "verified")
        etrn = EtrnDesk(
            [domain.name for domain in config.domains],
            rights=domains,
            ways=self._ways,
            count=self._count,
            retry=self._states.retry,
            clock_us=clock_us,
        )
        return OdmrDesk(
            hostname=config.hostname,
            secrets={pull.user: pull.secret for pull in config.pulls},
            challenge=functools.partial(make_challenge, config.hostname),
            turn=self._turns.decide,
            take=self._turns.take,
            etrn=etrn.answer,
            tls=_try_tls(config),
        )

    async def _count(self, domains: Collection[str]) -> int | None:
        return await count_pending(self._run, self._workers, domains)


def _try_tls(config: Config) -> TlsServer | None:
    smtp = config.smtp
    if smtp.certificate is None or smtp.private_key is None:
        return None
    try:
        return TlsServer(smtp.certificate, smtp.private_key)
    except ConfigError as error:
        observe.alert("tls", f"STARTTLS is not offered for ATRN: {'; '.join(error.mistakes)}")
        return None
