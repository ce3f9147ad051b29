"""The doorkeeper of a worker: who may come in, how long one may stay, and how all leave.

Every client network has its bound in connections, every session in idle and
total time. A session that fails when it is looked at is torn down alone.

Spec: RFC 5321 §4.5.3.2 (time-outs), §3.8 (421).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from posthouse import observe
from posthouse.interfaces.door_log import DoorLog
from posthouse.mail.reply import Reply
from posthouse.ports_dns import Resolver
from posthouse.ports_session import Receptionist, SessionFacts
from posthouse.ports_tls import TlsServer
from posthouse.proto.server_events import ServerLimits

_SWEEP_SECONDS = 1.0
# What commits and last replies get once the grace of a shutdown is over.
_LAST_SECONDS = 3.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DoorSettings:
    """Limits of one worker's door. Times in seconds, the rest counts.

    max_connections_per_client counts a client network (domain/client_network).
    verdict_timeout: how long one recipient may take to be checked; clients wait five
    minutes for a reply to RCPT (RFC 5321 §4.5.3.2.3), often for several in turn.
    """

    limits: ServerLimits
    max_connections: int = 2000
    max_connections_per_client: int = 100
    idle_timeout: float = 300.0
    total_timeout: float = 3600.0
    reverse_dns: bool = True
    reverse_dns_timeout: float = 5.0
    verdict_timeout: float = 60.0


Etrns = Callable[[str, SessionFacts], Awaitable[Reply]]
"""Answers ETRN: its argument, and who asks."""


class Guest(Protocol):
    """A session, as its doorkeeper sees it (`smtp_door.SmtpDoor`)."""

    def check_time(self, now: float) -> None:
        """End it if its time is over. now: the loop's clock, in seconds."""

    def wind_up(self) -> None:
        """End it now unless a message is on its way."""

    def part(self, why: str = ...) -> None:
        """End it and say why, but answer a message that is being stored."""

    def abort(self) -> None:
        """End it, come what may."""


class Doorkeeper:
    """Knows every session of this worker: limits, time-outs, the way out."""

    def __init__(
        self,
        settings: DoorSettings,
        *,
        reception: Receptionist,
        resolver: Resolver | None,
        tls: TlsServer | None,
    ) -> None:
        self.settings = settings
        self.reception = reception
        self.resolver = resolver if settings.reverse_dns else None
        self.tls = tls
        self.etrn: Etrns | None = None
        self.private = False  # clients are this node's own, over unix sockets
        self.log: DoorLog = observe
        self.sessions: set[Guest] = set()
        self._networks: dict[str, int] = {}
        self._leaving = False
        self._empty = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch the clock."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    def reload(self, settings: DoorSettings, *, resolver: Resolver | None) -> None:
        """Put new limits in force for sessions to come; running ones keep theirs."""
        self.settings = settings
        self.resolver = resolver if settings.reverse_dns else None

    async def leave(self, grace_seconds: float) -> None:
        """Let running sessions finish their message, 421 to the rest; all gone at the end.

        After the grace a commit under way still gets its answer, and every
        client a few seconds to read what it was told.
        """
        self._leaving = True
        for session in tuple(self.sessions):
            self._guard(session, session.wind_up)
        await self._wait_empty(grace_seconds)
        for session in tuple(self.sessions):
            self._guard(session, session.part)
        await self._wait_empty(_LAST_SECONDS)
        for session in tuple(self.sessions):
            session.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def hang_up(self, why: str) -> None:
        """Say 421 to every session at once; one whose message is committed hears its answer."""
        for session in tuple(self.sessions):
            self._guard(session, partial(session.part, why))

    async def _wait_empty(self, seconds: float) -> None:
        if self.sessions:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), seconds)

    @staticmethod
    def _guard(session: Guest, act: Callable[[], None]) -> None:
        """A session that fails when it is to end is torn down; the others never notice."""
        try:
            act()
        except Exception as error:
            observe.trouble("smtpd", "a session could not be ended in order", error)
            session.abort()

    @property
    def leaving(self) -> bool:
        """True once the worker is shutting down."""
        return self._leaving

    def admit(self, session: Guest, address: str, network: str) -> Reply | None:
        """Count a session in, or say why not (421)."""
        host = self.settings.limits.hostname
        if self._leaving:
            return Reply(421, "4.3.2", f"{host} Service shutting down, try again later")
        if len(self.sessions) >= self.settings.max_connections:
            return Reply(421, "4.7.0", f"{host} Error: too many connections, try again later")
        count = self._networks.get(network, 0)
        if count >= self.settings.max_connections_per_client:
            return Reply(421, "4.7.0", f"{host} Error: too many connections from {address}")
        self._networks[network] = count + 1
        self.sessions.add(session)
        return None

    def forget(self, session: Guest, network: str) -> None:
        """Count a session out."""
        if session not in self.sessions:
            return
        self.sessions.discard(session)
        count = self._networks.get(network, 0) - 1
        if count > 0:
            self._networks[network] = count
        else:
            self._networks.pop(network, None)
        if self._leaving and not self.sessions:
            self._empty.set()

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            now = loop.time()
            for session in tuple(self.sessions):
                self._guard(session, partial(session.check_time, now))
