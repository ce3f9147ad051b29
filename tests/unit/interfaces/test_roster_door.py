"""An operator's orders about rosters, over the socket of the control process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from posthouse.errors import RosterRefused
from posthouse.interfaces.roster_door import RosterDoor, RosterOrder, RosterSaid, carry_out


class Office:
    """A subscriber of two domains; one has something set aside."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def refresh(self, domain: str = "") -> Mapping[str, str]:
        self.done.append(f"refresh {domain}")
        words = {"a.example": "not modified", "b.example": "serial 2 in force"}
        return {name: said for name, said in words.items() if domain in ("", name)}

    async def accept(self, domain: str, serial: int) -> object:
        if (domain, serial) == ("b.example", 7):
            raise RosterRefused("times", "expired yesterday")
        if (domain, serial) != ("a.example", 7):
            raise KeyError(serial)
        return None

    async def reset_serial(self, domain: str) -> None:
        if domain != "a.example":
            raise KeyError(domain)


@pytest.mark.parametrize(
    ("order", "done", "words"),
    [
        (RosterOrder(act="fetch"), True, ["not modified", "serial 2 in force"]),
        (RosterOrder(act="fetch", domain="a.example"), True, ["not modified"]),
        (RosterOrder(act="fetch", domain="c.example"), False, ["has no roster configured"]),
        (RosterOrder(act="accept", domain="a.example", serial=7), True, ["serial 7 is in force"]),
        (
            RosterOrder(act="accept", domain="a.example", serial=8),
            False,
            ["no serial 8 is set aside"],
        ),
        (RosterOrder(act="accept", domain="b.example", serial=7), False, ["expired yesterday"]),
        (
            RosterOrder(act="reset-serial", domain="a.example"),
            True,
            ["known serials are forgotten; any serial passes once"],
        ),
        (
            RosterOrder(act="reset-serial", domain="c.example"),
            False,
            ["no roster configured"],
        ),
    ],
)
async def test_orders(order: RosterOrder, done: bool, words: list[str]) -> None:
    """Each order is carried out, or says why nothing was changed."""
    said = await carry_out(Office(), order)
    assert said.done is done
    assert list(said.words.values()) == words


async def ask(path: Path, *pieces: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def test_one_line_each_way(tmp_path: Path) -> None:
    """An order may come in pieces; nonsense is answered, too much or nothing ends it."""
    door = RosterDoor(Office())
    path = tmp_path / "rosters.sock"
    await door.open(path)
    try:
        answer = await ask(path, b'{"act": "fe', b'tch"}\n')
        assert msgspec.json.decode(answer, type=RosterSaid).done
        for nonsense in (
            b"nonsense\n",
            b'{"act": "drop"}\n',
            b'{"act": "fetch", "x": 1}\n',
            b"\xff\n",
        ):
            said = msgspec.json.decode(await ask(path, nonsense), type=RosterSaid)
            assert not said.done
        assert b"not understood" in await ask(path, b"x" * 5000)
        assert await ask(path, b"") == b""
    finally:
        await door.close()
    assert not path.exists()
