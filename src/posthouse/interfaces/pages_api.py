"""The pages for mailbox owners, for programs: JSON below `mailbox/api/`.

| request | what it does |
|---|---|
| POST links `{"address"}` | 202, whether the address exists or not; the link goes there by mail |
| POST visits `{"secret"}` | 200 `{"token", "expires_in_seconds"}`; the link is used up |
| GET servers | who holds the address, as the page shows it |
| PUT agreements/{id} `{"blocked"}` | blocks or unblocks at that backup |
| DELETE agreements/{id} | 409, and why |
| DELETE visits | 204, the token is void |

All but the first two want `Authorization: Bearer TOKEN` of a visit. Refusals are
problem+json (RFC 9457). Documents are I-JSON, at most 8 KiB.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from posthouse import observe
from posthouse.errors import DocumentError, PeerFailure, StorageError
from posthouse.interfaces.https_app import respond_problem
from posthouse.interfaces.https_problems import NO_JSON, OUR_FAULT, too_many
from posthouse.interfaces.pages import PAGES_PATH, network_of
from posthouse.mail.recipes import Refusal
from posthouse.ports_https import ProblemAnswer
from posthouse.ports_rights import Overview, Server, Visit
from posthouse.proto import ijson
from posthouse.services.user_rights import VISIT_LIFETIME, UserRights

MAX_BODY_BYTES: Final = 8 * 1024

_NO_VISIT: Final = ProblemAnswer(
    status=401, title="No visit", detail="Ask for a link (POST links), then POST visits"
)
_BAD_LINK: Final = ProblemAnswer(
    status=403, title="Link is not good", detail="It works once, and for a short while"
)
_NOT_WHILE: Final = ProblemAnswer(
    status=409,
    title="Cannot be deleted while the mailbox exists",
    detail=(
        "A backup has to know an address for as long as there is a mailbox: else the next "
        "message would make the entry again. It can be blocked; it ends with the mailbox."
    ),
)
_UNREACHABLE: Final = ProblemAnswer(
    status=502, title="Server cannot be reached", detail="Nothing was changed; try again later"
)

T = TypeVar("T")


class _LinkWanted(msgspec.Struct, frozen=True):
    address: str


class _LinkShown(msgspec.Struct, frozen=True):
    secret: str


class _Wish(msgspec.Struct, frozen=True):
    blocked: bool


class _Refused(Exception):
    def __init__(self, problem: ProblemAnswer) -> None:
        super().__init__(problem.title)
        self.problem = problem


def make_pages_api(rights: UserRights, *, prefix: str = "/") -> list[BaseRoute]:
    """The routes. prefix: the path of base_url, "/" at both ends."""
    desk = _Api(rights)
    base = prefix + PAGES_PATH + "api/"
    return [
        Route(base + "links", desk.ask_link, methods=["POST"]),
        Route(base + "visits", desk.visits, methods=["POST", "DELETE"]),
        Route(base + "servers", desk.servers, methods=["GET"]),
        Route(base + "agreements/{agreement_id}", desk.agreement, methods=["PUT", "DELETE"]),
    ]


class _Api:
    def __init__(self, rights: UserRights) -> None:
        self._rights = rights

    async def ask_link(self, request: Request) -> Response:
        try:
            wanted = await _read(request, _LinkWanted)
        except _Refused as refused:
            return respond_problem(refused.problem)
        wait = self._rights.ask_link(wanted.address, network_of(request))
        return respond_problem(too_many(wait)) if wait else _answer({}, 202)

    async def visits(self, request: Request) -> Response:
        try:
            if request.method == "DELETE":
                self._visit(request)
                self._rights.leave(_token(request))
                return Response(status_code=204)
            shown = await _read(request, _LinkShown)
        except _Refused as refused:
            return respond_problem(refused.problem)
        token = self._rights.redeem(shown.secret)
        if token is None:
            return respond_problem(_BAD_LINK)
        lifetime = int(VISIT_LIFETIME.total_seconds())
        return _answer({"token": token, "expires_in_seconds": lifetime})

    async def servers(self, request: Request) -> Response:
        try:
            return _answer(_tell(await self._rights.look(self._visit(request))))
        except _Refused as refused:
            return respond_problem(refused.problem)
        except StorageError as error:
            return _our_fault(error)

    async def agreement(self, request: Request) -> Response:
        try:
            visit = self._visit(request)
            if request.method == "DELETE":
                return respond_problem(_NOT_WHILE)
            wish = await _read(request, _Wish)
            agreement_id = request.path_params["agreement_id"]
            refusal = await self._rights.set_blocked(visit, agreement_id, wish.blocked)
        except _Refused as refused:
            return respond_problem(refused.problem)
        except PeerFailure:
            return respond_problem(_UNREACHABLE)
        except StorageError as error:
            return _our_fault(error)
        if isinstance(refusal, Refusal):
            title = "Refused by that server"
            return respond_problem(
                ProblemAnswer(status=refusal.denial.value, title=title, detail=refusal.detail)
            )
        return _answer({"blocked": wish.blocked})

    def _visit(self, request: Request) -> Visit:
        visit = self._rights.find_visit(_token(request))
        if visit is None:
            raise _Refused(_NO_VISIT)
        return visit


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip(" ") if scheme.lower() == "bearer" else ""


async def _read(request: Request, kind: type[T]) -> T:
    """The document of a request. Raises _Refused."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # No form of a browser can send it: what another site posts ends here.
    if media_type != "application/json":
        raise _Refused(NO_JSON)
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                raise _Refused(ProblemAnswer(status=413, title="Body too large"))
    except ClientDisconnect:
        raise _Refused(ProblemAnswer(status=400, title="Cut short")) from None
    try:
        return ijson.decode(bytes(body), kind)
    except DocumentError as error:
        raise _Refused(
            ProblemAnswer(status=400, title="Malformed request", detail=error.detail)
        ) from error


def _answer(document: object, status: int = 200) -> Response:
    return Response(
        msgspec.json.encode(document),
        status,
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _our_fault(error: Exception) -> Response:
    observe.trouble("rights", "an answer could not be made", error)
    return respond_problem(OUR_FAULT)


def _tell(view: Overview) -> dict[str, Any]:
    return {
        "address": view.address,
        "blocking": "allowed" if view.may_block else "forbidden",
        "servers": [_tell_server(server) for server in view.servers],
    }


def _tell_server(server: Server) -> dict[str, Any]:
    """Members that have no value are left out."""
    if server.own:
        return {"party": server.party, "host": server.host, "own": True}
    if server.error:
        return {"party": server.party, "error": server.error}
    found: dict[str, Any] = {
        "party": server.party,
        "host": server.host,
        "preference": server.preference,
        "since": _tell_time(server.since_us),
        "messages": server.messages,
        "last_message_at": _tell_time(server.last_message_us),
        "agreement_id": server.agreement_id or None,
        "blocked": server.blocked,
    }
    return {name: value for name, value in found.items() if value is not None}


def _tell_time(instant_us: int) -> str | None:
    if not instant_us:
        return None
    return datetime.fromtimestamp(instant_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
