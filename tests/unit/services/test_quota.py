"""Quotas of domains: counted over workers, for that domain alone, and gone by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fakes.memory_spool import MemorySpool
from posthouse.domain.verdict import RECIPIENT_OK, Verdict
from posthouse.errors import StorageBroken
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.ports_spool import OperatorAction, Selection
from posthouse.services.quota import Limit, Quotas
from posthouse.storage.usage_files import UsageFiles

CLIENT = Client(address="192.0.2.1", port=25)


class Worker:
    """One worker's quotas with its spool."""

    def __init__(self, directory: Path, index: int, limits: dict[str, Limit]) -> None:
        self.spool = MemorySpool(shard=index)
        self.board = UsageFiles(directory, index=index, workers=2)
        self.quotas = Quotas(
            limits, spools=lambda: [self.spool], board=self.board, clock_us=lambda: 5
        )

    async def accept(self, *domains: str, size: int = 100) -> None:
        incoming = self.spool.begin()
        incoming.write(bytes(size))
        recipients = tuple(Recipient(address=f"a@{d}", domain=d) for d in domains)
        envelope = Envelope(sender="", recipients=recipients)
        await self.spool.commit(incoming, envelope=envelope, client=CLIENT)
        self.quotas.accepted([Verdict(RECIPIENT_OK, d) for d in domains], size)

    async def count(self) -> None:
        self.quotas.forget_count()
        await self.quotas.look()

    async def delete(self, domain: str) -> None:
        selection = Selection(domain=domain)
        await self.spool.act(selection, OperatorAction.DELETE, now_us=1)


async def test_a_full_domain_is_refused_alone(tmp_path: Path) -> None:
    """By count or by size, at once; others are not concerned; it comes back by itself."""
    limits = {"a.example": Limit(count=2), "b.example": Limit(size_bytes=250)}
    worker = Worker(tmp_path, 0, limits)
    await worker.quotas.look()
    quotas = worker.quotas
    await worker.accept("a.example")
    assert not quotas.refuses("a.example", 0)
    await worker.accept("a.example", "b.example", "c.example")
    assert quotas.refuses("a.example", 0)
    assert not quotas.refuses("b.example", 0)
    assert not quotas.refuses("c.example", 10**9)
    await worker.accept("b.example", "b.example", size=150)
    assert quotas.full.keys() == {"a.example", "b.example"}
    await worker.count()
    assert quotas.full.keys() == {"a.example", "b.example"}
    await worker.delete("a.example")
    await worker.count()
    assert quotas.full.keys() == {"b.example"}


async def test_what_is_declared_too_large_is_refused_before_it_comes(tmp_path: Path) -> None:
    """SIZE= at RCPT; 0 means not declared."""
    worker = Worker(tmp_path, 0, {"a.example": Limit(size_bytes=250), "n.example": Limit(count=9)})
    await worker.accept("a.example")
    assert worker.quotas.refuses("a.example", 151)
    assert not worker.quotas.refuses("a.example", 150)
    assert not worker.quotas.refuses("a.example", 0)
    assert not worker.quotas.refuses("n.example", 10**9)


async def test_at_the_end_only_what_nobody_may_have_is_refused(tmp_path: Path) -> None:
    """One domain's quota keeps no mail from another."""
    worker = Worker(tmp_path, 0, {"a.example": Limit(size_bytes=250)})
    both = [Verdict(RECIPIENT_OK, d) for d in ("a.example", "c.example")]
    assert worker.quotas.refuses_all(both[:1], 300)
    assert not worker.quotas.refuses_all(both[:1], 200)
    assert not worker.quotas.refuses_all(both, 300)
    assert not worker.quotas.refuses_all([], 300)


async def test_workers_count_together(tmp_path: Path) -> None:
    """What another has counts as soon as it has told, and what it no longer has."""
    limits = {"a.example": Limit(count=3)}
    one, two = (Worker(tmp_path, index, limits) for index in (0, 1))
    for worker in (one, two):
        await worker.quotas.look()
    await one.accept("a.example")
    await one.accept("a.example")
    await two.accept("a.example")
    assert not two.quotas.full
    await one.quotas.look()
    await two.quotas.look()
    assert two.quotas.full
    await one.quotas.look()
    assert one.quotas.full
    await one.delete("a.example")
    await one.count()
    await two.quotas.look()
    assert not two.quotas.full


async def test_what_lay_there_before_counts(tmp_path: Path) -> None:
    """A restart forgets nothing; held mail counts as well."""
    worker = Worker(tmp_path, 0, {})
    await worker.accept("a.example")
    await worker.spool.act(Selection(), OperatorAction.HOLD, now_us=1)
    worker.quotas.reload({"a.example": Limit(count=1)})
    await worker.quotas.look()
    assert worker.quotas.full == {"a.example": 5}
    worker.quotas.reload({})
    assert worker.quotas.full == {}


async def test_a_spool_that_cannot_be_counted_changes_nothing(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """What was known stays, and what was accepted meanwhile."""
    worker = Worker(tmp_path, 0, {"a.example": Limit(count=2)})
    await worker.accept("a.example")
    await worker.count()
    await worker.accept("a.example")

    async def broken() -> None:
        raise StorageBroken("disk")

    with monkeypatch.context() as patched:
        patched.setattr(worker.spool, "totals", broken)
        await worker.count()
        assert worker.quotas.full
    await worker.count()
    assert worker.quotas.full


async def test_files_that_cannot_be_read_count_as_they_were(tmp_path: Path) -> None:
    """A half written or lost file is a little off, never an error."""
    limits = {"a.example": Limit(count=1)}
    one, two = (Worker(tmp_path, index, limits) for index in (0, 1))
    await one.accept("a.example")
    await one.quotas.look()
    await two.quotas.look()
    assert two.quotas.full
    (tmp_path / "usage-0.json").write_bytes(b'{"a.exam')
    await two.quotas.look()
    assert two.quotas.full
    (tmp_path / "usage-0.json").unlink()
    await two.quotas.look()
    assert not two.quotas.full
    (tmp_path / "usage-1.json.new").mkdir()
    (tmp_path / "usage-1.new").mkdir()
    await two.accept("a.example")
    await two.quotas.look()
    assert two.quotas.full
