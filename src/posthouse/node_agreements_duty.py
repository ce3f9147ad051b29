"""What the control process does about agreements: the forwarder, rosters to go by, the door."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final

from posthouse import observe
from posthouse.config_schema import Config
from posthouse.interfaces.https_app import PeerRoute
from posthouse.interfaces.https_rosters import ROSTER_PATH, RosterDesk
from posthouse.node_forwarder import ForwarderDuty
from posthouse.node_https import HttpsHouse, HttpsPlan
from posthouse.node_process import Process
from posthouse.node_rosters import RosterView, make_roster_files
from posthouse.ports_alerts import AlertSink
from posthouse.ports_drain import NextHopStates
from posthouse.storage.owner_rosters import OwnerRosters
from posthouse.transports.peers import HeardDate

HTTPS_SHUT: Final = "https"


class AgreementsDuty:
    """See the module. Made and used in the loop of the control process."""

    def __init__(
        self,
        config: Config,
        *,
        workers: int,
        alerts: AlertSink,
        states: NextHopStates,
        https: Sequence[socket.socket],
        heard_date: HeardDate | None = None,
    ) -> None:
        self._alerts = alerts
        self._rosters = RosterView(config, {})
        self._forwarder = ForwarderDuty(
            config,
            workers=workers,
            alerts=alerts,
            find_roster=self._rosters.watch.get,
            heard_date=heard_date,
        )
        self._house = HttpsHouse(https, config.data_dir, tell=self._tell) if https else None
        self._config = config
        # Backups behind us get the owner's file; a primary has no roster key with us: 404.
        desk = RosterDesk(OwnerRosters(make_roster_files(config.data_dir)))
        self._roster_route = PeerRoute(method="GET", path=ROSTER_PATH, handler=desk.answer)
        states.watch(self._forwarder.hear)

    async def open(self, process: Process[Config]) -> None:
        """Begin to negotiate, and open the door."""
        await self._rosters.watch.refresh()
        if self._house is not None:
            await self._house.set_plan(self._make_plan(self._config))
            process.keep(self._house.run(), "watching the HTTPS door")
        process.keep(self._rosters.watch.run(), "watching rosters")
        process.keep(self._forwarder.run(), "negotiating agreements")

    async def reload(self, config: Config) -> None:
        """Take up a new configuration; pairing files and certificate are read again."""
        await self._rosters.reload(config)
        await self._forwarder.reload(config)
        if self._house is not None:
            await self._house.set_plan(self._make_plan(config))

    async def close(self, grace_seconds: float) -> None:
        """Let running answers finish; the tasks end afterwards."""
        if self._house is not None:
            await self._house.close(grace_seconds)
        self._rosters.close()

    def _make_plan(self, config: Config) -> HttpsPlan:
        pairs = self._forwarder.pairs
        return HttpsPlan(
            certificate=config.https.certificate,
            private_key=config.https.private_key,
            accounts=pairs.accounts(),
            routes=(*self._forwarder.routes(), self._roster_route),
            base_urls=pairs.base_urls(),
        )

    def _tell(self, problem: str | None) -> None:
        if problem is None:
            self._alerts.clear(HTTPS_SHUT, "https.listen")
            return
        observe.alert("https", problem)
        self._alerts.raise_(
            HTTPS_SHUT,
            "https.listen",
            f"paired primaries cannot call: {problem}",
            "see to certificate and private_key of [https] or [smtp], then SIGHUP",
        )
