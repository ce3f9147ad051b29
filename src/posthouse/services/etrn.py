"""ETRN (RFC 1985): the primary is back and asks for its mail.

Granted to the primary's own addresses (where the domain's next hop leads now)
and to whom SMTP AUTH proved. We never send where the asker is: a new
connection goes to the next hop, as always, so a forged request gains nothing
but a look a little earlier. All others hear 459, the same for domains that we
back up and for those that we do not.

`ETRN example.com` means that domain, `@example.com` its subdomains too, as far
as they are configured. Named queues (`#`) do not exist here: 458.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final, Protocol

from posthouse import observe
from posthouse.errors import AddressError
from posthouse.mail.address import normalize_domain
from posthouse.mail.reply import Reply
from posthouse.ports_relay import Target
from posthouse.ports_session import SessionFacts

QUIET_US: Final = 10_000_000
"""One look for a domain in this time: who asks again meanwhile is told the same."""

MAX_DOMAINS: Final = 100

CountPending = Callable[[Collection[str]], Awaitable[int | None]]
"""How many recipients wait for these domains in the whole node; None: not to be told now."""


class Ways(Protocol):
    """Where a domain's primary is."""

    async def find_targets(self, domain: str) -> tuple[Target, ...]: ...


class EtrnDesk:
    """See the module. Called in the event loop; raises nothing.

    rights: the domains of each identity that AUTH can prove; retry: look at one domain's next hop.
    """

    def __init__(
        self,
        domains: Collection[str],
        *,
        rights: Mapping[str, Collection[str]],
        ways: Ways,
        count: CountPending,
        retry: Callable[[str], None],
        clock_us: Callable[[], int],
    ) -> None:
        self.domains = domains
        self.rights = rights
        self._ways = ways
        self._count = count
        self._retry = retry
        self._clock_us = clock_us
        self._asked: dict[str, int] = {}

    async def answer(self, node: str, session: SessionFacts) -> Reply:
        """The reply to ETRN, and what it starts."""
        if node.startswith("#"):
            return Reply(458, "4.3.0", f"Unable to queue messages for node {node}")
        try:
            name = normalize_domain(node.removeprefix("@"))
        except AddressError:
            return Reply(501, "5.5.4", "Syntax: ETRN [@]domain")
        wanted = [d for d in self.domains if d == name]
        if node.startswith("@"):
            wanted += [d for d in self.domains if d.endswith(f".{name}")][: MAX_DOMAINS - 1]
        granted = [domain for domain in wanted if await self._may(domain, session)]
        if not granted:
            return Reply(459, "4.7.1", f"Node {name} not allowed: not asked by its primary")
        pending = await self._count(granted)
        if pending == 0:
            return Reply(251, "2.0.0", f"OK, no messages waiting for node {name}")
        now_us = self._clock_us()
        for domain in granted:
            if now_us - self._asked.get(domain, -QUIET_US) >= QUIET_US:
                self._asked[domain] = now_us
                self._retry(domain)
                observe.note("etrn", f"{domain}: asked for by {session.address}", domain=domain)
        if pending is None:
            return Reply(250, "2.0.0", f"OK, queuing for node {name} started")
        return Reply(253, "2.0.0", f"OK, {pending} pending messages for node {name} started")

    async def _may(self, domain: str, session: SessionFacts) -> bool:
        if session.identity:
            return domain in self.rights.get(session.identity, ())
        return any(t.address == session.address for t in await self._ways.find_targets(domain))
