"""GET v1/rosters/{domain}: the published roster, whole, as a delta, or not modified.

Spec: PROTOCOL.md §2 "Fetch".
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

from posthouse.errors import AddressError
from posthouse.mail.address import normalize_domain
from posthouse.ports_https import Flow, PeerAnswer, PeerRequest, ProblemAnswer
from posthouse.ports_publish import (
    DELTA_MEDIA_TYPE,
    ROSTER_MEDIA_TYPE,
    PublishedRosters,
    RosterReply,
    RosterReplyKind,
)

ROSTER_PATH: Final = "v1/rosters/{domain}"
_PIECE_BYTES: Final = 256 * 1024
_MAX_SERIAL: Final = (1 << 53) - 1
_NO_ROSTER: Final = ProblemAnswer(
    status=404,
    title="No such roster",
    detail="The domain is unknown, or not one this party backs up",
)
_NOT_YET: Final = ProblemAnswer(
    status=503,
    title="No roster yet",
    detail="The roster of this domain is being made, or its sources cannot be read",
    retry_after_seconds=30,
)
_BAD_SINCE: Final = ProblemAnswer(
    status=400, title="Bad request", detail="since is not the serial of a roster"
)


class RosterDesk:
    """Answers GET v1/rosters/{domain} for the domains that a party backs up."""

    def __init__(self, rosters: PublishedRosters) -> None:
        self._rosters = rosters

    async def answer(self, request: PeerRequest) -> PeerAnswer | ProblemAnswer:
        """See `posthouse.ports_https.PeerHandler`."""
        try:
            domain = normalize_domain(request.path_params["domain"])
        except AddressError:
            return _NO_ROSTER
        if domain not in request.party.domains:
            return _NO_ROSTER
        since = None
        if "since" in request.query:
            since = _read_serial(request.query["since"])
            if since is None:
                return _BAD_SINCE
        # After a rotation a roster of the former key is served until there is one of the new.
        for key_id in request.party.roster_key_ids:
            reply = await self._rosters.find(
                domain,
                key_id,
                since=since,
                if_none_match=request.headers.get("if-none-match", ""),
            )
            if reply is not None:
                return _make_answer(reply)
        return _NOT_YET


def _make_answer(reply: RosterReply) -> PeerAnswer:
    headers = {"ETag": reply.etag}
    match reply.kind:
        case RosterReplyKind.NOT_MODIFIED:
            return PeerAnswer(status=304, headers=headers)
        case RosterReplyKind.DELTA:
            return PeerAnswer(document=reply.body, media_type=DELTA_MEDIA_TYPE, headers=headers)
        case RosterReplyKind.WHOLE:
            flow = Flow(size_bytes=reply.size_bytes, pieces=_Reader(Path(reply.path)))
            return PeerAnswer(document=flow, media_type=ROSTER_MEDIA_TYPE, headers=headers)


class _Reader:
    """A file in pieces. Opened at once: one that is gone is a 503, not half an answer."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("rb", buffering=0)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        piece = self._stream.read(_PIECE_BYTES)
        if not piece:
            raise StopIteration
        return piece

    def close(self) -> None:
        """Give back the descriptor."""
        self._stream.close()


def _read_serial(text: str) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text) > 16:
        return None
    serial = int(text)
    return serial if 0 < serial <= _MAX_SERIAL else None
