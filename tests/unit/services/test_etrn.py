"""ETRN: who may ask, and what is answered (RFC 1985)."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from fakes.memory_spool import MemorySpool
from fakes.open_door import open_door, talk
from posthouse.ports_relay import Target
from posthouse.ports_session import SessionFacts
from posthouse.proto.server_events import ServerLimits
from posthouse.services.etrn import QUIET_US, EtrnDesk

DOMAINS = ("example.com", "sub.example.com", "example.org")


class OneHost:
    """The primary of example.com and its subdomain is 192.0.2.1."""

    async def find_targets(self, domain: str) -> tuple[Target, ...]:
        if not domain.endswith("example.com"):
            return (Target(host="other.example", address="192.0.2.9"),)
        return tuple(Target(host="p.example", address=a) for a in ("2001:db8::1", "192.0.2.1"))


class Desk:
    def __init__(self, pending: int | None) -> None:
        self.retried: list[str] = []
        self.counted: list[str] = []
        self.now_us = 0

        async def count(domains: Collection[str]) -> int | None:
            self.counted += domains
            return pending

        self.desk = EtrnDesk(
            DOMAINS,
            rights={"ada": ("example.org",)},
            ways=OneHost(),
            count=count,
            retry=self.retried.append,
            clock_us=lambda: self.now_us,
        )

    async def ask(self, node: str, address: str = "192.0.2.1", identity: str = "") -> str:
        session = SessionFacts(address=address, network="", identity=identity)
        return str(await self.desk.answer(node, session))


@pytest.mark.parametrize(
    ("pending", "node", "said", "retried"),
    [
        (
            7,
            "example.com",
            "253 2.0.0 OK, 7 pending messages for node example.com",
            ["example.com"],
        ),
        (7, "Example.COM.", "253 2.0.0 OK, 7 pending", ["example.com"]),
        (7, "@example.com", "253 2.0.0 OK, 7 pending", ["example.com", "sub.example.com"]),
        (None, "example.com", "250 2.0.0 OK, queuing for node example.com", ["example.com"]),
        (0, "example.com", "251 2.0.0 OK, no messages waiting", []),
        (7, "#fast", "458 4.3.0 Unable to queue", []),
        (7, "example.org", "459 4.7.1 Node example.org not allowed", []),
        (7, "unknown.example", "459 4.7.1 Node unknown.example not allowed", []),
        (7, "-bad-.", "501 5.5.4", []),
        (7, "@", "501 5.5.4", []),
    ],
)
async def test_replies(pending: int | None, node: str, said: str, retried: list[str]) -> None:
    """Each reply of the RFC has its case, and only what is granted starts."""
    desk = Desk(pending)
    assert (await desk.ask(node)).startswith(said)
    assert desk.retried == retried


async def test_who_may_ask() -> None:
    """The primary's own addresses, and who proved to be somebody with that right."""
    desk = Desk(7)
    assert (await desk.ask("example.com", "2001:db8::1")).startswith("253")
    assert (await desk.ask("example.com", "192.0.2.2")).startswith("459")
    assert (await desk.ask("example.org", "192.0.2.2", "ada")).startswith("253")
    assert (await desk.ask("example.com", "192.0.2.1", "ada")).startswith("459")
    assert (await desk.ask("example.com", "192.0.2.1", "eve")).startswith("459")
    assert desk.counted == ["example.com", "example.org"]


async def test_asking_again_and_again_starts_once() -> None:
    """A client that repeats itself costs one look in ten seconds."""
    desk = Desk(7)
    for _ in range(5):
        assert (await desk.ask("example.com")).startswith("253")
    assert desk.retried == ["example.com"]
    desk.now_us = QUIET_US
    await desk.ask("example.com")
    assert desk.retried == ["example.com"] * 2


async def test_at_the_door() -> None:
    """ETRN is offered where it is answered; order and syntax are looked at first."""
    desk = Desk(3)
    spool = MemorySpool()
    limits = ServerLimits(hostname="mx2.example.net", offer_etrn=True)
    async with open_door(spool, limits=limits) as (keeper, port), talk(port) as client:
        keeper.etrn = desk.desk.answer
        await client.hear()
        assert (await client.say("ETRN example.com")).startswith("503")
        assert "250 ETRN" in await client.say("EHLO c")
        assert (await client.say("ETRN")).startswith("501")
        assert (await client.say("ETRN a b")).startswith("501")
        reply = await client.say(b"ETRN example.com\r\nNOOP\r\n")
        assert reply.startswith("459 4.7.1")
        assert (await client.hear()).startswith("250")
        await client.say("MAIL FROM:<a@b.example>")
        assert (await client.say("ETRN example.com")).startswith("503")
    async with open_door(spool) as (_, port), talk(port) as client:
        await client.hear()
        assert "ETRN" not in await client.say("EHLO c")
        assert (await client.say("ETRN example.com")).startswith("502")
