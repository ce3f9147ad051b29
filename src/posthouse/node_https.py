"""Opens the HTTPS door of a process, and keeps it in step with the configuration.

The same for a primary and for the control process of a node: listening sockets
are bound by the supervisor, certificate and accounts are read here and again on
SIGHUP. A certificate that cannot be used keeps the door shut, is told, and is
tried again every minute: mail does not wait for it.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from posthouse import observe, ports_tls
from posthouse.config_pairs import USED_TOKENS_FILE
from posthouse.domain.buckets import Buckets
from posthouse.errors import ConfigError, StorageError
from posthouse.interfaces.https_app import PartyLimits, PeerRoute, make_app
from posthouse.interfaces.https_wire import HttpsLimits, Switchboard
from posthouse.proto.base_url import parse_base_url
from posthouse.services.parties import Account, PairedParties
from posthouse.storage.pairs import UsedHashes
from posthouse.transports.tls import TlsServer

RETRY_SECONDS: Final = 60.0
# 10,000 agreements are completed one by one after a recovery, in seconds.
REQUESTS_A_MINUTE: Final = 60_000
REQUESTS_AT_ONCE: Final = 5_000
# A mistyped token is tried a few times; guessing one of 256 bits is hopeless anyhow.
WRONG_TOKENS_A_MINUTE: Final = 10
WRONG_TOKENS_AT_ONCE: Final = 30


class HttpsPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the door is to serve. base_urls: ours, as the other sides know them.

    certificate None: clear text; `listen` is on loopback then (the configuration sees to it).
    others: Starlette routes that do not speak to parties.
    """

    certificate: Path | None
    private_key: Path | None
    accounts: tuple[Account, ...]
    routes: tuple[PeerRoute, ...]
    base_urls: tuple[str, ...] = ()
    others: tuple[Any, ...] = ()


class HttpsHouse:
    """The door of one process. Made and used in its event loop."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        data_dir: Path,
        *,
        limits: HttpsLimits | None = None,
        tell: Callable[[str | None], None] = lambda _problem: None,
    ) -> None:
        """tell: called with what keeps the door shut, None once it is open."""
        self._listeners = list(listeners)
        self._uses_file = data_dir / USED_TOKENS_FILE
        self._limits = limits or HttpsLimits()
        self._tell = tell
        self._plan: HttpsPlan | None = None
        self._board: Switchboard | None = None
        self._parties: PairedParties | None = None
        self._party_limits = PartyLimits(
            requests=Buckets(
                per_minute=REQUESTS_A_MINUTE, burst=REQUESTS_AT_ONCE, clock=time.monotonic
            ),
            wrong_tokens=Buckets(
                per_minute=WRONG_TOKENS_A_MINUTE, burst=WRONG_TOKENS_AT_ONCE, clock=time.monotonic
            ),
        )

    async def set_plan(self, plan: HttpsPlan) -> bool:
        """Put it in force, opening the door if need be; False when it could not be, and is told.

        A certificate in force stays so when the new one cannot be used; the rest counts.
        """
        self._plan = plan
        try:
            await self._apply(plan)
        except (ConfigError, StorageError) as error:
            observe.trouble("https", "not all of the new settings are in force", error)
            self._tell(error.detail)
            return False
        self._tell(None)
        return True

    async def run(self) -> None:
        """Try again every minute what could not be done."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            if self._plan is not None and self._board is None:
                await self.set_plan(self._plan)

    async def close(self, grace_seconds: float) -> None:
        """Let running answers finish."""
        if self._board is not None:
            await self._board.close(grace_seconds)
        for listener in self._listeners:
            listener.close()

    async def _apply(self, plan: HttpsPlan) -> None:
        tls, problem = await self._read_certificate(plan)
        if self._parties is None:
            uses = await asyncio.to_thread(UsedHashes, self._uses_file)
            self._parties = PairedParties(plan.accounts, uses)
        else:
            self._parties.set_accounts(plan.accounts)
        app = make_app(
            plan.routes,
            parties=self._parties,
            limits=self._party_limits,
            prefixes=("/", *(parse_base_url(url).path for url in plan.base_urls)),
            others=plan.others,
        )
        if self._board is not None:
            self._board.reload(app, tls=tls)
            if problem is not None:
                raise problem
            return
        board = Switchboard(app, tls=tls, limits=self._limits)
        await board.open(self._listeners)
        self._board = board

    async def _read_certificate(
        self, plan: HttpsPlan
    ) -> tuple[ports_tls.TlsServer | None, ConfigError | None]:
        """The certificate to use, and what was wrong with the one that was wanted.

        Raises ConfigError when there is none to fall back on.
        """
        if plan.certificate is None or plan.private_key is None:
            return None, None
        try:
            return await asyncio.to_thread(TlsServer, plan.certificate, plan.private_key), None
        except ConfigError as error:
            if self._board is None or self._board.tls is None:
                raise
            return self._board.tls, error
