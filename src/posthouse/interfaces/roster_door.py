"""The control process's door for rosters: an operator has one fetched, accepted, its serial reset.

One line of JSON each way, then the connection ends. Who may open the socket is
the node itself or its operator: it lies in a directory of mode 0700.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

from posthouse.errors import PosthouseError
from posthouse.interfaces.local_door import Line, LocalDoor, Place

MAX_LINE_BYTES: Final = 4096
_IDLE_SECONDS: Final = 60.0


class RosterOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be done. domain "" (fetch only): all. serial: for accept."""

    act: Literal["fetch", "accept", "reset-serial"]
    domain: str = ""
    serial: int = 0


class RosterSaid(msgspec.Struct, frozen=True):
    """What became of it, in words by domain. done: false when nothing was changed."""

    done: bool
    words: Mapping[str, str]


class RosterOffice(Protocol):
    """Who does it; `services.subscriber.Subscriber` is one."""

    async def refresh(self, domain: str = "") -> Mapping[str, str]: ...

    async def accept(self, domain: str, serial: int) -> object: ...

    async def reset_serial(self, domain: str) -> None: ...


async def carry_out(office: RosterOffice, order: RosterOrder) -> RosterSaid:
    """Do it. Never raises for what an operator can get wrong."""
    domain = order.domain
    try:
        if order.act == "fetch":
            words = await office.refresh(domain)
            if domain and not words:
                return RosterSaid(False, {domain: "has no roster configured"})
            return RosterSaid(True, words)
        if order.act == "accept":
            await office.accept(domain, order.serial)
            return RosterSaid(True, {domain: f"serial {order.serial} is in force"})
        await office.reset_serial(domain)
        return RosterSaid(True, {domain: "known serials are forgotten; any serial passes once"})
    except KeyError:
        what = f"no serial {order.serial} is set aside" if order.serial else "no roster configured"
        return RosterSaid(False, {domain: what})
    except PosthouseError as error:
        return RosterSaid(False, {domain: error.detail})


class RosterDoor:
    """Listens for operators."""

    def __init__(self, office: RosterOffice) -> None:
        self._office = office
        self._door = LocalDoor("rosters", self._serve, idle_seconds=_IDLE_SECONDS)

    async def open(self, path: Path) -> None:
        """Listen at `path`. Raises OSError."""
        await self._door.open(Place(path=path))

    async def close(self) -> None:
        """Stop listening, cut what is open."""
        await self._door.close()

    async def _serve(self, line: Line) -> None:
        data = b""
        while b"\n" not in data and len(data) <= MAX_LINE_BYTES:
            piece = await line.read()
            if not piece:
                return
            data += piece
        try:
            order = msgspec.json.decode(data, type=RosterOrder)
        except (msgspec.MsgspecError, ValueError) as error:
            said = RosterSaid(False, {"": f"not understood: {error}"})
        else:
            said = await carry_out(self._office, order)
        await line.write(msgspec.json.encode(said) + b"\n")
