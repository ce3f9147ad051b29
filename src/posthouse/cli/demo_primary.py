"""The primary of the rehearsal: the smallest SMTP server that keeps what it is given.

It shares no code with the node, so that what it stored is a witness. It knows a
few mailboxes, speaks just enough of RFC 5321 with PIPELINING and 8BITMIME, and
writes each message as one file: a line with the envelope, then the octets as
they came. Run as `python -m posthouse.cli.demo_primary PORT DIRECTORY MAILBOX…`
it ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from pathlib import Path
from typing import Final

MAX_LINE_BYTES: Final = 4096
MAX_MESSAGE_BYTES: Final = 50_000_000
GREETING: Final = b"220 primary.example.com the primary of the rehearsal\r\n"
EHLO: Final = b"250-primary.example.com\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 50000000\r\n"

_PATH = re.compile(rb"(?:MAIL FROM|RCPT TO): ?<([^<>\s]*)>", re.IGNORECASE)


class Primary:
    """Takes mail for its mailboxes and stores it in a directory."""

    def __init__(self, directory: Path, mailboxes: frozenset[bytes]) -> None:
        self._directory = directory
        self._mailboxes = mailboxes

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One session, to its end."""
        try:
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client went away, or does not speak SMTP
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        sender: bytes | None = None
        recipients: list[bytes] = []
        while True:
            line = await reader.readuntil(b"\r\n")
            verb = line[:4].upper().rstrip()
            path = _PATH.match(line)
            reply = b"250 2.0.0 OK\r\n"
            if verb == b"QUIT":
                writer.write(b"221 2.0.0 bye\r\n")
                return
            if verb == b"EHLO":
                reply = EHLO
            elif verb == b"MAIL" and path is not None:
                sender, recipients = path[1], []
            elif verb == b"RCPT" and path is not None and sender is not None:
                if path[1].partition(b"@")[0].partition(b"+")[0].lower() in self._mailboxes:
                    recipients.append(path[1])
                else:
                    reply = b"550 5.1.1 no such mailbox here\r\n"
            elif verb == b"DATA" and sender is not None and recipients:
                writer.write(b"354 go ahead\r\n")
                self._store(sender, recipients, await _read_message(reader))
                sender = None
            elif verb == b"RSET":
                sender = None
            elif verb not in (b"HELO", b"NOOP"):
                reply = b"503 5.5.1 not now\r\n"
            writer.write(reply)
            await writer.drain()

    def _store(self, sender: bytes, recipients: list[bytes], message: bytes) -> None:
        name = f"{time.time_ns()}.eml"
        fresh = self._directory / f".{name}"
        with fresh.open("wb") as file:
            file.write(b" ".join((sender, *recipients)) + b"\n" + message)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self._directory / name)


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    """Everything up to the line with the single dot, dots unstuffed (RFC 5321 §4.5.2)."""
    message = bytearray()
    while (line := await reader.readuntil(b"\r\n")) != b".\r\n":
        message += line[1:] if line.startswith(b".") else line
        if len(message) > MAX_MESSAGE_BYTES:
            raise ConnectionError("too large")
    return bytes(message)


async def serve(port: int, directory: Path, mailboxes: frozenset[bytes]) -> None:
    """Answer on 127.0.0.1:port until standard input ends."""
    primary = Primary(directory, mailboxes)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    server = await asyncio.start_server(primary.talk, "127.0.0.1", port, limit=MAX_LINE_BYTES)
    async with server:
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(
        serve(int(sys.argv[1]), Path(sys.argv[2]), frozenset(map(os.fsencode, sys.argv[3:])))
    )
