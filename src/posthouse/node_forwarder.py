"""Agreements in the control process: the forwarder, its policy desk, and a granter for backups
behind us. Names the engines and wires them.

Nothing is opened while nobody is paired. A book that cannot be opened is told of
and tried again: mail does not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from posthouse import observe
from posthouse.config_schema import Config
from posthouse.errors import StorageBroken, StorageError
from posthouse.interfaces.control_client import DeskSilent, WorkerDesk
from posthouse.interfaces.https_agreements import (
    AGREEMENTS_PATH,
    COMPLETION_PATH,
    POLICY_PATH,
    make_agreements_handler,
    make_completion_handler,
    make_policy_handler,
)
from posthouse.interfaces.https_app import PeerRoute
from posthouse.mail.recipes import (
    AgreementRequest,
    Completion,
    PolicyRequest,
    PolicySettings,
    RecipeResult,
    Refusal,
)
from posthouse.node_agreements import (
    agreements_directory,
    sightings_directory,
)
from posthouse.node_pairs import Pairs, make_granter_settings
from posthouse.node_process import clock_us
from posthouse.ports_alerts import AlertSink
from posthouse.ports_drain import NextHopView
from posthouse.ports_https import Peer
from posthouse.ports_spool import OperatorAction, Selection, State
from posthouse.proto.base_url import lies_under
from posthouse.services.forwarder import Forwarder
from posthouse.services.granter import Granter
from posthouse.services.granter_callbacks import GranterCallbacks
from posthouse.services.policy import UNLISTED, PolicyDesk
from posthouse.services.roster_word import FoldedRoster, RosterWord
from posthouse.storage.forwarder_book import SqliteForwarderBook
from posthouse.storage.granter_book import SqliteGranterBook
from posthouse.storage.roster_directory import MappedRoster
from posthouse.storage.sightings import ReportsInbox
from posthouse.transports.agreement_calls import PeerForwarders
from posthouse.transports.peers import HeardDate

AGAIN_SECONDS: Final = 60.0
ENDS_SECONDS: Final = 300.0
CLOSED: Final = "agreements-closed"


class WorkerQueues:
    """`ports_agreements.QueueHolder` over the control sockets of the workers."""

    def __init__(self, run: Path, workers: int) -> None:
        self._desks = [WorkerDesk(run / f"worker-{index}.sock") for index in range(workers)]

    async def hold(self, domain: str, addresses: Sequence[str]) -> int:
        """Hold what is queued for these addresses."""
        held = 0
        for desk in self._desks:
            for address in addresses:
                meant = Selection(domain=domain, recipient=address, state=State.QUEUED)
                try:
                    held += await desk.act(meant, OperatorAction.HOLD)
                except DeskSilent as error:
                    raise StorageBroken(f"its queue is not held yet: {error}") from error
        return held


class ForwarderDuty:
    """See the module. `find_roster`: the roster in force, by domain."""

    def __init__(
        self,
        config: Config,
        *,
        workers: int,
        alerts: AlertSink,
        find_roster: Callable[[str], FoldedRoster | None],
        heard_date: HeardDate | None = None,
    ) -> None:
        self._data_dir = config.data_dir
        self._hostname = config.hostname
        self._alerts = alerts
        self._find_roster = find_roster
        self._word = RosterWord(find_roster, clock_us)
        self._queues = WorkerQueues(config.data_dir / "run", workers)
        self._config = config
        self._forwarder: Forwarder | None = None
        self._granter: Granter | None = None
        self._callbacks: GranterCallbacks | None = None
        self._policy: PolicyDesk | None = None
        self._changed = asyncio.Event()
        self._heard_date = heard_date
        self.pairs = Pairs(config, heard_date)
        self._forwarders: dict[str, Peer] = dict(self.pairs.forwarders)

    async def reload(self, config: Config) -> None:
        """Put a new configuration in force; pairing files are read again."""
        old, self.pairs, self._config = self.pairs, Pairs(config, self._heard_date), config
        self._forwarders.clear()
        self._forwarders.update(self.pairs.forwarders)
        if self._forwarder is not None:
            self._forwarder.set_domains(self.pairs.domains)
        if self._granter is not None and self._callbacks is not None:
            settings = make_granter_settings(config, self.pairs.backups)
            self._granter.reload(settings)
            self._callbacks.reload(settings)
        self._changed.set()
        await old.close()

    def hear(self, view: NextHopView) -> None:
        """A next hop has changed its state: one that takes mail can be asked, too."""
        if view.takes_mail and self._forwarder is not None:
            for domain in view.domains:
                self._forwarder.reached(domain)

    # ------------------------------------------------------------------ routes

    def routes(self) -> tuple[PeerRoute, ...]:
        """What the HTTPS door answers; 503 while the books are not open."""
        return (
            PeerRoute(method="POST", path=POLICY_PATH, handler=make_policy_handler(_Policy(self))),
            PeerRoute(
                method="POST",
                path=AGREEMENTS_PATH,
                handler=make_agreements_handler(_Granting(self)),
            ),
            PeerRoute(
                method="POST",
                path=COMPLETION_PATH,
                handler=make_completion_handler(_Granting(self)),
            ),
        )

    def get_policy(self) -> PolicyDesk:
        """Raises StorageBroken while the book is not open."""
        if self._policy is None:
            raise StorageBroken("the book of agreements is not open")
        return self._policy

    def get_granter(self) -> Granter:
        """Raises StorageBroken while the book is not open."""
        if self._granter is None:
            raise StorageBroken("the book of grants is not open")
        return self._granter

    # ------------------------------------------------------------------ life

    async def run(self) -> None:
        """Negotiate for ever, once somebody is paired."""
        while True:
            if not self.pairs.granters and not self.pairs.backups:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._changed.clear()
            async with contextlib.AsyncExitStack() as books:
                try:
                    directory = agreements_directory(self._data_dir)
                    book = await SqliteForwarderBook.open(directory)
                    books.push_async_callback(book.close)
                    grants = await SqliteGranterBook.open(directory)
                    books.push_async_callback(grants.close)
                except StorageError as error:
                    self._tell_closed(error)
                    await books.aclose()
                    with contextlib.suppress(TimeoutError):  # after a reload at once
                        await asyncio.wait_for(self._changed.wait(), AGAIN_SECONDS)
                    continue
                self._alerts.clear(CLOSED, "books")
                try:
                    await self._serve(book, grants)
                finally:
                    self._forwarder = self._policy = self._granter = self._callbacks = None
                    await self.pairs.close()

    def _tell_closed(self, error: StorageError) -> None:
        observe.trouble("agreements", "the books cannot be opened", error)
        self._alerts.raise_(
            CLOSED,
            "books",
            f"the books of agreements cannot be opened: {error.detail}",
            f"see to {agreements_directory(self._data_dir)}; mail flows, nothing is negotiated",
        )

    async def _serve(self, book: SqliteForwarderBook, grants: SqliteGranterBook) -> None:
        settings = make_granter_settings(self._config, self.pairs.backups)
        granter = Granter(
            settings,
            book=grants,
            addresses=self._word,
            lies_under=lies_under,
            mint=secrets.token_hex,
            clock_us=clock_us,
        )
        callbacks = GranterCallbacks(
            settings,
            book=grants,
            addresses=self._word,
            calls=PeerForwarders(self._forwarders),
            mint=secrets.token_hex,
            clock_us=clock_us,
        )
        forwarder = Forwarder(
            book=book,
            reports=ReportsInbox(sightings_directory(self._data_dir)),
            rosters=self._word,
            links=lambda domain: self.pairs.links(domain),
            holder=self._queues,
            alerts=self._alerts,
            mint=secrets.token_hex,
            clock_us=clock_us,
        )
        forwarder.set_domains(self.pairs.domains)
        self._policy = PolicyDesk(
            host=self._hostname,
            book=book,
            rosters=self._word,
            below=callbacks,
            preference=self._find_preference,
            changed=forwarder.ring,
            clock_us=clock_us,
        )
        self._granter, self._callbacks, self._forwarder = granter, callbacks, forwarder
        await asyncio.gather(forwarder.run(), self._tell_ends(callbacks))

    async def _tell_ends(self, callbacks: GranterCallbacks) -> None:
        while True:
            await asyncio.sleep(ENDS_SECONDS)
            try:
                await callbacks.tell_ends()
                await callbacks.forget_ended()
            except StorageError as error:
                observe.trouble("agreements", "ends cannot be told or forgotten", error)

    def _find_preference(self, domain: str) -> int:
        """Ours among the MX hosts that the owner means to publish."""
        roster = self._find_roster(domain)
        published: Mapping[str, int] = {}
        if isinstance(roster, MappedRoster):
            published = {host: preference for preference, host in roster.header.mx}
        return published.get(self._hostname, UNLISTED)


class _Policy:
    def __init__(self, duty: ForwarderDuty) -> None:
        self._duty = duty

    async def negotiate(self, party: str, asked: PolicyRequest) -> PolicySettings | Refusal:
        return await self._duty.get_policy().negotiate(party, asked)


class _Granting:
    def __init__(self, duty: ForwarderDuty) -> None:
        self._duty = duty

    async def request(
        self, party: str, asked: AgreementRequest
    ) -> Sequence[RecipeResult] | Refusal:
        return await self._duty.get_granter().request(party, asked)

    async def complete(self, party: str, told: Completion) -> Refusal | None:
        return await self._duty.get_granter().complete(party, told)
