"""The servers for Postfix beside the primary: kept where the configuration wants them.

One that cannot be opened (its directory is missing, somebody listens there)
is an alert and is tried again; the rest of the process goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from posthouse import observe
from posthouse.config_primary_schema import PostfixConfig
from posthouse.config_values import Endpoint
from posthouse.interfaces.dovecot_auth import DovecotAuthDoor
from posthouse.interfaces.local_door import Place
from posthouse.interfaces.postfix_policy import PostfixPolicyDoor
from posthouse.ports_postfix import AgreementBacking, AgreementVerifier

AGAIN_SECONDS: Final = 10.0


class Granted(AgreementVerifier, AgreementBacking, Protocol):
    """Who knows the agreements (`services.granter.Granter`)."""


class _Door(Protocol):
    async def open(self, place: Place) -> int: ...
    async def close(self) -> None: ...


class _Stand:
    """One server: where it should listen, and where it does."""

    def __init__(self, key: str, make: Callable[[], _Door]) -> None:
        self.key = key
        self._make = make
        self._wanted: Path | Endpoint | None = None
        self._door: _Door | None = None
        self._told = ""

    async def want(self, where: Path | Endpoint | None) -> None:
        """Listen there, and nowhere else."""
        if where != self._wanted:
            await self.close()
        self._wanted = where
        await self.try_open()

    async def try_open(self) -> None:
        """Open it if it is wanted and not open."""
        where = self._wanted
        if where is None or self._door is not None:
            return
        door = self._make()
        try:
            await door.open(_place(where))
        except OSError as error:
            await door.close()
            text = f"{self.key}: cannot listen at {where}: {error}"
            if text != self._told:
                observe.alert("postfix", text)
                self._told = text
            return
        self._door, self._told = door, ""
        observe.note("primary", f"{self.key}: Postfix can ask at {where}")

    async def close(self) -> None:
        """Listen no longer."""
        door, self._door = self._door, None
        if door is not None:
            await door.close()


class PostfixHouse:
    """Both servers. `granted` judges."""

    def __init__(self, granted: Granted) -> None:
        self._auth = _Stand("postfix.auth_socket", lambda: DovecotAuthDoor(granted))
        self._policy = _Stand("postfix.policy_listen", lambda: PostfixPolicyDoor(granted))

    async def set_plan(self, config: PostfixConfig) -> None:
        """Listen where the configuration says; what stays keeps its connections."""
        await self._auth.want(config.auth_socket)
        await self._policy.want(config.policy_listen)

    async def run(self) -> None:
        """Try again what could not be opened, for ever."""
        while True:
            await asyncio.sleep(AGAIN_SECONDS)
            for stand in (self._auth, self._policy):
                await stand.try_open()

    async def close(self) -> None:
        """Stop listening, cut what is open."""
        with contextlib.suppress(OSError):
            await self._auth.close()
            await self._policy.close()


def _place(where: Path | Endpoint) -> Place:
    if isinstance(where, Path):
        return Place(path=where)
    return Place(host=where.address, port=where.port)
