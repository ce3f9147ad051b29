"""The other side of a pairing, scripted: what a path answers, and what was asked.

::

    peer = FakePeer("example.com", "https://mail.example.com:8447/")
    peer.answers["v1/agreements"] = [respond(200, b'{"results": []}')]
    peer.answers["v1/rosters/example.com"] = [PeerFailure("…", stage="timeout")]

Each call takes the next answer of its path; the last one repeats. A callable is
called with the `Call`. A path nobody scripted is a 404.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from posthouse.errors import PeerFailure
from posthouse.ports_https import MAX_JSON_BYTES, PeerResponse, Sink
from posthouse.proto.base_url import join_url


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request as it would have gone out. path: relative to base_url, query included."""

    method: str
    path: str
    headers: Mapping[str, str]
    document: bytes = b""


Answer = PeerResponse | PeerFailure | Callable[[Call], PeerResponse]


def respond(status: int = 200, body: bytes = b"", **headers: str) -> PeerResponse:
    """A good answer; header names with _ for -."""
    named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    return PeerResponse(status=status, headers=named, body=body, size_bytes=len(body))


def refuse(status: int, *, retry_after_seconds: int | None = None) -> PeerFailure:
    """An answer such as 404 or 409, as a failure with stage "status"."""
    return PeerFailure(
        f"answered {status}",
        stage="status",
        status=status,
        retry_after_seconds=retry_after_seconds,
    )


class FakePeer:
    """See `posthouse.ports_https.Peer`."""

    def __init__(self, party: str, base_url: str) -> None:
        self.party = party
        self.base_url = base_url
        self.answers: dict[str, Sequence[Answer]] = {}
        self.calls: list[Call] = []
        self.closed = False

    async def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> PeerResponse:
        response = self._answer(Call(method="GET", path=self._cut(path), headers=headers or {}))
        if response.size_bytes > MAX_JSON_BYTES:
            raise PeerFailure("too large", stage="too_large", status=response.status)
        return response

    async def post(self, path: str, document: bytes) -> PeerResponse:
        relative = self._cut(path)
        if len(document) > MAX_JSON_BYTES:
            raise PeerFailure("our document is too large", stage="too_large")
        return self._answer(Call(method="POST", path=relative, headers={}, document=document))

    async def download(
        self,
        path: str,
        sink: Sink,
        *,
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
    ) -> PeerResponse:
        response = self._answer(Call(method="GET", path=self._cut(path), headers=headers or {}))
        if response.size_bytes > max_bytes:
            raise PeerFailure("too large", stage="too_large", status=response.status)
        if response.body:
            sink.write(response.body)
        return PeerResponse(
            status=response.status, headers=response.headers, size_bytes=response.size_bytes
        )

    async def close(self) -> None:
        self.closed = True

    def _cut(self, path: str) -> str:
        try:
            return join_url(self.base_url, path)[len(self.base_url) :]
        except ValueError as error:
            raise PeerFailure(str(error), stage="url") from error

    def _answer(self, call: Call) -> PeerResponse:
        self.calls.append(call)
        route = call.path.partition("?")[0]
        answers = self.answers.get(route, [refuse(404)])
        asked = sum(1 for one in self.calls if one.path.partition("?")[0] == route)
        answer = answers[min(asked, len(answers)) - 1]
        if isinstance(answer, PeerFailure):
            raise answer
        return answer if isinstance(answer, PeerResponse) else answer(call)
