"""What the backups of a primary came for, and when: for `posthouse primary status`.

Kept in memory; whoever watches writes it down now and then (`take_news`). A crash
costs the last seconds of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from posthouse.ports_https import PeerAnswer, PeerHandler, PeerRequest, ProblemAnswer


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """serial: of the roster a backup was given, or told that it has it."""

    serial: int
    at_us: int


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Of one backup. fetched: by domain. agreements_us: its last word about them; 0: none."""

    fetched: dict[str, Fetched] = {}
    agreements_us: int = 0


class BackupTraffic:
    """See the module."""

    def __init__(self, known: Mapping[str, Traffic], *, now_us: Callable[[], int]) -> None:
        """known: by party, from before the start."""
        self._known = dict(known)
        self._now_us = now_us
        self._news = False

    def keep_only(self, parties: set[str]) -> None:
        """Forget those that are not paired any more."""
        for party in self._known.keys() - parties:
            del self._known[party]
            self._news = True

    def take_news(self) -> Mapping[str, Traffic] | None:
        """All there is, if something came since it was taken last."""
        if not self._news:
            return None
        self._news = False
        return dict(self._known)

    def note_fetches(self, handler: PeerHandler) -> PeerHandler:
        """The handler of rosters; what it answers with an ETag is noted."""

        async def answer(request: PeerRequest) -> PeerAnswer | ProblemAnswer:
            answered = await handler(request)
            serial = "" if isinstance(answered, ProblemAnswer) else answered.headers.get("ETag", "")
            if serial:
                party, domain = request.party.name, request.path_params["domain"].lower()
                before = self._known.get(party, Traffic())
                fetched = Fetched(serial=int(serial.strip('"')), at_us=self._now_us())
                self._keep(
                    party,
                    msgspec.structs.replace(before, fetched={**before.fetched, domain: fetched}),
                )
            return answered

        return answer

    def note_agreements(self, handler: PeerHandler) -> PeerHandler:
        """A handler of agreements; what it does not refuse is noted."""

        async def answer(request: PeerRequest) -> PeerAnswer | ProblemAnswer:
            answered = await handler(request)
            if not isinstance(answered, ProblemAnswer):
                before = self._known.get(request.party.name, Traffic())
                after = msgspec.structs.replace(before, agreements_us=self._now_us())
                self._keep(request.party.name, after)
            return answered

        return answer

    def _keep(self, party: str, traffic: Traffic) -> None:
        self._known[party] = traffic
        self._news = True
