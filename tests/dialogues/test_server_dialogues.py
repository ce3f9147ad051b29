"""Golden SMTP sessions, each run whole, in lock step, one octet at a time, and over a socket.

A dialogue file: `#` says what is promised, `%limits a=b` sets limits, `C:` is a
line of the client, `R:` raw octets with escapes, `S:` a line of the server,
`M:` the message that must have been stored last (escapes).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from fakes.memory_spool import MemorySpool
from fakes.server_owner import (
    QUEUED,
    DictDirectories,
    LateDirectories,
    Owner,
    make_reception,
    read_until_quiet,
)
from posthouse.interfaces.doorkeeper import Doorkeeper, DoorSettings
from posthouse.interfaces.smtp_door import SmtpDoor
from posthouse.mail.queueid import parse_queue_id
from posthouse.ports_spool import Selection
from posthouse.proto.server_events import ServerLimits
from posthouse.services.reception import Directories

FILES = sorted((Path(__file__).parent / "server").glob("*.txt"))


class Dialogue(NamedTuple):
    limits: ServerLimits
    turns: list[tuple[str, bytes]]
    message: bytes | None


def load(path: Path) -> Dialogue:
    options: dict[str, int | str] = {}
    turns: list[tuple[str, bytes]] = []
    message: bytes | None = None
    for line in path.read_text("utf-8").splitlines():
        mark, _, text = line.partition(":")
        if line.startswith("%limits"):
            for word in line.split()[1:]:
                key, _, value = word.partition("=")
                options[key] = int(value) if value.isdigit() else value
        elif line.startswith("#") or not line:
            continue
        elif mark == "C":
            turns.append(("C", (text[1:] if text.startswith(" ") else text).encode() + b"\r\n"))
        elif mark == "S":
            turns.append(("S", text[1:].encode() + b"\r\n"))
        else:
            raw = text[1:].encode().decode("unicode_escape").encode("latin-1")
            if mark == "R":
                turns.append(("C", raw))
            else:
                assert mark == "M", line
                message = raw
    limits = msgspec.convert({"hostname": "mx2.example.net", **options}, ServerLimits)
    return Dialogue(limits, turns, message)


def expected(dialogue: Dialogue) -> bytes:
    return b"".join(data for side, data in dialogue.turns if side == "S")


def said(dialogue: Dialogue) -> bytes:
    return b"".join(data for side, data in dialogue.turns if side == "C")


def check(owner: Owner, dialogue: Dialogue) -> None:
    got = QUEUED.sub(b"queued as ID", owner.output)
    assert got.decode() == expected(dialogue).decode()
    if dialogue.message is not None:
        assert owner.messages[-1] == dialogue.message
    else:
        taken = got.count(b"queued as ID")
        assert len(owner.messages) == taken


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("step", [0, 1, 7])
def test_dialogue_in_pieces(path: Path, step: int) -> None:
    """Any split of the client's octets gives the same session."""
    dialogue = load(path)
    owner = Owner(dialogue.limits)
    data = said(dialogue)
    size = step or len(data)
    for start in range(0, len(data), size):
        owner.feed(data[start : start + size])
    check(owner, dialogue)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dialogue_in_lock_step(path: Path) -> None:
    """Every reply is there when the client has said what it answers, not later."""
    dialogue = load(path)
    owner = Owner(dialogue.limits)
    due = b""
    for side, data in dialogue.turns:
        if side == "C":
            owner.feed(data)
        else:
            due += data
            got = QUEUED.sub(b"queued as ID", owner.output)
            assert got[: len(due)].decode() == due.decode()
    check(owner, dialogue)


@pytest.mark.parametrize("directories", [DictDirectories, LateDirectories])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_dialogue_over_a_socket(path: Path, directories: Callable[[], Directories]) -> None:
    """The door on a real socket says the same and stores the same octets, early verdict or late."""
    dialogue = load(path)
    spool = MemorySpool()
    keeper = Doorkeeper(
        DoorSettings(limits=dialogue.limits, reverse_dns=False),
        reception=make_reception(spool, directories=directories()),
        resolver=None,
        tls=None,
    )
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(SmtpDoor, keeper), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ids: list[int] = []
    try:
        for side, data in dialogue.turns:
            if side == "C":
                writer.write(data)
                continue
            marker = data.find(b"queued as ID")
            if marker < 0:
                got = await read_until_quiet(reader, len(data))
                assert got.decode() == data.decode()
            else:
                got = await reader.readline()
                match = re.search(rb"queued as ([0-9A-F]+)", got)
                assert match is not None, got
                found = parse_queue_id(match.group(1).decode())
                assert found is not None
                ids.append(found)
        writer.write_eof()
        rest = await reader.read()
        assert rest == b""
    finally:
        writer.close()
        server.close()
        await server.wait_closed()
    stored = await spool.list_messages(Selection(), after=None, limit=100)
    assert [message.queue_id for message in stored] == ids
    if dialogue.message is not None:
        body = await spool.open_body(ids[-1])
        text = await body.read(1 << 20)
        assert text.startswith(b"Received: from ")
        end = re.search(rb"\r\n(?![ \t])", text)
        assert end is not None
        assert text[end.end() :] == dialogue.message
