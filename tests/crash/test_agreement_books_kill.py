"""kill -9 of the process that keeps a book: whatever it was told is on disk, is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from posthouse.storage.forwarder_book import SqliteForwarderBook

WRITER = """
import asyncio, sys
from pathlib import Path
from posthouse.domain.agreement import Standing, State
from posthouse.ports_agreements import ForwarderEntry
from posthouse.storage.forwarder_book import SqliteForwarderBook

async def main():
    book = await SqliteForwarderBook.open(Path(sys.argv[1]))
    async def write(lane):
        for number in range(10_000_000):
            key = f"{lane}-{number}@example.com"
            entry = ForwarderEntry(canonical=key, domain="example.com", address=key,
                                   standing=Standing(State.SEEN), recipe_id=f"r-{lane}-{number}")
            await book.change([key], lambda _key, _old: entry)
            sys.stdout.write(key + "\\n")
            sys.stdout.flush()
    await asyncio.gather(*(write(lane) for lane in range(8)), publish(book))

async def publish(book):
    while True:
        await asyncio.sleep(0.01)
        await book.publish()

asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 40, 333])
async def test_what_was_confirmed_is_there(tmp_path: Path, lines: int) -> None:
    """Killed after so many confirmations, amid writes and swaps."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    confirmed = [writer.stdout.readline().strip() for _ in range(lines)]
    writer.kill()
    confirmed += [line.strip() for line in writer.stdout if line.endswith("\n")]
    writer.wait()
    writer.stdout.close()
    book = await SqliteForwarderBook.open(tmp_path)
    await book.publish()
    missing = [key for key in confirmed if await book.find(key) is None]
    await book.close()
    assert missing == []
    assert len(confirmed) >= lines
