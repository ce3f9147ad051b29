"""A roster in force, for the verdicts of one worker: `ports_roster.RosterDirectory`.

With `hmac-sha256` an answer is there at once. With a slow digest the answer is
remembered, found or not, under a keyed hash of the text: the memory holds no
addresses. It belongs to this roster and goes with it. Equal questions that come
while one is being computed wait for that one.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from posthouse.domain.digests import is_slow, make_digest
from posthouse.domain.finding import Answer, Finding
from posthouse.domain.roster import POSTMASTER, RosterReader
from posthouse.mail.wire_text import parse_time
from posthouse.ports_roster import SlowLookUps
from posthouse.storage.roster_body import RosterBody

# Some 10 MB; the busiest domains have fewer correspondents a day.
MAX_REMEMBERED: Final = 65_536

_VOUCHED: Final = Finding.VOUCHED
_POSTMASTER_LENGTH: Final = len(POSTMASTER)
_BUSY: Final = Answer(finding=Finding.UNKNOWN, withheld="busy")
_GUESSED: Final = Answer(finding=Finding.UNKNOWN, withheld="guessed")


class MappedRoster:
    """See the module. `close` when no more look-ups will be begun."""

    def __init__(
        self,
        body: RosterBody,
        roster_key: bytes,
        slow: SlowLookUps,
        *,
        clock_s: Callable[[], float],
    ) -> None:
        """Take over an open body. Raises RosterRefused, ValueError (another key)."""
        header = body.head.header
        self.header = header
        self.serial = header.serial
        self.limits = header.limits
        self.policy = header.policy
        self.issued_s = parse_time(header.issued_at)
        self.head_sha256 = body.head_sha256
        self._body = body
        self._holds = body.holds
        self._reader = RosterReader(header)
        self._has_rules = bool(header.rules)
        self._when_stale = header.policy.when_stale
        self._find_texts = self._reader.find_texts
        self.fold = self._reader.how
        self.expires_s = self._reader.expires_s
        self._digest = make_digest(header.digest, roster_key)
        self._is_slow = is_slow(header.digest)
        self._slow = slow
        self._clock_s = clock_s
        self._fresh = {finding: self._make(finding, stale=False) for finding in Finding}
        self._stale = {finding: self._make(finding, stale=True) for finding in Finding}
        self._otherwise = self._fresh[self._reader.otherwise]
        self._otherwise_stale = self._stale[self._reader.otherwise]
        self._memory: dict[bytes, bool] = {}
        self._memory_key = os.urandom(32)
        self._flights: dict[bytes, asyncio.Task[bool]] = {}
        self._running = 0
        self._closing = False

    def _make(self, finding: Finding, *, stale: bool) -> Answer:
        wish = self.header.policy.when_stale
        return Answer(
            finding=finding,
            stale=stale,
            serial=self.serial,
            when_stale=wish,
            limits=self.limits,
        )

    # ------------------------------------------------------------------ look-ups

    def find(self, local_part: str, network: str = "") -> Answer | Awaitable[Answer]:
        """Look up the content of a local part (see the port). Hot: one call for each RCPT."""
        stale = self._clock_s() >= self.expires_s
        if self._has_rules or len(local_part) == _POSTMASTER_LENGTH:
            early = self._reader.find_early(local_part)
            if early is not None:
                return (self._stale if stale else self._fresh)[early]
        kept, cut = self._find_texts(local_part)
        if self._is_slow:
            return self._find_slowly(kept, cut, network, stale)
        holds, digest = self._holds, self._digest
        if kept and holds(digest(kept)):
            return Answer(_VOUCHED, stale, kept, self.serial, self._when_stale, "", self.limits)
        if cut and holds(digest(cut)):
            return Answer(_VOUCHED, stale, cut, self.serial, self._when_stale, "", self.limits)
        return self._otherwise_stale if stale else self._otherwise

    def _vouch(self, text: str, stale: bool) -> Answer:
        return Answer(_VOUCHED, stale, text, self.serial, self._when_stale, "", self.limits)

    def _find_slowly(
        self, kept: str, cut: str, network: str, stale: bool
    ) -> Answer | Awaitable[Answer]:
        """At once where all is remembered, else later."""
        otherwise = self._otherwise_stale if stale else self._otherwise
        for text in (kept, cut):
            found = self._memory.get(self._name(text)) if text else False
            if found:
                return self._vouch(text, stale)
            if found is None:
                return self._compute(kept, cut, network, stale)
        return otherwise

    async def _compute(self, kept: str, cut: str, network: str, stale: bool) -> Answer:
        otherwise = self._otherwise_stale if stale else self._otherwise
        for text in (kept, cut):
            if not text:
                continue
            found = self._memory.get(self._name(text))
            if found is None:
                flight = self._flights.get(self._name(text)) or self._take_off(text, network)
                if isinstance(flight, Answer):
                    return flight
                found = await asyncio.shield(flight)
            if found:
                return self._vouch(text, stale)
        return otherwise

    def _take_off(self, text: str, network: str) -> asyncio.Task[bool] | Answer:
        """Start one computation, or say why not: UNKNOWN is a 451, whatever the address."""
        if self._closing:
            return _BUSY
        if not self._slow.allows(network):
            return _GUESSED
        digest, holds = self._digest, self._body.holds
        result = self._slow.run(lambda: holds(digest(text)))
        if result is None:
            self._slow.refund(network)
            return _BUSY
        name = self._name(text)
        flight = asyncio.ensure_future(self._land(name, network, result))
        self._flights[name] = flight
        return flight

    async def _land(self, name: bytes, network: str, result: Awaitable[bool]) -> bool:
        self._running += 1
        try:
            found = await result
        finally:
            self._running -= 1
            self._flights.pop(name, None)
            if self._closing and not self._running:
                self._body.close()
        if found:
            self._slow.refund(network)
        self._memory[name] = found
        if len(self._memory) > MAX_REMEMBERED:
            del self._memory[next(iter(self._memory))]
        return found

    def _name(self, text: str) -> bytes:
        octets = text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(octets, key=self._memory_key, digest_size=16).digest()

    # ------------------------------------------------------------------ the rest

    def describe(self) -> Mapping[str, str | int | bool]:
        """For `status`."""
        header = self.header
        issued_at = datetime.fromtimestamp(self.issued_s, UTC)
        stale = self._clock_s() >= self.expires_s
        return {
            "source": "",
            "entries": header.body.count,
            "catch_all": header.catch_all,
            "loaded_at": issued_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "problem": f"stale since {header.expires_at}" if stale else "",
            "serial": header.serial,
            "expires_at": header.expires_at,
            "stale": stale,
        }

    def close(self) -> None:
        """Give back the mapping once the look-ups under way have ended."""
        self._closing = True
        if not self._running:
            self._body.close()
