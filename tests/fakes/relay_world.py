"""Everything a relay needs, faked, with the few things a test wants to say about it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Mapping, Sequence

from fakes.connector import FakeConnector, FakePeer
from fakes.memory_spool import MemorySpool
from fakes.resolver import FakeResolver
from fakes.timers import Timers, turn_over
from posthouse.domain.drain import State
from posthouse.domain.nexthop import HostPort
from posthouse.errors import StorageError
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.ports_agreements import AgreementSecrets
from posthouse.ports_spool import (
    Claim,
    Cursor,
    QueuedMessage,
    QueuedRecipient,
    Selection,
    Settlement,
)
from posthouse.services.nexthops import NextHopBoard
from posthouse.services.relay import Relay
from posthouse.services.relay_settings import NextHopStatus, RelaySettings, RouteSettings

CLIENT = Client(address="192.0.2.200", port=4711)
PRIMARY = "192.0.2.1"
OTHER = "192.0.2.2"


def fixed(*places: str) -> RouteSettings:
    """A route to fixed addresses, port 25."""
    return RouteSettings(hops=tuple(HostPort(place) for place in places))


MX = RouteSettings()


class WatchedSpool(MemorySpool):
    """A MemorySpool that notes what it is asked and can fail to settle or to read."""

    def __init__(self, timers: Timers) -> None:
        super().__init__(0, timers.clock_us)
        self.claims: list[tuple[str, Cursor | None]] = []
        self.settle_calls: list[Sequence[Settlement]] = []
        self.settle_trouble: StorageError | None = None
        self.claim_trouble: StorageError | None = None
        self.claim_gate: asyncio.Event | None = None  # a claim has read, but does not return yet

    async def claim(
        self,
        domain: str,
        *,
        after: Cursor | None,
        now_us: int,
        max_messages: int,
        max_bytes: int,
    ) -> Claim:
        self.claims.append((domain, after))
        if self.claim_trouble is not None:
            raise self.claim_trouble
        found = await super().claim(
            domain, after=after, now_us=now_us, max_messages=max_messages, max_bytes=max_bytes
        )
        if self.claim_gate is not None:
            await self.claim_gate.wait()
        return found

    def settle(self, settlements: Sequence[Settlement]) -> Awaitable[None]:
        if self.settle_trouble is not None:
            raise self.settle_trouble
        self.settle_calls.append(tuple(settlements))
        return super().settle(settlements)


class World:
    """A relay over fakes. Nothing runs before `start`."""

    def __init__(
        self,
        routes: Mapping[str, RouteSettings],
        settings: RelaySettings | None = None,
        resolver: FakeResolver | None = None,
        secrets: AgreementSecrets | None = None,
        beside: World | None = None,
    ) -> None:
        """beside: another worker of the same node, with the same clock, peers and states."""
        self.timers: Timers = beside.timers if beside else Timers()
        self.spool = WatchedSpool(self.timers)
        self.connector: FakeConnector = beside.connector if beside else FakeConnector()
        self.resolver = resolver or FakeResolver()
        self.settings = settings or RelaySettings(own_names=frozenset({"mx2.example.net"}))
        self.relay = Relay(
            spool=self.spool,
            connector=self.connector,
            resolver=self.resolver,
            routes=routes,
            settings=self.settings,
            clock_us=self.timers.clock_us,
            dice=random.Random(7),
            later=self.timers.later,
            authority=beside.board if beside else None,
            secrets=secrets,
        )

    @property
    def board(self) -> NextHopBoard:
        """Who decides the states here."""
        assert self.relay.board is not None
        return self.relay.board

    def peer(self, address: str = PRIMARY) -> FakePeer:
        return self.connector.peer(address)

    async def start(self) -> None:
        self.relay.start()
        await turn_over()

    async def accept(
        self,
        *addresses: str,
        body: bytes = b"Subject: x\r\n\r\nx\r\n",
        sender: str = "from@client.example",
    ) -> int:
        """Take one message as reception does; returns its queue id."""
        incoming = self.spool.begin()
        incoming.write(body)
        envelope = Envelope(
            sender=sender,
            recipients=tuple(
                Recipient(address=a, domain=a.rpartition("@")[2])
                for a in addresses or ("user@example.com",)
            ),
        )
        await self.spool.commit(incoming, envelope=envelope, client=CLIENT)
        return incoming.queue_id

    async def accept_many(self, count: int, address: str = "user@example.com") -> list[int]:
        return [await self.accept(address) for _ in range(count)]

    async def rows(self) -> dict[tuple[int, int], QueuedRecipient]:
        """What is left in the spool, by (queue id, seq)."""
        messages: Sequence[QueuedMessage] = await self.spool.list_messages(
            Selection(), after=None, limit=100_000
        )
        return {(m.queue_id, r.seq): r for m in messages for r in m.recipients}

    async def row(self, queue_id: int, seq: int = 0) -> QueuedRecipient:
        return (await self.rows())[queue_id, seq]

    def status(self, key: str | None = None) -> NextHopStatus:
        found = self.relay.status()
        return found[0] if key is None else next(s for s in found if s.next_hop == key)

    def state(self) -> State:
        """Of the first next hop."""
        return self.status().state
