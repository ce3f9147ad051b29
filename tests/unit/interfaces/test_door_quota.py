"""Quotas at the door: 452 for one domain alone, at RCPT and at the end of the data."""

from __future__ import annotations

from collections.abc import Sequence

from fakes.memory_spool import MemorySpool
from fakes.open_door import open_door, stored, talk
from fakes.server_owner import make_reception
from posthouse.domain.verdict import Verdict


class Gate:
    """A `QuotaGate` that knows what is full, and what is too large."""

    def __init__(self, *full: str, most: int = 10**9) -> None:
        self.full = set(full)
        self.most = most
        self.taken: list[tuple[list[str], int]] = []

    def refuses(self, domain: str, size_bytes: int) -> bool:
        return domain in self.full or size_bytes > self.most

    def refuses_all(self, verdicts: Sequence[Verdict], size_bytes: int) -> bool:
        return all(self.refuses(verdict.domain, size_bytes) for verdict in verdicts)

    def accepted(self, verdicts: Sequence[Verdict], size_bytes: int) -> None:
        self.taken.append(([verdict.domain for verdict in verdicts], size_bytes))


async def test_rcpt_of_a_full_domain() -> None:
    """452 4.3.1, its postmaster too; unknown domains and users of others hear what they always do."""
    spool = MemorySpool()
    reception = make_reception(spool)
    reception.quota = gate = Gate("example.com")
    async with open_door(spool, reception=reception) as (_, port), talk(port) as client:
        await client.hear()
        await client.say("EHLO c.example")
        await client.say("MAIL FROM:<a@b.example>")
        reply = await client.say("RCPT TO:<alice@example.com>")
        assert reply.startswith("452 4.3.1 <alice@example.com>: ")
        assert (await client.say("RCPT TO:<postmaster@example.com>")).startswith("452 4.3.1")
        assert (await client.say("RCPT TO:<x@elsewhere.example>")).startswith("550 5.7.1")
        gate.full.clear()
        assert (await client.say("RCPT TO:<alice@example.com>")).startswith("250")
        gate.most = 100
        await client.say("RSET")
        await client.say("MAIL FROM:<a@b.example> SIZE=101")
        assert (await client.say("RCPT TO:<alice@example.com>")).startswith("452 4.3.1")
        await client.say("RSET")
        await client.say("MAIL FROM:<a@b.example> SIZE=100")
        assert (await client.say("RCPT TO:<alice@example.com>")).startswith("250")


async def test_a_message_that_turns_out_too_large() -> None:
    """452 4.3.1 at its end and nothing stored; what fits is counted."""
    spool = MemorySpool()
    reception = make_reception(spool)
    reception.quota = gate = Gate(most=1000)
    async with open_door(spool, reception=reception) as (_, port), talk(port) as client:
        await client.hear()
        await client.say("EHLO c.example")
        for size, wanted in ((2000, "452 4.3.1"), (10, "250 2.0.0")):
            await client.say("MAIL FROM:<a@b.example>")
            await client.say("RCPT TO:<alice@example.com>")
            await client.say("DATA")
            reply = await client.say("x" * size + "\r\n.")
            assert reply.startswith(wanted)
    assert await stored(spool) == 1
    ((domains, size),) = gate.taken
    (row,) = await spool.totals()
    assert (domains, size) == (["example.com"], row.size_bytes)
