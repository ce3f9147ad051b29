"""States of next hops in the control process: names the engines and wires them.

Made before anything that takes long: workers wait for it at their start.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from posthouse import node_settings
from posthouse.config_schema import Config
from posthouse.interfaces.drain_door import DrainDoor
from posthouse.node_process import clock_us
from posthouse.ports_spool import Body
from posthouse.services.nexthops import NextHopBoard
from posthouse.services.relay_settings import RelaySettings
from posthouse.services.ways import DomainWays
from posthouse.storage.nexthop_book import NextHopFile
from posthouse.transports.resolver import DnsResolver
from posthouse.transports.smtp_out import SmtpConnector


def drain_socket(data_dir: Path) -> Path:
    """Where relays and operators reach the board."""
    return data_dir / "run" / "drain.sock"


def nexthop_book(data_dir: Path) -> NextHopFile:
    """What is kept of next hops over a restart."""
    return NextHopFile(data_dir / "nexthops.json")


class NextHopDuty:
    """The board of a node with its door. `board` is a `ports_drain.NextHopStates` for others,
    `ways` says where their primaries are.

    workers, listening: as for the relays (`node_settings.make_relay`).
    """

    def __init__(
        self, config: Config, *, workers: int, listening: Sequence[tuple[str, int]]
    ) -> None:
        self._workers = workers
        self._listening = listening
        self._connector = SmtpConnector(node_settings.make_out(config), _no_body)
        resolver = DnsResolver(
            [str(server) for server in config.dns.servers] or None,
            lifetime_seconds=config.dns.timeout.total_seconds(),
        )
        dice = random.Random()
        self.ways = DomainWays(
            node_settings.make_routes(config),
            self._settings(config),
            resolver=resolver,
            shuffle=dice.shuffle,
        )
        self.board = NextHopBoard(
            connector=self._connector,
            resolver=resolver,
            settings=self._settings(config),
            clock_us=clock_us,
            dice=dice,
            book=nexthop_book(config.data_dir),
            expected=workers,
        )
        self._door = DrainDoor(self.board)

    async def open(self, config: Config) -> None:
        """Probe what there is, and let relays follow. Raises OSError."""
        self.reload(config)
        await self._door.open(drain_socket(config.data_dir))

    def reload(self, config: Config) -> None:
        """Watch over the next hops of this configuration."""
        routes, settings = node_settings.make_routes(config), self._settings(config)
        self.ways.routes, self.ways.settings = routes, settings
        self.board.set_routes(routes, settings)

    async def close(self) -> None:
        """End; what is to be kept is written."""
        await self._door.close()
        await self.board.stop()
        await self._connector.close()

    def _settings(self, config: Config) -> RelaySettings:
        return node_settings.make_relay(config, self._workers, self._listening)


async def _no_body(queue_id: int) -> Body:
    """Probes send no mail."""
    raise KeyError(queue_id)
