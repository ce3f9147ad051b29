"""Publishing recipient lists and following them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fakes.directory import finding_in, finding_of
from fakes.looks import Looks
from posthouse import observe
from posthouse.domain.finding import Finding
from posthouse.services.recipients import Directories, Publisher
from posthouse.storage.recipient_lists import RecipientIndexes


class Node:
    """One publisher and one worker's directories over the same files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root / "list"
        self.log = root / "log"
        self.indexes = RecipientIndexes(root / "recipients")
        self.indexes.prepare()
        self.looks = Looks()
        self.publisher = self.make_publisher()

    def make_publisher(self) -> Publisher:
        return Publisher(
            self.indexes,
            {"example.com": str(self.source)},
            now_us=lambda: 7,
            wait=self.looks.wait,
        )

    def find(self, local_part: str) -> Finding:
        return finding_in(Directories(self.indexes, ["example.com"]), "example.com", local_part)

    def problem(self) -> object:
        """What the publisher says; workers must say the same."""
        problem = self.publisher.describe()["example.com"]["problem"]
        seen = Directories(self.indexes, ["example.com"]).describe()["example.com"]["problem"]
        assert seen == (problem or ("" if seen != "no list loaded" else seen))
        return problem

    def alerts(self) -> list[str]:
        observe.flush()
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        self.log.write_text("")
        return [line["text"] for line in lines if line["event"] == "alert"]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.publisher.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    observe.configure(fmt="json", to=str(made.log))
    yield made
    observe.configure(to="stderr")


async def test_publishes_at_the_start(node: Node) -> None:
    """After the first refresh the list is in force."""
    node.source.write_text("alice\n")
    await node.publisher.refresh()
    assert node.find("alice") is Finding.VOUCHED
    assert node.publisher.describe()["example.com"] == {
        "source": str(node.source),
        "entries": 1,
        "catch_all": False,
        "problem": "",
    }
    assert node.alerts() == []


async def test_takes_up_a_change_once_it_is_quiet(node: Node) -> None:
    """A changed file is read when two looks in a row found it the same."""
    node.source.write_text("alice\n")
    await node.publisher.refresh()
    async with node.running():
        node.source.write_text("bob\n")
        await node.looks.let()
        assert node.find("bob") is Finding.ABSENT
        node.source.write_text("bob\ncarol\n")
        await node.looks.let()
        assert node.find("carol") is Finding.ABSENT
        await node.looks.let()
        assert node.find("carol") is node.find("bob") is Finding.VOUCHED
        assert node.find("alice") is Finding.ABSENT


async def test_broken_file_keeps_the_old_list_and_is_reported_once(node: Node) -> None:
    """Mistakes are alerts, once; the list of before stays, and a mended file heals it."""
    node.source.write_text("alice\n")
    await node.publisher.refresh()
    async with node.running():
        node.source.write_text("bob\n<carol>\n")
        await node.looks.let(5)
        assert node.find("alice") is Finding.VOUCHED
        assert node.find("bob") is Finding.ABSENT
        alerts = node.alerts()
        assert len(alerts) == 2
        assert f"{node.source}:2: not an address" in alerts[0]
        assert "the list of before (1 recipients) stays in force" in alerts[1]
        assert "not an address" in str(node.problem())
        node.source.write_text("bob\n")
        await node.looks.let(2)
        assert node.find("bob") is Finding.VOUCHED
        assert node.problem() == ""


@pytest.mark.parametrize("how", ["emptied", "removed"])
async def test_vanished_file_keeps_the_old_list(node: Node, how: str) -> None:
    """A file that shrank to nothing or is gone does not make everybody unknown."""
    node.source.write_text("alice\n")
    await node.publisher.refresh()
    async with node.running():
        if how == "emptied":
            node.source.write_bytes(b"")
        else:
            node.source.unlink()
        await node.looks.let(3)
        assert node.find("alice") is Finding.VOUCHED
        assert len(node.alerts()) == 2


async def test_nobody_is_allowed_but_told(node: Node) -> None:
    """A file that names nobody is believed, with a warning."""
    node.source.write_text("# later\n")
    await node.publisher.refresh()
    assert node.find("alice") is Finding.ABSENT
    assert "names nobody" in node.alerts()[0]
    assert "names nobody" in str(node.problem())


async def test_without_any_list_nothing_is_known(node: Node) -> None:
    """A missing file at the first start refuses nobody."""
    await node.publisher.refresh()
    assert node.find("alice") is Finding.UNKNOWN
    assert "no list yet" in node.alerts()[-1]
    async with node.running():
        node.source.write_text("alice\n")
        await node.looks.let(2)
        assert node.find("alice") is Finding.VOUCHED
        assert node.problem() == ""


async def test_restart_reuses_what_is_current(node: Node, tmp_path: Path) -> None:
    """A restart with an unchanged source builds nothing; a damaged index is built again."""
    node.source.write_text("alice\n")
    await node.publisher.refresh()
    index = tmp_path / "recipients" / "example.com.idx"
    inode = index.stat().st_ino
    node.publisher = node.make_publisher()
    await node.publisher.refresh()
    assert index.stat().st_ino == inode
    assert node.publisher.describe()["example.com"]["entries"] == 1
    data = index.read_bytes()
    index.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    node.publisher = node.make_publisher()
    await node.publisher.refresh()
    assert node.indexes.verified_facts("example.com") is not None


async def test_restart_with_a_broken_source_keeps_the_old_list(node: Node) -> None:
    """What was in force before a restart outlives a file that broke meanwhile."""
    node.source.write_text("alice\n")
    await node.publisher.refresh()
    node.source.write_text("<>\n")
    node.publisher = node.make_publisher()
    await node.publisher.refresh()
    assert node.find("alice") is Finding.VOUCHED
    assert "(1 recipients) stays in force" in node.alerts()[-1]


async def test_own_failure_is_tried_again_later(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is reported, does not cost an attempt each second, and heals by itself."""
    node.source.write_text("alice\n")
    attempts = 0

    def fail(_descriptor: int) -> None:
        nonlocal attempts
        attempts += 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("posthouse.storage.recipient_index.os.fsync", fail)
    await node.publisher.refresh()
    assert "No space left" in str(node.problem())
    async with node.running():
        await node.looks.let(30)
        assert attempts == 1
        monkeypatch.undo()
        await node.looks.let(31)
        assert node.find("alice") is Finding.VOUCHED
        assert node.problem() == ""


async def test_sources_can_be_changed(node: Node, tmp_path: Path) -> None:
    """After a reload of the configuration new domains are published, old ones kept as they are."""
    node.source.write_text("alice\n")
    await node.publisher.refresh()
    other = tmp_path / "other"
    other.write_text("bob\n")
    directories = Directories(node.indexes, ["example.com"])
    node.publisher.set_sources({"example.com": str(node.source), "example.net": str(other)})
    await node.publisher.refresh()
    directories.set_domains(["example.com", "example.net"])
    assert finding_in(directories, "example.net", "bob") is Finding.VOUCHED
    assert finding_in(directories, "example.com", "alice") is Finding.VOUCHED
    directories.set_domains(["example.net"])
    assert finding_in(directories, "example.com", "alice") is Finding.UNKNOWN


async def test_directories_swap_a_replaced_list(node: Node) -> None:
    """A running worker sees a new list whole; who holds the old one goes on with it."""
    node.source.write_text("alice\n")
    await node.publisher.refresh()
    looks = Looks()
    directories = Directories(node.indexes, ["example.com", "example.net"], wait=looks.wait)
    task = asyncio.create_task(directories.run())
    held = directories.get("example.com")
    await looks.let()
    node.source.write_text("bob\n")
    await node.publisher.refresh()
    await looks.let(2)
    assert finding_in(directories, "example.com", "bob") is Finding.VOUCHED
    assert finding_in(directories, "example.com", "alice") is Finding.ABSENT
    assert finding_of(held, "alice") is Finding.VOUCHED
    assert finding_in(directories, "example.net", "bob") is Finding.UNKNOWN
    assert directories.describe()["example.com"]["entries"] == 1
    assert directories.describe()["example.net"]["problem"] == "no list loaded"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_directories_keep_what_they_have(node: Node, tmp_path: Path) -> None:
    """A damaged index does not take a loaded list out of force."""
    node.source.write_text("alice\n")
    await node.publisher.refresh()
    directories = Directories(node.indexes, ["example.com"])
    index = tmp_path / "recipients" / "example.com.idx"
    fresh = tmp_path / "fresh"
    fresh.write_bytes(b"nonsense")
    os.replace(fresh, index)
    directories.refresh()
    directories.refresh()
    assert finding_in(directories, "example.com", "alice") is Finding.VOUCHED
    assert node.alerts() == ["example.com: its index is damaged"]


async def test_domain_that_lost_its_list_is_unknown(node: Node, tmp_path: Path) -> None:
    """When a domain's list is no longer configured, what was published of it counts no more."""
    node.source.write_text("alice\n")
    await node.publisher.refresh()
    directories = Directories(node.indexes, ["example.com"])
    assert finding_in(directories, "example.com", "alice") is Finding.VOUCHED
    node.publisher.set_sources({})
    await node.publisher.refresh()
    directories.refresh()
    assert finding_in(directories, "example.com", "alice") is Finding.UNKNOWN
    assert list((tmp_path / "recipients").iterdir()) == []


@pytest.mark.parametrize("half", ["user\nbob@examp", "u\n"])
async def test_half_a_copy_waits(node: Node, half: str) -> None:
    """A file cut within a line, or much smaller than before, is taken only when long unchanged."""
    node.source.write_text("user\nbob\ncarol\n")
    await node.publisher.refresh()
    node.source.write_text(half)
    async with node.running():
        await node.looks.let(5)
        assert node.find("carol") is Finding.VOUCHED
        assert "looks like half a copy" in node.log.read_text()
        await node.looks.let(30)
        assert node.find("carol") is Finding.ABSENT


async def test_half_a_copy_is_taken_on_reload(node: Node) -> None:
    """Who says reload means it."""
    node.source.write_text("user\nbob\ncarol\n")
    await node.publisher.refresh()
    node.source.write_text("user")
    await node.publisher.refresh()
    assert node.find("carol") is Finding.ABSENT
