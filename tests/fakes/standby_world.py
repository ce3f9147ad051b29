"""A door with the standby modes before a spool in memory, and primaries to put behind it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import msgspec

from fakes.memory_spool import MemorySpool
from fakes.open_door import LIMITS, Talker, open_door, talk, until
from fakes.server_owner import make_reception
from posthouse.domain.standby import Standby, Turned
from posthouse.ports_relay import Target
from posthouse.ports_spool import Selection
from posthouse.ports_tls import TlsServer
from posthouse.services.proxy import Proxy
from posthouse.services.reception import Reception
from posthouse.services.standby import StandbyGate, StandbyRule
from posthouse.transports.proxy_out import ProxyConnector
from posthouse.transports.smtp_out import OutSettings

MINUTE = 60_000_000


class DictMemory:
    def __init__(self) -> None:
        self.known: dict[tuple[str, ...], Turned] = {}

    def find(self, *words: str) -> Turned | None:
        return self.known.get(words)

    def put(self, turned: Turned, *words: str) -> None:
        self.known[words] = turned


@dataclass
class World:
    """A door before `spool`; the primary listens at `ports` by domain, () = nobody to ask."""

    gate: StandbyGate
    proxy: Proxy
    connector: ProxyConnector
    reception: Reception
    spool: MemorySpool
    port: int
    memory: DictMemory
    ports: dict[str, int] = field(default_factory=dict)
    up: bool = True
    now_us: int = 1_000 * MINUTE


class FixedWays:
    def __init__(self, ports: Mapping[str, int]) -> None:
        self.ports = ports

    def next_hop_of(self, domain: str) -> str:
        return f"smtp://127.0.0.1:{self.ports.get(domain, 0)}"

    async def find_targets(self, domain: str) -> tuple[Target, ...]:
        port = self.ports.get(domain)
        return () if port is None else (Target(host="p.example", address="127.0.0.1", port=port),)


@contextlib.asynccontextmanager
async def world(
    rules: Mapping[str, StandbyRule],
    ports: dict[str, int] | None = None,
    *,
    max_sessions: int = 20,
    patience_seconds: float = 30.0,
    reply_timeout: float = 0.5,
    tls: TlsServer | None = None,
    **door: float,
) -> AsyncIterator[World]:
    spool = MemorySpool()
    reception = make_reception(spool)
    connector = ProxyConnector(
        OutSettings(
            helo_name="mx2.example.net",
            connect_timeout=1,
            greeting_timeout=reply_timeout,
            command_timeout=reply_timeout,
            data_block_timeout=reply_timeout,
            final_dot_timeout=reply_timeout,
        )
    )
    ports = ports if ports is not None else {}
    memory = DictMemory()
    made: list[World] = []
    proxy = Proxy(
        connector,
        FixedWays(ports),
        max_sessions=max_sessions,
        patience_seconds=patience_seconds,
    )
    gate = StandbyGate(
        rules,
        is_up=lambda _domain: made[0].up,
        memory=memory,
        proxy=proxy,
        clock_us=lambda: made[0].now_us,
    )
    reception.gatekeeper = gate
    reception.wrap_letter = gate.wrap
    limits = LIMITS if tls is None else msgspec.structs.replace(LIMITS, offer_starttls=True)
    async with open_door(
        spool,
        limits=limits,
        tls=tls,
        reception=reception,
        **door,  # type: ignore[arg-type]
    ) as (keeper, port):
        made.append(
            World(
                gate=gate,
                proxy=proxy,
                connector=connector,
                reception=reception,
                spool=spool,
                port=port,
                memory=memory,
                ports=ports,
            )
        )
        yield made[0]
        await until(lambda: not keeper.sessions)
    connector.close()


PROXY = {"example.com": StandbyRule(mode=Standby.PROXY)}
DEFER = {"example.com": StandbyRule(mode=Standby.DEFER)}


@contextlib.asynccontextmanager
async def client_of(w: World) -> AsyncIterator[Talker]:
    async with talk(w.port) as client:
        await client.hear()
        await client.say("EHLO client.example")
        yield client


async def bodies(spool: MemorySpool) -> list[bytes]:
    found = []
    for message in await spool.list_messages(Selection(), after=None, limit=100):
        body = await spool.open_body(message.queue_id)
        found.append(await body.read(1 << 20))
    return found
