"""What the HTTPS door answers: routes, who may, how much, and refusals as problem+json.

The order in which a request is judged: path (404) → method (405) → token (401) →
how often (429) → media type (415) → size (413) → the handler of the route. Paths
are matched as they stand in the request line; the Host header is not looked at.
A handler that fails or takes too long is a 503, one line in the log, and ours.
Spec: PROTOCOL.md §0; RFC 6750 §3 (401), RFC 9110, RFC 9457.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from posthouse import observe
from posthouse.domain.buckets import RateLimit
from posthouse.domain.client_network import client_network, plain_address
from posthouse.errors import StorageError
from posthouse.interfaces.https_problems import (
    NO_JSON,
    NO_TOKEN,
    OUR_FAULT,
    PROBLEM_TYPE,
    TOO_LARGE,
    UNKNOWN_PATH,
    encode_problem,
    too_many,
    wrong_method,
)
from posthouse.ports_https import (
    MAX_JSON_BYTES,
    Flow,
    Parties,
    Party,
    PeerAnswer,
    PeerHandler,
    PeerRequest,
    ProblemAnswer,
)

# A handler may ask a further party (`servers`), each of which may take 40 s.
HANDLER_SECONDS: Final = 120.0


class PeerRoute(msgspec.Struct, frozen=True, kw_only=True):
    """One path for paired parties. path: as in PROTOCOL.md, e.g. "v1/rosters/{domain}"."""

    method: str
    path: str
    handler: PeerHandler


class PartyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How often: each party may ask, each client network may show a wrong token."""

    requests: RateLimit
    wrong_tokens: RateLimit


def make_app(
    routes: Sequence[PeerRoute],
    *,
    parties: Parties,
    limits: PartyLimits,
    prefixes: Iterable[str] = ("/",),
    others: Sequence[BaseRoute] = (),
) -> Starlette:
    """Build the ASGI application.

    prefixes: paths of the base_urls we are known by; each begins and ends with "/".
    others: routes that do not speak to parties (the pages for users).
    """
    mounted: list[BaseRoute] = []
    for prefix in dict.fromkeys(prefixes):
        for route in routes:
            desk = _Desk(route, parties, limits)
            mounted.append(Route(prefix + route.path, desk.answer, methods=[route.method]))
    app = Starlette(
        routes=[*mounted, *others],
        exception_handlers={HTTPException: _refuse_path},
    )
    # Nobody here follows redirects, and one would be built from the Host header.
    app.router.redirect_slashes = False
    return app


async def _refuse_path(_request: Request, error: Exception) -> Response:
    """404 and 405 of the router."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return respond_problem(wrong_method(allowed), {"Allow": allowed})
    if error.status_code == 404:
        return respond_problem(UNKNOWN_PATH)
    return respond_problem(ProblemAnswer(status=error.status_code, title=error.detail))


def respond_problem(problem: ProblemAnswer, headers: dict[str, str] | None = None) -> Response:
    """A refusal as an HTTP response."""
    extra = dict(headers or {})
    if problem.retry_after_seconds is not None:
        extra["Retry-After"] = str(problem.retry_after_seconds)
    if problem.status == 401:
        extra["WWW-Authenticate"] = "Bearer"
    if problem.status == 413:
        extra["Connection"] = "close"  # the rest of the body is not read
    return Response(
        encode_problem(problem),
        status_code=problem.status,
        media_type=PROBLEM_TYPE,
        headers={"Cache-Control": "no-store", **extra},
    )


class _Refused(Exception):
    def __init__(self, problem: ProblemAnswer) -> None:
        super().__init__(problem.title)
        self.problem = problem


class _Desk:
    """Answers one route."""

    def __init__(self, route: PeerRoute, parties: Parties, limits: PartyLimits) -> None:
        self._route = route
        self._parties = parties
        self._limits = limits

    async def answer(self, request: Request) -> Response:
        party: Party | None = None
        try:
            party = self._authenticate(request)
            wait = self._limits.requests.take(party.name)
            if wait:
                raise _Refused(too_many(wait))
            body = await _read_json_body(request) if request.method == "POST" else b""
            answer = await self._ask(party, request, body)
        except _Refused as refused:
            answer = refused.problem
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        name = party.name if party is not None else "unknown party"
        if answer.status != 304:
            observe.note(
                "https",
                f"{name}: {request.method} {request.url.path}: {answer.status}",
                party=name,
                status=answer.status,
            )
        if isinstance(answer, ProblemAnswer):
            return respond_problem(answer)
        return _respond(answer, head=request.method == "HEAD")

    def _authenticate(self, request: Request) -> Party:
        peer = request.client.host if request.client is not None else ""
        network = client_network(plain_address(peer)) if peer else ""
        wait = self._limits.wrong_tokens.peek(network)
        if wait:
            raise _Refused(too_many(wait))
        given = request.headers.getlist("authorization")
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        party = self._parties.find(token.strip(" ")) if scheme.lower() == "bearer" else None
        if party is None:
            self._limits.wrong_tokens.take(network)
            raise _Refused(NO_TOKEN)
        return party

    async def _ask(self, party: Party, request: Request, body: bytes) -> PeerAnswer | ProblemAnswer:
        asked = PeerRequest(
            party=party,
            path_params={name: str(value) for name, value in request.path_params.items()},
            query=_first_values(request),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=body,
        )
        try:
            async with asyncio.timeout(HANDLER_SECONDS):
                return await self._route.handler(asked)
        except StorageError as error:
            observe.trouble("https", f"{self._route.path}: storage", error)
        except Exception as error:  # one request fails, the door stays open
            observe.trouble("https", f"{self._route.path}: failed", error)
        return OUR_FAULT


def _first_values(request: Request) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        found.setdefault(name, value)
    return found


async def _read_json_body(request: Request) -> bytes:
    """The body of a POST. Raises _Refused with 415 or 413, ClientDisconnect."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise _Refused(NO_JSON)
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise _Refused(NO_JSON)
    declared = request.headers.get("content-length", "0")
    if len(declared) > 9 or (declared.isdigit() and int(declared) > MAX_JSON_BYTES):
        raise _Refused(TOO_LARGE)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_JSON_BYTES:
            raise _Refused(TOO_LARGE)
    return bytes(body)


def _respond(answer: PeerAnswer, *, head: bool) -> Response:
    headers = {"Cache-Control": "no-store", **answer.headers}
    document = answer.document
    if document is None:
        return Response(status_code=answer.status, headers=headers)
    if isinstance(document, bytes):
        return Response(
            document, status_code=answer.status, headers=headers, media_type=answer.media_type
        )
    headers["Content-Length"] = str(document.size_bytes)
    if head:
        _close(document)
        return Response(status_code=answer.status, headers=headers, media_type=answer.media_type)
    return StreamingResponse(
        _read_flow(document),
        status_code=answer.status,
        headers=headers,
        media_type=answer.media_type,
    )


async def _read_flow(flow: Flow) -> AsyncIterator[bytes]:
    try:
        while piece := await asyncio.to_thread(next, flow.pieces, b""):
            yield piece
    finally:
        _close(flow)


def _close(flow: Flow) -> None:
    close = getattr(flow.pieces, "close", None)
    if close is not None:
        with contextlib.suppress(ValueError):  # a thread still reads: it ends by itself
            close()
