"""Where rosters come from over HTTPS: a paired primary, or a plain URL. `RosterSource`s."""

from __future__ import annotations

from typing import Final

from posthouse.mail.roster import MAX_COUNT, MAX_DIGEST_BYTES
from posthouse.ports_https import Peer
from posthouse.ports_roster import Fetched, RosterIntake

# The largest roster there may be; what is longer cannot be one.
MAX_ROSTER_BYTES: Final = MAX_COUNT * MAX_DIGEST_BYTES + (2 << 20)


class PeerRosters:
    """One domain's roster at a paired primary: `GET v1/rosters/{domain}`."""

    interval_seconds: float | None = None

    def __init__(self, peer: Peer, domain: str) -> None:
        self.name = peer.party
        self._peer = peer
        self._path = f"v1/rosters/{domain}"

    async def fetch(self, sink: RosterIntake, *, serial: int, whole: bool) -> Fetched:
        """See the port."""
        path = self._path if whole or not serial else f"{self._path}?since={serial}"
        headers = {"If-None-Match": f'"{serial}"'} if serial else {}
        response = await self._peer.download(
            path, sink, max_bytes=MAX_ROSTER_BYTES, headers=headers
        )
        return Fetched.NOT_MODIFIED if response.status == 304 else Fetched.NEW

    def settle(self, *, good: bool) -> None:
        """Nothing to remember: the serial says it all."""


class UrlRosters:
    """A roster file at a URL, on any web server; its ETag is remembered, not the serial."""

    interval_seconds: float | None = None

    def __init__(self, peer: Peer, url: str) -> None:
        """peer: one whose base_url the URL lies under."""
        self.name = url
        self._peer = peer
        self._url = url
        self._etag = self._fresh_etag = ""

    async def fetch(self, sink: RosterIntake, *, serial: int, whole: bool) -> Fetched:
        """See the port. whole: always, a file is no delta."""
        headers = {"If-None-Match": self._etag} if serial and self._etag and not whole else {}
        response = await self._peer.download(
            self._url, sink, max_bytes=MAX_ROSTER_BYTES, headers=headers
        )
        if response.status == 304:
            return Fetched.NOT_MODIFIED
        self._fresh_etag = response.etag
        return Fetched.NEW

    def settle(self, *, good: bool) -> None:
        """Remember the ETag of a good file only: a bad one must be looked at again."""
        self._etag = self._fresh_etag if good else ""
