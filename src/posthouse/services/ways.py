"""Where a domain's primary is, for whoever wants to talk to it outside the relay."""

from __future__ import annotations

from collections.abc import Mapping

from posthouse.domain.mxplan import Shuffle
from posthouse.domain.nexthop import next_hop_key
from posthouse.ports_dns import Resolver
from posthouse.ports_relay import Target
from posthouse.services.relay_settings import RelaySettings, RouteSettings
from posthouse.services.relay_targets import find_way


class DomainWays:
    """Answers with what DNS or the configuration says now. Never raises.

    `routes` and `settings` are swapped whole by a reload.
    """

    def __init__(
        self,
        routes: Mapping[str, RouteSettings],
        settings: RelaySettings,
        *,
        resolver: Resolver,
        shuffle: Shuffle,
    ) -> None:
        self.routes = routes
        self.settings = settings
        self._resolver = resolver
        self._shuffle = shuffle

    def next_hop_of(self, domain: str) -> str:
        """The key of the next hop; of a domain that is not configured, one of its own."""
        route = self.routes.get(domain)
        return next_hop_key(domain, route.hops if route is not None else ())

    async def find_targets(self, domain: str) -> tuple[Target, ...]:
        """Where to connect, in order; () when DNS leaves nobody or the domain is not ours."""
        route = self.routes.get(domain)
        if route is None:
            return ()
        way = await find_way(
            self._resolver,
            domain=domain,
            hops=route.hops,
            settings=self.settings,
            shuffle=self._shuffle,
        )
        return way.targets
