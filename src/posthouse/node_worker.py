"""A mail worker: names the concrete engines and wires them.

One event loop; for each of its shards a spool, a relay and a sweeper. Its
first shard takes new mail. Worker i of n has the shards i, i + n, i + 2n …:
after `workers` was lowered, what lies in the shards of before still goes home.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import msgspec

import posthouse
from posthouse import node_settings, observe
from posthouse.config_schema import Config
from posthouse.errors import ConfigError, StorageError
from posthouse.interfaces.control import ControlDesk, ControlDoor
from posthouse.interfaces.control_wire import AlertStatus, NextHopStatus, WorkerStatus
from posthouse.interfaces.doorkeeper import Doorkeeper
from posthouse.interfaces.smtp_door import SmtpDoor
from posthouse.node_agreements import WorkerAgreements
from posthouse.node_control import lists_directory
from posthouse.node_drain import drain_socket
from posthouse.node_live import LiveVerification
from posthouse.node_memory import keep_freed_memory
from posthouse.node_process import Process, clock_us, elapsed_us, read_again, run_in_loop
from posthouse.node_rosters import RosterView, make_roster_files
from posthouse.node_scheduling import wait_for_turns
from posthouse.node_sockets import BACKLOG, name_sockets
from posthouse.node_spools import close_spools, open_spool, shards_of_worker
from posthouse.node_standby import StandbyDuty
from posthouse.node_turnaway import TurnAway
from posthouse.node_watch import availability_file
from posthouse.ports_alerts import AlertKind
from posthouse.ports_recipients import RecipientDirectory
from posthouse.ports_spool import Body, Spool
from posthouse.services.nexthop_follow import SharedStates
from posthouse.services.quota import Quotas
from posthouse.services.reception import Reception
from posthouse.services.recipients import Directories
from posthouse.services.relay import Relay
from posthouse.services.relay_settings import CONDITIONS
from posthouse.services.sweeper import Sweeper
from posthouse.services.tallies import Tallier
from posthouse.storage.availability_store import SqliteAvailability
from posthouse.storage.recipient_lists import RecipientIndexes
from posthouse.storage.usage_files import UsageFiles
from posthouse.supervisor import Heartbeat
from posthouse.transports.drain_line import UnixDrainLine
from posthouse.transports.resolver import DnsResolver
from posthouse.transports.smtp_out import SmtpConnector
from posthouse.transports.tls import TlsServer

# What relay and disk get at the end when sessions have taken their whole grace.
LAST_SECONDS: Final = 5.0
# How long the first mail ever may wait for the first list ever.
LISTS_SECONDS: Final = 5.0
# Between attempts to open what could not be opened.
OWN_SHARD_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 60.0


def run_worker(
    config: Config,
    heartbeat: Heartbeat,
    *,
    index: int,
    workers: int,
    listeners: Sequence[socket.socket],
    lists_ready: Callable[[], bool],
) -> int:
    """The duty of worker `index` of `workers`: take mail and bring it home until SIGTERM.

    lists_ready: tells whether the control process has published all lists there are.
    """

    async def work() -> int:
        worker = Worker(config, heartbeat, index=index, workers=workers, listeners=listeners)
        if await worker.open(lists_ready):
            await worker.process.stopping.wait()
            await worker.close()
        return 70 if worker.process.failed else 0

    keep_freed_memory()
    wait_for_turns()
    return run_in_loop(work())


class _Homeward:
    """What brings the mail of one shard home."""

    def __init__(self, spool: Spool, config: Config, relay: Relay, out: SmtpConnector) -> None:
        self.relay = relay
        self.out = out
        self.sweeper = Sweeper(
            spool=spool,
            keep_for=node_settings.make_keep_for(config),
            clock_us=clock_us,
            elapsed_us=elapsed_us,
        )

    async def stop(self, grace_seconds: float) -> None:
        await self.sweeper.stop()
        await self.relay.stop(grace_seconds)
        await self.out.close()


class Worker:
    """See the module. `open` and `close` are called once each, in the loop."""

    def __init__(
        self,
        config: Config,
        heartbeat: Heartbeat,
        *,
        index: int,
        workers: int,
        listeners: Sequence[socket.socket],
    ) -> None:
        self.process = Process(config, heartbeat, self._reload, read=read_again)
        self._index = index
        self._workers = workers
        self._listeners = listeners
        self._started_us = clock_us()
        self._servers: list[asyncio.Server] = []
        self._spools: list[Spool] = []
        self._homeward: list[_Homeward] = []
        self._resolver = DnsResolver(
            [str(server) for server in config.dns.servers] or None,
            lifetime_seconds=config.dns.timeout.total_seconds(),
        )
        self._prober = SmtpConnector(node_settings.make_out(config), _no_body)
        self.next_hops = SharedStates(
            UnixDrainLine(drain_socket(config.data_dir)),
            connector=self._prober,
            resolver=self._resolver,
            clock_us=clock_us,
            dice=random.Random(),
        )
        self._tallier = Tallier(
            index,
            lambda: SqliteAvailability.open(availability_file(config.data_dir)),
            domains=lambda: {domain.name for domain in self.process.config.domains},
            clock_us=clock_us,
        )
        self._quotas = Quotas(
            {},
            spools=lambda: self._spools,
            board=UsageFiles(config.data_dir / "run", index=index, workers=workers),
            clock_us=clock_us,
        )
        self._alerts: dict[str, AlertStatus] = {}
        self._serving = False
        self._unopened: list[int] = []
        self._tls = self._try_tls(config)
        table: dict[str, RecipientDirectory] = {}
        self._directories = Directories(
            RecipientIndexes(lists_directory(config.data_dir)),
            node_settings.find_listed(config),
            table=table,
        )
        self.rosters = RosterView(config, table)
        self._agreements = WorkerAgreements(config, index=index, find_roster=self.rosters.watch.get)

    # ------------------------------------------------------------------ life

    async def open(self, lists_ready: Callable[[], bool]) -> bool:
        """Recover the shards, then take mail. False when told to stop before. Raises OSError."""
        first = await self._open_own()
        if first is None:
            return False
        self._spools = [first]
        config = self.process.config
        shards = shards_of_worker(config.data_dir, self._index, self._workers)
        self._unopened = shards[1:]
        await self._open_others()
        self._live = LiveVerification(
            self._directories,
            config,
            workers=self._workers,
            listening=self._addresses(),
            resolver=self._resolver,
            states=self.next_hops,
            clock_us=clock_us,
        )
        self._reception = Reception(
            node_settings.make_reception(config),
            spool=self._spools[0],
            directories=self._live.directories,
            clock_us=clock_us,
        )
        self._set_quotas(config)
        self._keeper = Doorkeeper(
            node_settings.make_door(config, self._workers),
            reception=self._reception,
            resolver=self._resolver,
            tls=self._tls,
        )
        self._standby = StandbyDuty(
            config,
            workers=self._workers,
            listening=self._addresses(),
            reception=self._reception,
            states=self.next_hops,
            resolver=self._resolver,
            secrets=self._agreements.secrets,
        )
        self._standby.attach(self._keeper)
        self._agreements.attach(self._reception, self.process)
        self._homeward = [self._make_homeward(spool) for spool in self._spools]
        self._desk = ControlDesk(
            self._spools,
            clock_us=clock_us,
            status=self._describe,
            brief=self._describe_briefly,
            moved=self._on_moved,
            domains=lambda: [domain.name for domain in self.process.config.domains],
        )
        self._control = ControlDoor(self._desk)
        await self._control.open(config.data_dir / "run" / f"worker-{self._index}.sock")
        await self._await_lists(lists_ready)
        self._keeper.start()
        self._set_routes(config)
        self.next_hops.start()
        for homeward in self._homeward:
            homeward.relay.start()
            homeward.sweeper.start()
        self._serving = True
        self.process.keep(self._tallier.run(), "counting for reports")
        self.process.keep(self._quotas.run(), "counting for quotas")
        self.process.keep(self._directories.run(), "watching recipient lists")
        self.process.keep(self.rosters.watch.run(), "watching rosters")
        self.process.keep(self._try_again(), "trying again")
        loop = asyncio.get_running_loop()
        make_session = partial(SmtpDoor, self._keeper)
        for listener in self._listeners:
            self._servers.append(
                await loop.create_server(make_session, sock=listener, backlog=BACKLOG)
            )
        self.process.serve()
        return True

    async def _open_own(self) -> Spool | None:
        """Open the shard that takes new mail; until that works, tell clients to come again.

        None when told to stop before.
        """
        process = self.process
        turn_away: TurnAway | None = None
        try:
            while not process.stopping.is_set():
                try:
                    return await open_spool(process.config, self._index)
                except (StorageError, OSError) as error:
                    text = f"shard {self._index} cannot be opened: {error}"
                    self._alert("storage", text)
                if turn_away is None:
                    turn_away = TurnAway(process.config.hostname)
                    path = process.config.data_dir / "run" / f"worker-{self._index}.sock"
                    await turn_away.open(self._listeners, path, self._describe_closed)
                    process.serve()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.stopping.wait(), OWN_SHARD_SECONDS)
            await process.end_tasks()
            return None
        finally:
            if turn_away is not None:
                await turn_away.close()
            self._alerts.pop("storage", None)

    async def _open_others(self) -> list[Spool]:
        """Open the shards left by more workers of before; those that fail are told and wait."""
        fresh: list[Spool] = []
        for shard in tuple(self._unopened):
            try:
                spool = await open_spool(self.process.config, shard)
            except (StorageError, OSError) as error:
                self._alert(f"shard {shard}", f"cannot be opened, its mail waits: {error}")
                continue
            self._alerts.pop(f"shard {shard}", None)
            self._unopened.remove(shard)
            self._spools.append(spool)
            fresh.append(spool)
        return fresh

    async def _try_again(self) -> None:
        """What could not be opened at the start is tried again, for ever."""
        while True:
            await asyncio.sleep(AGAIN_SECONDS)
            if self._tls is None:
                self._tls = self._keeper.tls = self._try_tls(self.process.config)
            for spool in await self._open_others():
                homeward = self._make_homeward(spool)
                self._homeward.append(homeward)
                homeward.relay.start()
                homeward.sweeper.start()
                self._desk.add(spool)

    def _try_tls(self, config: Config) -> TlsServer | None:
        """Certificate and key were good when the node started; without them mail is taken too."""
        try:
            tls = _open_tls(config)
        except ConfigError as error:
            self._alert("tls", f"STARTTLS is not offered: {'; '.join(error.mistakes)}")
            return None
        self._alerts.pop("tls", None)
        return tls

    def _alert(self, kind: str, text: str) -> None:
        known = self._alerts.get(kind)
        if known is None or known.text != text:
            observe.alert(kind, f"worker {self._index}: {text}")
            self._alerts[kind] = AlertStatus(kind=kind, text=text, since_us=clock_us())

    async def _await_lists(self, ready: Callable[[], bool]) -> None:
        """At the very first start: wait a little for the lists rather than say 451."""
        indexes = RecipientIndexes(lists_directory(self.process.config.data_dir))
        sources = node_settings.make_sources(self.process.config)
        deadline = asyncio.get_running_loop().time() + LISTS_SECONDS
        rosters = [one.name for one in self.process.config.domains if one.roster is not None]
        shelf = make_roster_files(self.process.config.data_dir)
        while any(indexes.get_version(domain) is None for domain in sources) or any(
            shelf.get_version(domain) is None for domain in rosters
        ):
            if ready() or asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.02)
        self._directories.refresh()
        await self.rosters.watch.refresh()

    def _make_homeward(self, spool: Spool) -> _Homeward:
        config = self.process.config
        out = SmtpConnector(node_settings.make_out(config), spool.open_body)
        relay = Relay(
            spool=spool,
            connector=out,
            resolver=self._resolver,
            routes=node_settings.make_routes(config),
            settings=node_settings.make_relay(config, self._workers, self._addresses()),
            clock_us=clock_us,
            dice=random.Random(),
            authority=self.next_hops,
            secrets=self._agreements.secrets,
        )
        voucher = self.rosters.make_voucher(spool, config, self._live.directories.find, relay.retry)
        self.process.keep(voucher.run(), "releasing what is vouched for")
        return _Homeward(spool, config, relay, out)

    async def close(self) -> None:
        """Let sessions finish, then everything else, at most `shutdown_grace` and a little."""
        grace = self.process.config.shutdown_grace.total_seconds()
        for server in self._servers:
            server.close()
        await self.process.end_tasks()
        leaving = asyncio.ensure_future(self._keeper.leave(grace))
        hurry = asyncio.ensure_future(self.process.hurry.wait())
        await asyncio.wait((leaving, hurry), return_when=asyncio.FIRST_COMPLETED)
        if not leaving.done():
            await self._keeper.leave(0)
        hurry.cancel()
        (trouble,) = await asyncio.gather(leaving, return_exceptions=True)
        if isinstance(trouble, BaseException):
            observe.trouble("master", "sessions did not end in good order", trouble)
        await self._live.close()
        await asyncio.gather(*(one.stop(LAST_SECONDS) for one in self._homeward))
        self._standby.close()
        await self.next_hops.stop()
        await self._prober.close()
        await self._tallier.write()
        await self._control.close()
        self.rosters.close()
        await self._agreements.close()
        await close_spools(self._spools)
        observe.gather_with(None)

    # ------------------------------------------------------------------ changes

    async def _reload(self, config: Config) -> None:
        """Put a new configuration in force; what needs a restart the supervisor has told."""
        if not self._serving:
            return  # taken up as soon as our shard can be opened
        self._reload_tls(config)
        self._reception.reload(node_settings.make_reception(config))
        self._set_quotas(config)
        self._standby.reload(config)
        self._keeper.reload(node_settings.make_door(config, self._workers), resolver=self._resolver)
        self._directories.set_domains(node_settings.find_listed(config))
        await self.rosters.reload(config)
        self._agreements.reload(config)
        self._set_routes(config)
        self._live.reload(config, self._workers, self._addresses())
        settings = node_settings.make_relay(config, self._workers, self._addresses())
        for homeward in self._homeward:
            homeward.relay.reload(node_settings.make_routes(config), settings)
            homeward.sweeper.reload(node_settings.make_keep_for(config))
        observe.note("master", f"worker {self._index}: reloaded")

    def _reload_tls(self, config: Config) -> None:
        old, new = self.process.config.smtp, config.smtp
        same = (old.certificate, old.private_key) == (new.certificate, new.private_key)
        if same and self._tls is not None:
            self._tls.reload()
        else:
            self._tls = _open_tls(config)
            self._keeper.tls = self._tls
        self._alerts.pop("tls", None)

    def _set_routes(self, config: Config) -> None:
        settings = node_settings.make_relay(config, self._workers, self._addresses())
        self.next_hops.set_routes(node_settings.make_routes(config), settings)

    def _on_moved(self) -> None:
        for homeward in self._homeward:
            homeward.relay.retry()

    def _set_quotas(self, config: Config) -> None:
        limits = node_settings.make_quotas(config)
        self._quotas.reload(limits)
        self._reception.quota = self._quotas if limits else None

    def _addresses(self) -> list[tuple[str, int]]:
        """Where we listen."""
        return name_sockets(self._listeners)

    # ------------------------------------------------------------------ what operators see

    def _describe_closed(self) -> WorkerStatus:
        return WorkerStatus(
            pid=os.getpid(),
            shards=(),
            version=posthouse.__version__,
            started_us=self._started_us,
            alerts=tuple(self._alerts.values()),
            intake_problem="; ".join(alert.text for alert in self._alerts.values()),
        )

    def _describe_briefly(self) -> WorkerStatus:
        """For the control process, which asks every few seconds and knows the next hops itself."""
        return WorkerStatus(
            pid=os.getpid(),
            shards=tuple(spool.shard for spool in self._spools),
            counters=msgspec.structs.asdict(observe.counters),
            alerts=tuple(
                alert for alert in self._list_alerts() if alert.kind not in CONDITIONS.values()
            ),
            intake_problem=self._spools[0].intake_problem(),
        )

    def _list_alerts(self) -> Iterator[AlertStatus]:
        yield from self._alerts.values()
        found = [one for homeward in self._homeward for one in homeward.relay.alerts()]
        for one in (*found, *self._live.checks.conditions()):
            yield AlertStatus(kind=one.kind, text=one.text, since_us=one.since_us)
        for domain, since_us in self._quotas.full.items():
            yield AlertStatus(
                kind=AlertKind.QUOTA_FULL,
                subject=domain,
                text=f"{domain} is over its quota here: its mail gets 452",
                what_to_do="Bring its primary back, release or delete mail, or raise the quota",
                since_us=since_us,
            )

    def _describe(self) -> WorkerStatus:
        return WorkerStatus(
            pid=os.getpid(),
            shards=tuple(spool.shard for spool in self._spools),
            version=posthouse.__version__,
            started_us=self._started_us,
            sessions=len(self._keeper.sessions),
            counters=msgspec.structs.asdict(observe.counters),
            next_hops=tuple(
                NextHopStatus(
                    next_hop=hop.next_hop,
                    state=str(hop.state),
                    since_us=hop.since_us,
                    why=hop.why,
                    sessions=hop.sessions,
                    in_hand=hop.in_hand,
                    domains=hop.domains,
                )
                for homeward in self._homeward
                for hop in homeward.relay.status()
            ),
            alerts=tuple(self._list_alerts()),
            intake_problem=self._spools[0].intake_problem(),
            recipients={
                domain: dict(facts)
                for lists in (self._directories, self.rosters.watch)
                for domain, facts in lists.describe().items()
            },
        )


async def _no_body(queue_id: int) -> Body:
    """Probes send no mail."""
    raise KeyError(queue_id)


def _open_tls(config: Config) -> TlsServer | None:
    smtp = config.smtp
    if smtp.certificate is None or smtp.private_key is None:
        return None
    return TlsServer(smtp.certificate, smtp.private_key)
