"""What a worker does while primaries are up: the gate before its verdicts, and ETRN."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from posthouse import node_settings, observe
from posthouse.config_schema import Config
from posthouse.interfaces.doorkeeper import Doorkeeper
from posthouse.node_pending import count_pending
from posthouse.node_process import clock_us
from posthouse.ports_agreements import AgreementSecrets
from posthouse.ports_dns import Resolver
from posthouse.ports_drain import NextHopStates
from posthouse.services.etrn import EtrnDesk
from posthouse.services.proxy import Proxy
from posthouse.services.reception import Reception
from posthouse.services.relay_vouching import Vouching
from posthouse.services.standby import StandbyGate
from posthouse.services.ways import DomainWays
from posthouse.storage.turned_away import TurnedAway
from posthouse.transports.proxy_out import ProxyConnector

MEMORY_FILE: Final = "turned-away"


class StandbyDuty:
    """Stands between the door and reception where a domain asks for it; answers ETRN."""

    def __init__(
        self,
        config: Config,
        *,
        workers: int,
        listening: Sequence[tuple[str, int]],
        reception: Reception,
        states: NextHopStates,
        resolver: Resolver,
        secrets: AgreementSecrets | None = None,
    ) -> None:
        self._workers = workers
        self._listening = listening
        self._reception = reception
        self._states = states
        self._data_dir = config.data_dir
        self._gate: StandbyGate | None = None
        self._ways = DomainWays(
            node_settings.make_routes(config),
            node_settings.make_relay(config, workers, listening),
            resolver=resolver,
            shuffle=random.Random().shuffle,
        )
        self._connector = ProxyConnector(node_settings.make_proxy_out(config))
        self._proxy = Proxy(
            self._connector, self._ways, max_sessions=1, vouching=Vouching(secrets, clock_us)
        )
        self._desk = EtrnDesk(
            (),
            rights={},
            ways=self._ways,
            count=self._count,
            retry=states.retry,
            clock_us=clock_us,
        )
        self.reload(config)

    def attach(self, keeper: Doorkeeper) -> None:
        """Answer ETRN at this door."""
        keeper.etrn = self._desk.answer

    def reload(self, config: Config) -> None:
        """Put a configuration in force. Sessions under way see it at their next recipient."""
        self._ways.routes = node_settings.make_routes(config)
        self._ways.settings = node_settings.make_relay(config, self._workers, self._listening)
        self._proxy.max_sessions = node_settings.share(config.relay.concurrency, self._workers)
        self._desk.domains = [domain.name for domain in config.domains]
        rules = node_settings.make_standby(config)
        if self._gate is not None:  # it stays: clients under way have a session with a primary
            self._gate.rules = rules
        elif rules:  # before, no recipient pays for it
            gate = self._gate = StandbyGate(
                rules,
                is_up=self._is_up,
                memory=_open_memory(self._data_dir / MEMORY_FILE),
                proxy=self._proxy,
                clock_us=clock_us,
            )
            self._reception.gatekeeper, self._reception.wrap_letter = gate, gate.wrap

    def close(self) -> None:
        """End sessions with primaries; messages under way become ours."""
        self._connector.close()

    def _is_up(self, domain: str) -> bool:
        view = self._states.of_domain(domain)
        return view is not None and view.takes_mail

    async def _count(self, domains: Collection[str]) -> int | None:
        return await count_pending(self._data_dir / "run", self._workers, domains)


def _open_memory(path: Path) -> TurnedAway | None:
    try:
        return TurnedAway(path)
    except OSError as error:
        observe.trouble("standby", "nobody can be deferred: the table cannot be opened", error)
        return None
