"""The log of availability: hears what state next hops are in, and keeps their outages.

What is heard is compared with what is stored, in a thread. Only what was proven
counts: a next hop that is suspect after a start, or whose canary is on its way,
begins no outage and ends none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from posthouse import observe
from posthouse.domain.nexthop import is_fetched
from posthouse.errors import StorageError
from posthouse.log_sink import clean
from posthouse.ports_alerts import AvailabilityStore, Reason

T = TypeVar("T")

WATCHED_US: Final = 60_000_000
KEEP_US: Final = 400 * 86_400_000_000
PRUNE_US: Final = 86_400_000_000
_REFRESH_US: Final = 86_400_000_000

# Words of our own failure texts (transports, services.relay_*) and of the states of next hops.
_BY_STATE: Final = {
    "blocked": Reason.PERMANENT,
    "surge-stopped": Reason.PERMANENT,
    "held by DNS": Reason.NO_BETTER_MX,
    "suspended": Reason.OPERATOR,
}
_BY_WORD: Final = (
    ("connection refused", Reason.REFUSED),
    ("timed out", Reason.TIMEOUT),
    ("no answer to a probe", Reason.TIMEOUT),
    ("timeout", Reason.TIMEOUT),
    ("no route to host", Reason.TIMEOUT),
    ("network is unreachable", Reason.TIMEOUT),
    ("host is down", Reason.TIMEOUT),
    ("tls", Reason.TLS),
    ("certificate", Reason.TLS),
    ("handshake", Reason.TLS),
    ("dns:", Reason.DNS),
    ("no address", Reason.DNS),
    ("has an address now", Reason.DNS),
    ("could not be looked up", Reason.DNS),
    ("lost connection", Reason.LOST),
    ("closed", Reason.LOST),
    ("reset by peer", Reason.LOST),
    ("broken pipe", Reason.LOST),
)
_TAKES_MAIL: Final = frozenset({"up", "draining"})
UNCERTAIN: Final = frozenset({"suspect", "canary"})
"""They begin no outage and end none."""


def is_up(next_hop: str, state: str) -> bool:
    """Tell whether this counts as up. One that fetches its mail owes nobody to be there."""
    return state in _TAKES_MAIL or (state == "down" and is_fetched(next_hop))


def classify(state: str, why: str) -> Reason:
    """Why a next hop in this state takes no mail, from the words that came with it."""
    if state in _BY_STATE:
        return _BY_STATE[state]
    text = why.lower()
    for word, reason in _BY_WORD:
        if word in text:
            return reason
    for part in text.replace(":", " ").split():
        if len(part) == 3 and part.isdigit() and part[0] in "45":
            return Reason.TEMPORARY if part[0] == "4" else Reason.PERMANENT
    return Reason.OTHER


class _Heard(msgspec.Struct, kw_only=True):
    """What was heard last of one next hop. first_us: when this state was heard first."""

    domains: tuple[str, ...]
    up: bool
    reason: Reason
    why: str
    since_us: int
    first_us: int
    followed_us: int = 0


class AvailabilityRecorder:
    """See the module; `ports_alerts.AvailabilityLog` for whoever knows the states."""

    def __init__(
        self,
        store: AvailabilityStore,
        *,
        clock_us: Callable[[], int],
    ) -> None:
        self._store = store
        self._clock_us = clock_us
        self._heard: dict[str, _Heard] = {}
        self._down: dict[str, tuple[Reason, str]] | None = None
        self._watched_us = 0
        self._pruned_us = 0
        self._trouble = ""

    def note(
        self,
        next_hop: str,
        domains: Sequence[str],
        *,
        up: bool,
        reason: Reason,
        why: str,
        since_us: int,
    ) -> None:
        """See `ports_alerts.AvailabilityLog`."""
        known = self._heard.get(next_hop)
        first_us = self._clock_us() if known is None or known.up is not up else known.first_us
        followed_us = 0
        if known is not None and known.domains == tuple(domains):
            followed_us = known.followed_us
        self._heard[next_hop] = _Heard(
            domains=tuple(domains),
            up=up,
            reason=reason,
            why=clean(why),
            since_us=since_us,
            first_us=first_us,
            followed_us=followed_us,
        )

    def keep_only(self, next_hops: Sequence[str]) -> None:
        """Forget next hops that are no longer configured; their outages end."""
        for gone in self._heard.keys() - set(next_hops):
            heard = self._heard[gone]
            heard.up, heard.first_us = True, 0
            heard.since_us = self._clock_us()

    async def tick(self) -> None:
        """Store what has changed."""
        try:
            await asyncio.to_thread(self._write, self._clock_us())
        except StorageError as error:
            if error.detail != self._trouble:
                self._trouble = error.detail
                observe.trouble("alerts", "the log of availability cannot be written", error)
        else:
            self._trouble = ""

    # ------------------------------------------------------------------ in the thread

    def _write(self, now_us: int) -> None:
        if self._down is None:
            self._store.watched(now_us=now_us, fresh=True)
            self._watched_us = now_us
            self._down = {
                outage.next_hop: (outage.reasons[-1], outage.why)
                for outage in self._store.open_outages()
            }
        if not 0 <= now_us - self._watched_us < WATCHED_US:
            self._store.watched(now_us=now_us, fresh=False)
            self._watched_us = now_us
        for next_hop, heard in list(self._heard.items()):
            if not 0 <= now_us - heard.followed_us < _REFRESH_US:
                self._store.follow(next_hop, heard.domains, now_us=now_us)
                heard.followed_us = now_us
            self._compare(self._down, next_hop, heard)
        if now_us - self._pruned_us > PRUNE_US:
            self._store.prune(before_us=now_us - KEEP_US)
            self._pruned_us = now_us

    def _compare(self, down: dict[str, tuple[Reason, str]], next_hop: str, heard: _Heard) -> None:
        known = down.get(next_hop)
        if heard.up:
            if known is not None:
                self._store.end_outage(next_hop, to_us=heard.since_us or heard.first_us)
                del down[next_hop]
        elif known is None:
            self._store.begin_outage(
                next_hop, heard.reason, heard.why, from_us=heard.since_us or heard.first_us
            )
            down[next_hop] = (heard.reason, heard.why)
        elif known[0] is not heard.reason:
            self._store.explain_outage(next_hop, heard.reason, heard.why)
            down[next_hop] = (heard.reason, heard.why)
