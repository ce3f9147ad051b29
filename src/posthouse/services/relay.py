"""The way home: brings the mail of one spool shard to its next hops.

Promise: mail leaves the spool only with the peer's 2xx for that recipient, is
held with the reply on a final refusal, and waits otherwise; nobody is bounced.
A next hop that is down, blocked or held back by DNS is probed, its mail is not
touched, and it drains at once when it answers. Sending twice happens only
where SMTP itself cannot tell (the connection broke after the final dot,
RFC 1047) or after a crash between the peer's 2xx and our own disk.

One relay per worker, in its event loop; nothing is shared between workers.
What state a next hop is in is decided for the whole node (`ports_drain`,
`services.nexthops`); the relay follows and tells what it learns.

The pieces: `relay_route` (the state followed), `relay_pool` (sessions), `relay_walk` (how one
is opened), `relay_lane` (one session's work), `relay_evidence` (what outcomes tell),
`relay_queue` (ready mail), `relay_ledger` (in hand and settling), `relay_targets` (DNS to
addresses).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from posthouse import observe
from posthouse.domain.drain import State
from posthouse.errors import StorageError
from posthouse.ports_agreements import AgreementSecrets
from posthouse.ports_dns import Resolver
from posthouse.ports_drain import NextHopAuthority
from posthouse.ports_relay import Connector
from posthouse.ports_spool import QueuedMessage, Spool
from posthouse.services.nexthops import NextHopBoard
from posthouse.services.relay_ledger import Later, Ledger, Timer
from posthouse.services.relay_means import Means
from posthouse.services.relay_queue import CLAIM_RETRY_SECONDS
from posthouse.services.relay_route import Route
from posthouse.services.relay_settings import (
    Condition,
    NextHopStatus,
    RelaySettings,
    RouteSettings,
    group_routes,
)
from posthouse.services.relay_vouching import Vouching

LOOK_SECONDS: Final = 60.0
"""How often the table is compared with what the relay knows: the bound on a lost bell."""

NAMED_DOMAINS: Final = 5  # in an alert; there may be thousands


class Relay:
    """See the module. `routes`: every configured domain. `later`: `loop.call_later` by default.

    secrets: passwords of agreements, None where there are none. authority: who decides the
    states of next hops; None: a board of our own, where they are up until they prove otherwise.
    """

    def __init__(
        self,
        *,
        spool: Spool,
        connector: Connector,
        resolver: Resolver,
        routes: Mapping[str, RouteSettings],
        settings: RelaySettings,
        clock_us: Callable[[], int],
        dice: random.Random,
        later: Later | None = None,
        secrets: AgreementSecrets | None = None,
        authority: NextHopAuthority | None = None,
    ) -> None:
        if later is None:
            later = asyncio.get_running_loop().call_later
        self._spool = spool
        self._ledger = Ledger(spool, clock_us=clock_us, later=later, on_room=self._wake_all)
        self._means = Means(
            spool=spool,
            connector=connector,
            resolver=resolver,
            settings=settings,
            clock_us=clock_us,
            dice=dice,
            later=later,
            ledger=self._ledger,
            look=self._look,
            vouching=Vouching(secrets, clock_us),
        )
        self.board: NextHopBoard | None = None  # our own, when nobody else decides
        if authority is None:
            authority = self.board = NextHopBoard(
                connector=connector,
                resolver=resolver,
                settings=settings,
                clock_us=clock_us,
                dice=dice,
                later=later,
                first=State.UP,
            )
        self._authority = authority
        self._wanted = dict(routes)
        self._routes: dict[str, Route] = {}
        self._by_domain: dict[str, Route] = {}
        self._look_timer: Timer | None = None
        self._looking = False
        self._strangers: tuple[str, ...] = ()
        self._strangers_since_us = 0
        self._running = False

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Begin to relay: what waits in the spool, and what is accepted from now on."""
        self._running = True
        self._spool.set_accept_listener(self._accepted)
        self._lay_routes()
        self._look()

    def reload(self, routes: Mapping[str, RouteSettings], settings: RelaySettings) -> None:
        """Take new routes and settings. Sessions to next hops that stay are kept."""
        self._means.settings = settings
        self._wanted = dict(routes)
        if self._running:
            self._lay_routes()
            self._look()

    async def stop(self, grace_seconds: float) -> None:
        """Stop sending, QUIT, wait for replies under way, settle; at most `grace_seconds`.

        What got no reply by then stays queued: it will be sent again. Call it once
        more after the connector was closed, to settle what that gave back.
        """
        self._running = False
        self._spool.set_accept_listener(None)
        if self._look_timer is not None:
            self._look_timer.cancel()
        for route in self._routes.values():
            route.retire()
        if self.board is not None:
            await self.board.stop()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_seconds
        if self._means.tasks:
            await asyncio.wait(set(self._means.tasks), timeout=grace_seconds)
        leftover = set(self._means.tasks)
        for task in leftover:
            task.cancel()
        if leftover:
            await asyncio.wait(leftover)
        try:
            async with asyncio.timeout_at(max(deadline, loop.time() + 0.1)):
                await self._ledger.flush()
        except TimeoutError:
            observe.trouble("relay", "some outcomes could not be stored; those are sent again")
            self._ledger.abandon()
            await self._ledger.flush()
        self._routes.clear()
        self._by_domain.clear()

    # ------------------------------------------------------------------ what others ask

    def retry(self, domain: str | None = None) -> None:
        """Try now: one domain's next hop, or all. To be called after every operator's move.

        What is ready but not sent goes back to the table first, so moves made
        there (hold, delete, due now) count from here on.
        """
        if domain is None:
            for route in self._routes.values():
                route.retry()
        elif (one := self._by_domain.get(domain)) is not None:
            one.retry()

    def status(self) -> list[NextHopStatus]:
        """Every next hop, by name."""
        return [self._routes[key].status() for key in sorted(self._routes)]

    def alerts(self) -> list[Condition]:
        """What a person should know of now, next hops first."""
        conditions = [
            condition
            for key in sorted(self._routes)
            if (condition := self._routes[key].condition()) is not None
        ]
        if self._strangers:
            text = _describe_strangers(self._strangers)
            conditions.append(
                Condition(kind="not-configured", text=text, since_us=self._strangers_since_us)
            )
        if self._ledger.trouble:
            text = f"outcomes of deliveries cannot be stored: {self._ledger.trouble}"
            since_us = self._ledger.trouble_since_us
            conditions.append(Condition(kind="settle", text=text, since_us=since_us))
        return conditions

    # ------------------------------------------------------------------ routes

    def _lay_routes(self) -> None:
        """Make `_routes` what `_wanted` says; those that stay keep state and sessions."""
        if self.board is not None:
            self.board.set_routes(self._wanted, self._means.settings)
        shared = group_routes(self._wanted)
        for key in self._routes.keys() - shared.keys():
            self._routes.pop(key).retire()
        self._by_domain = {}
        for key, (hops, domains) in shared.items():
            route = self._routes.get(key)
            if route is None:
                route = self._routes[key] = Route(key, self._means, hops, domains, self._authority)
                route.start()
            else:
                route.set_domains(domains)
            for domain in domains:
                self._by_domain[domain] = route

    def _wake_all(self) -> None:
        for route in self._routes.values():
            route.pool.wake()

    # ------------------------------------------------------------------ the bell and the table

    def _accepted(self, message: QueuedMessage) -> None:
        recipients = message.recipients
        domain = recipients[0].domain
        if len(recipients) == 1 or all(r.domain == domain for r in recipients):
            route = self._by_domain.get(domain)
            if route is not None:
                route.queue.ring(domain, message, whole=True)
            return
        for domain in dict.fromkeys(r.domain for r in recipients):
            route = self._by_domain.get(domain)
            if route is not None:
                part = tuple(r for r in recipients if r.domain == domain)
                route.queue.ring(
                    domain, msgspec.structs.replace(message, recipients=part), whole=False
                )

    def _look(self) -> None:
        if not self._running:
            return
        self._look_again(LOOK_SECONDS)
        if not self._looking:
            self._looking = True
            self._means.start(self._compare(), "comparing with the spool")

    def _look_again(self, seconds: float) -> None:
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._look_timer = self._means.later(seconds, self._look)

    async def _compare(self) -> None:
        try:
            queued = await self._spool.queued_domains()
        except StorageError as error:
            observe.trouble("relay", "the spool cannot be read", error)
            if self._running:
                self._look_again(CLAIM_RETRY_SECONDS)
            return
        finally:
            self._looking = False
        if not self._running:
            return
        self._note_strangers(tuple(sorted(d for d in queued if d not in self._by_domain)))
        waiting: dict[str, list[str]] = {}
        for domain, due_us in queued.items():
            route = self._by_domain.get(domain)
            if route is not None:
                route.queue.notice(domain, due_us)
                waiting.setdefault(route.key, []).append(domain)
        for key, route in self._routes.items():
            route.recheck(waiting.get(key, ()))

    def _note_strangers(self, strangers: tuple[str, ...]) -> None:
        if strangers != self._strangers:
            if strangers:
                self._strangers_since_us = self._means.clock_us()
                observe.alert("not-configured", _describe_strangers(strangers))
            self._strangers = strangers


def _describe_strangers(domains: tuple[str, ...]) -> str:
    named = ", ".join(domains[:NAMED_DOMAINS])
    more = f" and {len(domains) - NAMED_DOMAINS} more" if len(domains) > NAMED_DOMAINS else ""
    return f"mail is queued for {named}{more}, no longer configured; it waits until it expires"
