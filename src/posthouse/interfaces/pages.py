"""Pages for mailbox owners: plain HTML that works without a script.

`mailbox/` below base_url: enter the address, open the mailed link, see the
servers, block or unblock. What counts is decided in `services.user_rights`; here
are forms, the cookie of a visit and words. Opening a link shows a button only:
programs that look into mail open links, and must not use them up.

Every form of a visit carries its secret; a cross-site POST is refused besides.
Nothing may be framed, no script runs, nothing is cached.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qsl

import jinja2
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from posthouse import observe
from posthouse.domain.client_network import client_network, plain_address
from posthouse.errors import PeerFailure, StorageError
from posthouse.mail.recipes import Refusal, tell_error
from posthouse.ports_rights import Visit
from posthouse.services.user_rights import UserRights

PAGES_PATH: Final = "mailbox/"
MAX_FORM_BYTES: Final = 8 * 1024
COOKIE: Final = "posthouse_visit"
COOKIE_SECONDS: Final = 30 * 60
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class PagesLook(msgspec.Struct, frozen=True, kw_only=True):
    """name: of the organisation. domain: for the example. minutes: a link is good for.

    secure: reached by https, so the cookie is for https only.
    """

    name: str
    domain: str
    minutes: int
    secure: bool


class Notice(msgspec.Struct, frozen=True):
    """One line above the page. kind: "good" or "bad"."""

    kind: str
    text: str


def network_of(request: Request) -> str:
    """Whose requests are counted together."""
    peer = request.client.host if request.client is not None else ""
    return client_network(plain_address(peer)) if peer else ""


def make_pages(rights: UserRights, look: PagesLook, *, prefix: str = "/") -> list[BaseRoute]:
    """The routes. prefix: the path of base_url, "/" at both ends."""
    desk = _Pages(rights, look, prefix + PAGES_PATH)
    base = prefix + PAGES_PATH
    return [
        Route(base, desk.ask, methods=["GET"]),
        Route(base, desk.asked, methods=["POST"]),
        Route(base + "link/{secret}", desk.link, methods=["GET"]),
        Route(base + "link/{secret}", desk.redeem, methods=["POST"]),
        Route(base + "servers", desk.servers, methods=["GET"]),
        Route(base + "servers", desk.change, methods=["POST"]),
        Route(base + "leave", desk.leave, methods=["POST"]),
        Route(base + "style.css", desk.style, methods=["GET"]),
    ]


def tell_day(instant_us: int) -> str:
    """A date for people; "–" for none."""
    return (
        datetime.fromtimestamp(instant_us / 1e6, UTC).strftime("%-d %b %Y") if instant_us else "–"
    )


def tell_moment(instant_us: int) -> str:
    """Date and time for people, UTC; "none yet" for none."""
    if not instant_us:
        return "none yet"
    return datetime.fromtimestamp(instant_us / 1e6, UTC).strftime("%-d %b %Y, %H:%M UTC")


class _Pages:
    def __init__(self, rights: UserRights, look: PagesLook, base: str) -> None:
        self._rights = rights
        self._look = look
        self._base = base
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("posthouse.interfaces", "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self._templates.filters["day"] = tell_day
        self._templates.filters["moment"] = tell_moment
        self._templates.filters["tell_error"] = tell_error
        self._style = self._read("style.css")

    def _read(self, name: str) -> str:
        loader = self._templates.loader
        assert loader is not None
        return loader.get_source(self._templates, name)[0]

    # ------------------------------------------------------------------ the way in

    async def ask(self, _request: Request) -> Response:
        return self._page("ask.html")

    async def asked(self, request: Request) -> Response:
        form = await self._read_form(request)
        if isinstance(form, Response):
            return form
        wait = self._rights.ask_link(form.get("address", ""), network_of(request))
        if wait:
            return self._problem(
                429,
                "Too many links asked for",
                f"Please try again in {max(1, wait // 60)} minutes.",
                {"Retry-After": str(wait)},
            )
        return self._page("asked.html")

    async def link(self, request: Request) -> Response:
        secret = request.path_params["secret"]
        good = self._rights.find_link(secret)
        return self._page("link.html", 200 if good else 410, good=good, secret=secret)

    async def redeem(self, request: Request) -> Response:
        if _is_from_elsewhere(request):
            return self._elsewhere()
        secret = request.path_params["secret"]
        visit = self._rights.redeem(secret)
        if visit is None:
            return self._page("link.html", 410, good=False, secret=secret)
        response = RedirectResponse(self._base + "servers", 303, headers=HEADERS)
        response.set_cookie(
            COOKIE,
            visit,
            max_age=COOKIE_SECONDS,
            path=self._base,
            secure=self._look.secure,
            httponly=True,
            samesite="strict",
        )
        return response

    # ------------------------------------------------------------------ a visit

    async def servers(self, request: Request) -> Response:
        visit = self._find_visit(request)
        return self._over() if visit is None else await self._show(visit, None)

    async def change(self, request: Request) -> Response:
        form = await self._read_form(request)
        if isinstance(form, Response):
            return form
        visit = self._find_visit(request)
        if visit is None:
            return self._over()
        if not self._rights.may_post(visit, form.get("csrf", "")):
            return self._elsewhere()
        wanted = form.get("blocked")
        if wanted not in ("true", "false"):
            return self._problem(400, "That did not work", "The form was not whole.")
        return await self._block(visit, form.get("agreement_id", ""), wanted == "true")

    async def _block(self, visit: Visit, agreement_id: str, blocked: bool) -> Response:
        try:
            refusal = await self._rights.set_blocked(visit, agreement_id, blocked)
        except PeerFailure:
            text = "That server cannot be reached just now. Nothing was changed; try again later."
            return await self._show(visit, Notice("bad", text), 502)
        except StorageError as error:
            return self._our_fault(error)
        if isinstance(refusal, Refusal):
            text = f"That server refused: {refusal.detail or 'no reason given'}."
            return await self._show(visit, Notice("bad", text), refusal.denial.value)
        text = "Your address is blocked there now." if blocked else "Your address is unblocked."
        return await self._show(visit, Notice("good", text))

    async def leave(self, request: Request) -> Response:
        form = await self._read_form(request)
        if isinstance(form, Response):
            return form
        visit = self._find_visit(request)
        if visit is not None and self._rights.may_post(visit, form.get("csrf", "")):
            self._rights.leave(request.cookies.get(COOKIE, ""))
        response = RedirectResponse(self._base, 303, headers=HEADERS)
        response.delete_cookie(COOKIE, path=self._base)
        return response

    async def style(self, _request: Request) -> Response:
        headers = {**HEADERS, "Cache-Control": "max-age=86400"}
        return Response(self._style, media_type="text/css", headers=headers)

    async def _show(self, visit: Visit, notice: Notice | None, status: int = 200) -> Response:
        try:
            view = await self._rights.look(visit)
        except StorageError as error:
            return self._our_fault(error)
        return self._page("servers.html", status, view=view, visit=visit, notice=notice)

    # ------------------------------------------------------------------ what all share

    def _find_visit(self, request: Request) -> Visit | None:
        secret = request.cookies.get(COOKIE)
        return self._rights.find_visit(secret) if secret else None

    async def _read_form(self, request: Request) -> dict[str, str] | Response:
        """The fields of a form of ours, each once; or what to answer instead."""
        if _is_from_elsewhere(request):
            return self._elsewhere()
        body = bytearray()
        try:
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_FORM_BYTES:
                    return self._problem(413, "That did not work", "The form was too large.")
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        try:
            fields = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=10)
        except ValueError:
            return self._problem(400, "That did not work", "The form could not be read.")
        return dict(reversed(fields))

    def _page(
        self,
        template: str,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        **facts: Any,
    ) -> Response:
        text = self._templates.get_template(template).render(
            {
                "base": self._base,
                "name": self._look.name,
                "domain": self._look.domain,
                "minutes": self._look.minutes,
                "visit": None,
                "notice": None,
                **facts,
            }
        )
        return Response(
            text, status, media_type="text/html", headers={**HEADERS, **(headers or {})}
        )

    def _problem(
        self, status: int, title: str, text: str, headers: Mapping[str, str] | None = None
    ) -> Response:
        return self._page("problem.html", status, headers, title=title, text=text)

    def _over(self) -> Response:
        return self._problem(
            403,
            "Your visit is over",
            f"A visit lasts {COOKIE_SECONDS // 60} minutes. Ask for a new link to come back.",
        )

    def _elsewhere(self) -> Response:
        return self._problem(
            403, "That did not work", "The request did not come from a page of ours."
        )

    def _our_fault(self, error: Exception) -> Response:
        observe.trouble("rights", "a page could not be made", error)
        return self._problem(503, "That did not work", "The fault is ours. Please try again later.")


def _is_from_elsewhere(request: Request) -> bool:
    """Browsers say where a request comes from (Fetch Metadata); others do not, and may pass."""
    site = request.headers.get("sec-fetch-site", "same-origin")
    return site not in ("same-origin", "none")
