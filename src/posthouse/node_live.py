"""Live verification in a worker: names its engines."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from posthouse import node_settings, observe
from posthouse.config_schema import Config
from posthouse.domain.guesses import GuessBudget
from posthouse.domain.live_check import Entry
from posthouse.errors import StorageError
from posthouse.ports_dns import Resolver
from posthouse.ports_drain import NextHopStates
from posthouse.services.live_check import LiveChecks
from posthouse.services.live_directories import Lists, LiveDirectories
from posthouse.services.ways import DomainWays
from posthouse.storage.live_cache import EmbeddedLiveCache
from posthouse.transports.proxy_out import ProxyConnector


class LiveVerification:
    """Everything live verification needs, for one worker. `directories` is for reception."""

    def __init__(
        self,
        lists: Lists,
        config: Config,
        *,
        workers: int,
        listening: Iterable[tuple[str, int]],
        resolver: Resolver,
        states: NextHopStates | None,
        clock_us: Callable[[], int],
    ) -> None:
        self._budget = GuessBudget(config.lookups.guesses)
        self._cache = LazyLiveCache(config.data_dir / "live.db", clock_us)
        self._connector = ProxyConnector(node_settings.make_out(config))
        self._ways = DomainWays(
            node_settings.make_routes(config),
            node_settings.make_relay(config, workers, listening),
            resolver=resolver,
            shuffle=random.Random().shuffle,
        )
        self.checks = LiveChecks(
            node_settings.make_verify_senders(config),
            connector=self._connector,
            ways=self._ways,
            budget=self._budget,
            cache=self._cache,
            states=states,
            clock_us=clock_us,
            dice=random.Random(),
        )
        self.directories = LiveDirectories(lists, self.checks)

    def reload(self, config: Config, workers: int, listening: Iterable[tuple[str, int]]) -> None:
        """Take up a new configuration."""
        self._ways.routes = node_settings.make_routes(config)
        self._ways.settings = node_settings.make_relay(config, workers, listening)
        if config.lookups.guesses != self._budget.misses_an_hour:
            self._budget = GuessBudget(config.lookups.guesses)
        self.checks.reload(node_settings.make_verify_senders(config), self._budget)

    async def close(self) -> None:
        """End every conversation and write what was learned."""
        await self.checks.close()
        self._connector.close()
        await self._cache.close()


class LazyLiveCache:
    """`ports_live.LiveCache` that makes its file when somebody first looks into it.

    Most nodes have lists for all their domains and never need it. A file that cannot be
    used costs a line in the log, once; findings are then remembered in memory only.
    """

    def __init__(self, path: Path, clock_us: Callable[[], int]) -> None:
        self._path = path
        self._clock_us = clock_us
        self._opening = asyncio.Lock()
        self._opened: EmbeddedLiveCache | None = None
        self._failed = False

    async def find(self, address: str) -> Entry | None:
        """See `ports_live.LiveCache`."""
        if self._opened is None and not self._failed:
            async with self._opening:
                await self._open()
        return None if self._opened is None else await self._opened.find(address)

    def put(self, address: str, entry: Entry) -> None:
        """See `ports_live.LiveCache`; a look always comes first."""
        if self._opened is not None:
            self._opened.put(address, entry)

    async def close(self) -> None:
        """See `ports_live.LiveCache`."""
        if self._opened is not None:
            await self._opened.close()

    async def _open(self) -> None:
        if self._opened is not None or self._failed:
            return
        try:
            self._opened = await EmbeddedLiveCache.open(self._path, self._clock_us)
        except StorageError as error:
            self._failed = True
            observe.trouble("live", "what the primary says is remembered in memory only", error)
