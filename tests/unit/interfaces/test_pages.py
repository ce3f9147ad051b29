"""The pages and the API for mailbox owners, over a real door and by hand-written requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import pytest

from fakes.https_stage import Answer, Client, connected
from fakes.rights_stage import FORBIDDEN, World, grant, open_pages
from posthouse.interfaces.pages import tell_day, tell_moment

FORM = "Content-Type: application/x-www-form-urlencoded"


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
async def client(world: World) -> AsyncIterator[Client]:
    async with open_pages(world) as port, connected(port) as client:
        yield client


async def get(client: Client, path: str, *headers: str) -> Answer:
    client.ask("GET", path, *headers, token=None)
    return await client.read()


async def post(client: Client, path: str, *headers: str, **fields: str) -> Answer:
    client.ask("POST", path, FORM, *headers, token=None, body=urlencode(fields).encode())
    return await client.read()


async def enter(world: World, client: Client, address: str = "alice@example.com") -> str:
    """Open a visit as a browser does; the cookie header."""
    secret = await world.get_link(address)
    answer = await post(client, f"/mailbox/link/{secret}")
    assert (answer.status, answer.headers["location"]) == (303, "/mailbox/servers")
    return "Cookie: " + answer.headers["set-cookie"].partition(";")[0]


def csrf_in(page: Answer) -> str:
    return page.body.decode().partition('name="csrf" value="')[2].partition('"')[0]


async def test_the_way_in(world: World, client: Client) -> None:
    """Ask, get the mail, open the link, press the button, see the servers."""
    page = await get(client, "/mailbox/")
    assert page.status == 200
    assert b'name="address"' in page.body
    page = await post(client, "/mailbox/", address="alice@example.com")
    assert page.status == 200
    await world.settle()
    secret = world.sent[0][2].partition("/mailbox/link/")[2].split()[0]
    for _ in range(2):  # a mail scanner opens it first
        page = await get(client, f"/mailbox/link/{secret}")
        assert (page.status, b"Show the servers" in page.body) == (200, True)
    answer = await post(client, f"/mailbox/link/{secret}")
    cookie = answer.headers["set-cookie"]
    for part in ("HttpOnly", "SameSite=strict", "Path=/mailbox/"):
        assert part in cookie
    page = await get(client, "/mailbox/servers", "Cookie: " + cookie.partition(";")[0])
    text = page.body.decode()
    for expected in ("relay.example.net", "1,234", "18 Nov 2026", "no answer in time", "Our own"):
        assert expected in text
    assert (await post(client, f"/mailbox/link/{secret}")).status == 410


async def test_existing_and_other_addresses_look_alike(world: World, client: Client) -> None:
    """The very same octets, whoever is asked about."""
    answers = []
    for address in ("alice@example.com", "nobody@example.com", "x@elsewhere.example", "", "<b>"):
        answer = await post(client, "/mailbox/", address=address)
        answer.headers.pop("date")
        answers.append((answer.status, answer.headers, answer.body))
    assert all(answer == answers[0] for answer in answers)


async def test_headers_keep_pages_safe(client: Client) -> None:
    """No script, no frame, no referrer, no cache."""
    for path in ("/mailbox/", "/mailbox/link/x", "/mailbox/servers"):
        page = await get(client, path)
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["referrer-policy"] == "no-referrer"
        assert page.headers["cache-control"] == "no-store"
        assert b"<script" not in page.body
    assert (await get(client, "/mailbox/style.css")).headers["content-type"].startswith("text/css")


async def test_names_are_escaped(world: World, client: Client) -> None:
    """Nothing of a backup's words becomes markup."""
    world.holders[2] = type(world.holders[2])(party="<b>x</b>", error="<script>alert(1)</script>")
    page = await get(client, "/mailbox/servers", await enter(world, client))
    assert b"<script" not in page.body
    assert b"&lt;script&gt;" in page.body
    assert b"Example &amp; Sons" in page.body


async def test_blocking_and_unblocking(world: World, client: Client) -> None:
    """A button for each backup of ours; afterwards the page says how it stands."""
    cookie = await enter(world, client)
    page = await get(client, "/mailbox/servers", cookie)
    fields = {"csrf": csrf_in(page), "agreement_id": "a-mx2-example-net"}
    page = await post(client, "/mailbox/servers", cookie, blocked="true", **fields)
    assert page.status == 200
    assert b"is blocked there now" in page.body
    assert b"Refuses mail for you" in page.body
    page = await post(client, "/mailbox/servers", cookie, blocked="false", **fields)
    assert b"is unblocked" in page.body
    assert [block[:2] for block in world.blocks] == [
        ("mx2.example.net", True),
        ("mx2.example.net", False),
    ]


async def test_forms_from_elsewhere(world: World, client: Client) -> None:
    """Without the secret of the visit, or from another site, nothing is done."""
    cookie = await enter(world, client)
    csrf = csrf_in(await get(client, "/mailbox/servers", cookie))
    wish = {"agreement_id": "a-mx2-example-net", "blocked": "true"}
    assert (await post(client, "/mailbox/servers", cookie, **wish)).status == 403
    assert (await post(client, "/mailbox/servers", cookie, csrf="x", **wish)).status == 403
    assert (await post(client, "/mailbox/servers", csrf=csrf, **wish)).status == 403
    for path in ("/mailbox/servers", "/mailbox/", "/mailbox/leave"):
        answer = await post(client, path, cookie, "Sec-Fetch-Site: cross-site", csrf=csrf, **wish)
        assert answer.status == 403
    assert world.blocks == []
    assert world.sent[1:] == []


async def test_forms_that_are_odd(world: World, client: Client) -> None:
    """Too large, not ASCII, without a wish: each a page that says so."""
    cookie = await enter(world, client)
    csrf = csrf_in(await get(client, "/mailbox/servers", cookie))
    assert (await post(client, "/mailbox/servers", cookie, csrf=csrf)).status == 400
    client.ask("POST", "/mailbox/", FORM, token=None, body=b"address=\xff")
    assert (await client.read()).status == 400
    client.ask("POST", "/mailbox/", FORM, token=None, body=b"a=1&" * 50)
    assert (await client.read()).status == 400
    client.ask("POST", "/mailbox/", FORM, token=None, body=b"x" * 9000)
    assert (await client.read()).status == 413


async def test_what_goes_wrong_is_said(world: World, client: Client) -> None:
    """A backup that refuses or is away, a book that is broken: words, and nothing of the inside."""
    cookie = await enter(world, client)
    csrf = csrf_in(await get(client, "/mailbox/servers", cookie))
    wish = {"csrf": csrf, "agreement_id": "a-mx2-example-net", "blocked": "true"}
    world.refusal = FORBIDDEN
    page = await post(client, "/mailbox/servers", cookie, **wish)
    assert (page.status, b"forbids blocking" in page.body) == (403, True)
    world.broken.add("backup")
    page = await post(client, "/mailbox/servers", cookie, **wish)
    assert (page.status, b"cannot be reached" in page.body) == (502, True)
    world.broken.add("book")
    page = await get(client, "/mailbox/servers", cookie)
    assert (page.status, b"disk" in page.body) == (503, False)


async def test_without_a_visit(client: Client) -> None:
    """The page of servers is nobody's; the way back is named."""
    for header in ("X: y", "Cookie: posthouse_visit=guessed"):
        page = await get(client, "/mailbox/servers", header)
        assert page.status == 403
        assert b'href="/mailbox/"' in page.body


async def test_leaving(world: World, client: Client) -> None:
    """The visit is over at once; a form from elsewhere cannot end it."""
    cookie = await enter(world, client)
    csrf = csrf_in(await get(client, "/mailbox/servers", cookie))
    await post(client, "/mailbox/leave", cookie, csrf="x")
    assert (await get(client, "/mailbox/servers", cookie)).status == 200
    answer = await post(client, "/mailbox/leave", cookie, csrf=csrf)
    assert (answer.status, answer.headers["location"]) == (303, "/mailbox/")
    assert (await get(client, "/mailbox/servers", cookie)).status == 403


async def test_too_many_links(world: World, client: Client) -> None:
    """429 with Retry-After, as a page."""
    for _ in range(30):
        assert (await post(client, "/mailbox/", address="x@example.com")).status == 200
    page = await post(client, "/mailbox/", address="x@example.com")
    assert page.status == 429
    assert int(page.headers["retry-after"]) > 0


async def test_where_blocking_is_forbidden(world: World, client: Client) -> None:
    """No button, and the reason; a block of before can still be lifted."""
    world.rights.reload(
        type(world.rights._settings)(
            party="example.com",
            host="mail.example.com",
            blocking={"example.com": False},
            link_url="https://mail.example.com:8447/mailbox/link/",
        ),
        world,
    )
    world.grants[1] = grant("mx3.example.net", blocked=True)
    page = await get(client, "/mailbox/servers", await enter(world, client))
    assert page.body.count(b"<button") == 2  # leave, and unblock
    assert b"Unblock" in page.body
    assert b"does not allow blocking" in page.body


# --------------------------------------------------------------------------- the API


async def call(
    client: Client, method: str, path: str, document: Any = None, token: str | None = None
) -> Answer:
    body = None if document is None else json.dumps(document).encode()
    client.ask(method, f"/mailbox/api/{path}", token=token, body=body)
    return await client.read()


async def test_the_api(world: World, client: Client) -> None:
    """All that the pages do, for programs."""
    answer = await call(client, "POST", "links", {"address": "alice@example.com"})
    assert (answer.status, answer.json) == (202, {})
    await world.settle()
    secret = world.sent[0][2].partition("/mailbox/link/")[2].split()[0]
    answer = await call(client, "POST", "visits", {"secret": secret})
    assert answer.json["expires_in_seconds"] == 1800
    token = answer.json["token"]
    answer = await call(client, "GET", "servers", token=token)
    assert answer.json["address"] == "alice@example.com"
    assert answer.json["blocking"] == "allowed"
    assert answer.json["servers"][0] == {
        "party": "example.com",
        "host": "mail.example.com",
        "own": True,
    }
    assert {"party": "mx4.example.org", "error": "timeout"} in answer.json["servers"]
    assert {
        "party": "mx2.example.net",
        "host": "relay.example.net",
        "preference": 20,
        "since": "2026-11-18T21:06:40Z",
        "messages": 1234,
        "last_message_at": "2026-11-28T21:05:40Z",
        "agreement_id": "a-mx2-example-net",
        "blocked": False,
    } in answer.json["servers"]
    path = "agreements/a-mx2-example-net"
    answer = await call(client, "PUT", path, {"blocked": True}, token)
    assert (answer.status, answer.json) == (200, {"blocked": True})
    answer = await call(client, "DELETE", path, token=token)
    answer.expect_problem(409)
    assert "mailbox" in answer.json["title"]
    assert (await call(client, "DELETE", "visits", token=token)).status == 204
    (await call(client, "GET", "servers", token=token)).expect_problem(401)


async def test_what_the_api_refuses(world: World, client: Client) -> None:
    """Without a visit 401, a used link 403, odd documents 400, other types 415, other's 404."""
    for method, path, document in (
        ("GET", "servers", None),
        ("PUT", "agreements/x", {"blocked": True}),
        ("DELETE", "agreements/x", None),
        ("DELETE", "visits", None),
    ):
        answer = await call(client, method, path, document, "guessed")
        answer.expect_problem(401)
        assert answer.headers["www-authenticate"] == "Bearer"
    (await call(client, "POST", "visits", {"secret": "x"})).expect_problem(403)
    odd: Any
    for odd in ({}, [], {"address": 5}, "x"):
        (await call(client, "POST", "links", odd)).expect_problem(400)
    client.ask("POST", "/mailbox/api/links", FORM, token=None, body=b"{}")
    (await client.read()).expect_problem(415)
    token = world.rights.redeem(await world.get_link()) or ""
    (await call(client, "PUT", "agreements/x", {"blocked": True}, token)).expect_problem(404)
    world.broken.add("backup")
    path = "agreements/a-mx2-example-net"
    (await call(client, "PUT", path, {"blocked": True}, token)).expect_problem(502)
    world.broken.add("book")
    (await call(client, "GET", "servers", token=token)).expect_problem(503)
    (await call(client, "POST", "links", {"address": "x" * 9000})).expect_problem(413)


def test_times_for_people() -> None:
    """A day, a moment, and none."""
    assert tell_day(1_795_900_000_000_000) == "28 Nov 2026"
    assert tell_moment(1_795_900_000_000_000) == "28 Nov 2026, 21:06 UTC"
    assert (tell_day(0), tell_moment(0)) == ("–", "none yet")
