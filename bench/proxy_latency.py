"""`standby = "proxy"`: what each command takes longer than at the primary itself.

A primary on loopback that takes its time (each reply comes `DELAY` late, as over a
distance) is talked to directly, and through a node; the difference of each command,
in units of the primary's own round trip, should be one.

    python -m bench.proxy_latency
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from peers.node import PosthouseNode

DELAY = 0.02
ROUNDS = 30
COMMANDS = ("MAIL", "RCPT", "DATA", ".")


@contextlib.asynccontextmanager
async def distant_primary() -> AsyncIterator[int]:
    """A server whose every reply comes late."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        content = False
        with contextlib.suppress(ConnectionError):
            writer.write(b"220 primary.example\r\n")
            while line := await reader.readline():
                if content and line != b".\r\n":
                    continue
                await asyncio.sleep(DELAY)
                content = not content and line.startswith(b"DATA")
                writer.write(b"354 go\r\n" if content else b"250 ok\r\n")
                if line.startswith(b"QUIT"):
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def time_commands(port: int) -> dict[str, list[float]]:
    """Milliseconds of each command, one message after the other in one session."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}

    async def say(line: bytes) -> float:
        start = time.perf_counter()
        writer.write(line + b"\r\n")
        while (reply := await reader.readline())[3:4] == b"-":
            pass
        if reply[:1] not in b"23":
            raise SystemExit(f"{line!r} was answered {reply!r}")
        return (time.perf_counter() - start) * 1000

    await reader.readline()
    await say(b"EHLO bench.example")
    for _ in range(ROUNDS):
        taken["MAIL"].append(await say(b"MAIL FROM:<a@bench.example>"))
        taken["RCPT"].append(await say(b"RCPT TO:<user@example.com>"))
        taken["DATA"].append(await say(b"DATA"))
        taken["."].append(await say(b"Subject: x\r\n\r\n" + b"x" * 4000 + b"\r\n."))
    writer.close()
    return taken


async def measure() -> None:
    """Print the table."""
    async with distant_primary() as primary:
        direct = await time_commands(primary)
        with tempfile.TemporaryDirectory(prefix="posthouse-bench-") as name:
            node = PosthouseNode(
                Path(name),
                next_hop=[f"smtp://127.0.0.1:{primary}"],
                domain_keys={"standby": "proxy"},
            )
            await asyncio.to_thread(node.start)
            try:
                while {hop["state"] for hop in (await asyncio.to_thread(node.status))["next_hops"]} != {"up"}:  # fmt: skip # noqa: E501
                    await asyncio.sleep(0.1)
                through = await time_commands(node.port)
            finally:
                await asyncio.to_thread(node.stop)
    print(f"primary answers after {DELAY * 1000:.0f} ms; medians of {ROUNDS} messages\n")
    print("| command | primary itself | through the node | added, in round trips |")
    print("|---|---:|---:|---:|")
    sums = [0.0, 0.0]
    for command in COMMANDS:
        one, two = statistics.median(direct[command]), statistics.median(through[command])
        sums[0] += one
        sums[1] += two
        added = (two - one) / (DELAY * 1000)
        print(f"| {command} | {one:.1f} ms | {two:.1f} ms | {added:+.2f} |")
    print(f"\nA whole message: {sums[0]:.0f} ms at the primary, {sums[1]:.0f} ms through the node.")


if __name__ == "__main__":
    asyncio.run(measure())
