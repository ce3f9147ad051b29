"""The file both books stand on: shared flushes, failures that harm nobody else, damage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from posthouse.errors import StorageBroken, StorageFull
from posthouse.storage.book_file import BookFile, open_book_to_read

TABLES = "CREATE TABLE t (n INTEGER PRIMARY KEY)"


@pytest.fixture
async def book(tmp_path: Path) -> AsyncIterator[BookFile]:
    opened = await BookFile.open(tmp_path / "deep" / "book.db", tables=TABLES, layout=1)
    yield opened
    await opened.close()


def insert(number: int, *, then: Exception | None = None):  # type: ignore[no-untyped-def]
    def work(connection: apsw.Connection) -> int:
        connection.execute("INSERT INTO t VALUES (?)", (number,))
        if then is not None:
            raise then
        return number

    return work


async def numbers(book: BookFile) -> list[int]:
    return await book.read(lambda c: [row[0] for row in c.execute("SELECT n FROM t ORDER BY n")])


async def test_a_failing_job_leaves_no_trace_and_harms_no_other(book: BookFile) -> None:
    """Of jobs that share a flush each succeeds or fails by itself."""
    results = await asyncio.gather(
        book.write(insert(1)),
        book.write(insert(2, then=RuntimeError("no"))),
        book.write(insert(3)),
        book.write(insert(3)),  # a second one
        book.write(insert(4)),
        return_exceptions=True,
    )
    assert results[0] == 1
    assert isinstance(results[1], RuntimeError)
    assert isinstance(results[3], StorageBroken)
    assert results[4] == 4
    assert await numbers(book) == [1, 3, 4]


async def test_jobs_share_transactions(book: BookFile) -> None:
    """A hundred changes at once cost a few flushes, not a hundred."""
    commits = 0

    def count() -> bool:
        nonlocal commits
        commits += 1
        return False

    await book.read(lambda c: c.set_commit_hook(count))
    await asyncio.gather(*(book.write(insert(n)) for n in range(100)))
    assert commits <= 10
    assert len(await numbers(book)) == 100


async def test_a_full_disk_is_said_to_be_full(book: BookFile) -> None:
    """What SQLite itself rolls back leaves the book usable."""
    await book.write(insert(1))
    pages = await book.read(lambda c: c.pragma("page_count"))
    await book.read(lambda c: c.pragma("max_page_count", pages))

    def fill(connection: apsw.Connection) -> None:
        connection.execute("CREATE TABLE large AS SELECT randomblob(100000) AS x")

    with pytest.raises(StorageFull):
        await book.write(fill)
    await book.read(lambda c: c.pragma("max_page_count", 1_000_000))
    await book.write(insert(2))
    assert await numbers(book) == [1, 2]


async def test_a_cancelled_caller_stops_nobody(book: BookFile) -> None:
    """Its job is done or not; the next one's answer is its own."""
    task = asyncio.ensure_future(book.write(insert(1)))
    await asyncio.sleep(0)
    task.cancel()
    assert await book.write(insert(2)) == 2
    assert set(await numbers(book)) >= {2}


async def test_closed_and_foreign_books(tmp_path: Path, book: BookFile) -> None:
    """A closed book, another layout, a file that is none: each says so."""
    await book.write(insert(7))
    await book.close()
    await book.close()
    with pytest.raises(StorageBroken):
        await book.write(insert(8))
    with pytest.raises(StorageBroken, match="layout 1"):
        await BookFile.open(book.path, tables=TABLES, layout=2)
    (tmp_path / "rubbish.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageBroken):
        await BookFile.open(tmp_path / "rubbish.db", tables=TABLES, layout=1)
    with pytest.raises(StorageBroken):
        open_book_to_read(tmp_path / "nowhere.db")
    again = await BookFile.open(book.path, tables=TABLES, layout=1)
    assert await numbers(again) == [7]
    await again.close()
