"""What the HTTPS door answers, over real sockets: who may, how much, and every refusal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fakes.https_stage import Client, FakeParties, connected, generous, open_door, party
from posthouse.domain.buckets import Buckets
from posthouse.errors import StorageBroken
from posthouse.interfaces.https_app import PartyLimits, PeerRoute
from posthouse.interfaces.https_rosters import ROSTER_PATH, RosterDesk
from posthouse.ports_https import MAX_JSON_BYTES, PeerAnswer, PeerRequest, ProblemAnswer
from posthouse.ports_publish import RosterReply, RosterReplyKind

PARTIES = FakeParties(
    good=party("mx2.example.net", "example.com", key_ids=("k1", "k0")),
    other=party("mx3.example.net", "example.org", key_ids=("k2",)),
)


class Echo:
    """Answers with what it was asked; `then` may be something else to answer or raise."""

    def __init__(self) -> None:
        self.asked: list[PeerRequest] = []
        self.then: PeerAnswer | ProblemAnswer | Exception | None = None

    async def answer(self, request: PeerRequest) -> PeerAnswer | ProblemAnswer:
        self.asked.append(request)
        if isinstance(self.then, Exception):
            raise self.then
        return self.then or PeerAnswer(document=request.body)


class Rosters:
    """One domain; see `posthouse.ports_publish.PublishedRosters`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.asked: list[tuple[str, str, int | None, str]] = []
        self.missing = ""

    async def find(
        self, domain: str, key_id: str, *, since: int | None = None, if_none_match: str = ""
    ) -> RosterReply | None:
        self.asked.append((domain, key_id, since, if_none_match))
        if domain != "example.com" or key_id == self.missing:
            return None
        if if_none_match == '"7"':
            return RosterReply(kind=RosterReplyKind.NOT_MODIFIED, serial=7)
        if since is not None:
            return RosterReply(kind=RosterReplyKind.DELTA, serial=7, body=b"delta")
        size = self.file.stat().st_size if self.file.exists() else 5
        return RosterReply(
            kind=RosterReplyKind.WHOLE, serial=7, path=str(self.file), size_bytes=size
        )


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def door(echo: Echo) -> AsyncIterator[int]:
    routes = [PeerRoute(method="POST", path="v1/policy", handler=echo.answer)]
    async with open_door(routes, PARTIES, prefixes=["/", "/deep/"]) as (_, port):
        yield port


@pytest.fixture
async def client(door: int) -> AsyncIterator[Client]:
    async with connected(door) as client:
        yield client


async def test_a_good_request_reaches_its_handler(client: Client, echo: Echo) -> None:
    """With its party, its body, its headers and its query, below every path we are known by."""
    client.ask("POST", "/v1/policy?a=1&a=2&b=", "X-Odd: 1", body=b'{"x": 1}')
    answer = await client.read()
    assert (answer.status, answer.json) == (200, {"x": 1})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers
    client.ask("POST", "/deep/v1/policy", body=b"{}")
    assert (await client.read()).status == 200
    first = echo.asked[0]
    assert first.party.name == "mx2.example.net"
    assert first.query == {"a": "1", "b": ""}
    assert first.headers["x-odd"] == "1"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Authorization: Bearer wrong"],
        ["Authorization: Bearer"],
        ["Authorization: Bearer "],
        ["Authorization: Basic Z29vZDo="],
        ["Authorization: good"],
        ["Authorization: Bearer good", "Authorization: Bearer good"],
        ["Authorization: Bearer good extra"],
        ["X-Authorization: Bearer good"],
    ],
)
async def test_without_a_token(client: Client, echo: Echo, headers: list[str]) -> None:
    """401 with WWW-Authenticate, and no handler hears of it."""
    client.ask("POST", "/v1/policy", *headers, token=None, body=b"{}")
    answer = await client.read()
    answer.expect_problem(401)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert echo.asked == []


async def test_the_scheme_has_no_case(client: Client) -> None:
    """RFC 9110 §11.1."""
    client.ask("POST", "/v1/policy", "Authorization: bearer good", token=None, body=b"{}")
    assert (await client.read()).status == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/policy/", "//v1/policy", "/V1/policy", "/v1/../v1/policy", "/v2/policy"],
)
async def test_other_paths(client: Client, path: str) -> None:
    """404, a spelling that a proxy might take for ours included."""
    client.ask("POST", path, body=b"{}")
    (await client.read()).expect_problem(404)


async def test_the_host_header_does_not_count(client: Client) -> None:
    """Whatever it says, the path of the request line decides (CVE-2026-48710 and its kind)."""
    for host in ("evil/v1/policy?", "evil@x", ""):
        client.send(f"POST /v1/other HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n")
        assert (await client.read()).status in (400, 404)


async def test_other_methods(client: Client) -> None:
    """405 with Allow."""
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        client.ask(method, "/v1/policy")
        answer = await client.read()
        answer.expect_problem(405)
        assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Type: text/plain"],
        ["Content-Type: application/x-www-form-urlencoded"],
        ["Content-Type: "],
        ["Content-Type: application/json", "Content-Encoding: gzip"],
    ],
)
async def test_other_media_types(client: Client, headers: list[str]) -> None:
    """415, codings included."""
    client.ask("POST", "/v1/policy", *headers, body=b"{}")
    (await client.read()).expect_problem(415)


async def test_parameters_of_the_media_type(client: Client) -> None:
    """application/json may say its charset."""
    client.ask("POST", "/v1/policy", "Content-Type: Application/JSON;charset=utf-8", body=b"{}")
    assert (await client.read()).status == 200


async def test_a_body_of_exactly_the_limit(client: Client, echo: Echo) -> None:
    """1 MiB is taken."""
    client.ask("POST", "/v1/policy", body=b"x" * MAX_JSON_BYTES)
    assert (await client.read()).status == 200
    assert len(echo.asked[0].body) == MAX_JSON_BYTES


async def test_a_body_that_says_it_is_too_large(client: Client, echo: Echo) -> None:
    """413 before it is read; the connection ends."""
    client.ask("POST", "/v1/policy", f"Content-Length: {MAX_JSON_BYTES + 1}",
               "Content-Type: application/json")  # fmt: skip
    (await client.read()).expect_problem(413)
    assert await client.rest() == b""
    assert echo.asked == []


async def test_a_body_that_turns_out_too_large(client: Client, echo: Echo) -> None:
    """413 as soon as more than 1 MiB of chunks is here."""
    client.ask("POST", "/v1/policy", "Content-Type: application/json", "Transfer-Encoding: chunked")
    for _ in range(17):
        client.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    (await client.read()).expect_problem(413)
    assert echo.asked == []


async def test_refusals_of_handlers(client: Client, echo: Echo) -> None:
    """Status, title, detail and Retry-After arrive as the handler gave them."""
    echo.then = ProblemAnswer(
        status=429, title="Too many", detail="Five wrong passwords", retry_after_seconds=3600
    )
    client.ask("POST", "/v1/policy", body=b"{}")
    answer = await client.read()
    answer.expect_problem(429)
    assert answer.headers["retry-after"] == "3600"
    assert answer.json == {"title": "Too many", "status": 429, "detail": "Five wrong passwords"}


@pytest.mark.parametrize("error", [RuntimeError("boom"), StorageBroken("disk")])
async def test_handlers_that_fail(client: Client, echo: Echo, error: Exception) -> None:
    """503, nothing of the inside shows, and the next request is served."""
    echo.then = error
    client.ask("POST", "/v1/policy", body=b"{}")
    answer = await client.read()
    answer.expect_problem(503)
    assert answer.headers["retry-after"] == "60"
    assert b"boom" not in answer.body
    assert b"disk" not in answer.body
    echo.then = None
    client.ask("POST", "/v1/policy", body=b"{}")
    assert (await client.read()).status == 200


async def test_no_content(client: Client, echo: Echo) -> None:
    """204 has no body, and the connection goes on."""
    echo.then = PeerAnswer(status=204)
    client.ask("POST", "/v1/policy", body=b"{}")
    assert (await client.read()).status == 204
    client.ask("POST", "/v1/policy", body=b"{}")
    assert (await client.read()).status == 204


async def test_how_often(echo: Echo) -> None:
    """A party that asks too often gets 429 with Retry-After; others go on."""
    now = [0.0]
    limits = PartyLimits(
        requests=Buckets(per_minute=6, burst=2, clock=lambda: now[0]),
        wrong_tokens=generous().wrong_tokens,
    )
    routes = [PeerRoute(method="POST", path="v1/policy", handler=echo.answer)]
    async with (
        open_door(routes, PARTIES, party_limits=limits) as (_, port),
        connected(port) as client,
    ):

        async def ask(token: str) -> int:
            client.ask("POST", "/v1/policy", token=token, body=b"{}")
            answer = await client.read()
            if answer.status == 429:
                assert answer.headers["retry-after"] == "10"
            return answer.status

        assert [await ask("good") for _ in range(3)] == [200, 200, 429]
        assert await ask("other") == 200
        now[0] = 10.0
        assert await ask("good") == 200


async def test_guessing_tokens(echo: Echo) -> None:
    """After some wrong tokens a network gets 429, whatever it shows."""
    limits = PartyLimits(
        requests=generous().requests,
        wrong_tokens=Buckets(per_minute=1, burst=3, clock=lambda: 0.0),
    )
    routes = [PeerRoute(method="POST", path="v1/policy", handler=echo.answer)]
    async with (
        open_door(routes, PARTIES, party_limits=limits) as (_, port),
        connected(port) as client,
    ):
        for token, status in [("a", 401), ("b", 401), ("c", 401), ("d", 429), ("good", 429)]:
            client.ask("POST", "/v1/policy", token=token, body=b"{}")
            (await client.read()).expect_problem(status)


# --------------------------------------------------------------------------- rosters


@pytest.fixture
async def rosters(tmp_path: Path) -> AsyncIterator[tuple[Rosters, Client]]:
    file = tmp_path / "example.com.roster"
    file.write_bytes(bytes(range(256)) * 4000)
    found = Rosters(file)
    routes = [PeerRoute(method="GET", path=ROSTER_PATH, handler=RosterDesk(found).answer)]
    async with open_door(routes, PARTIES) as (_, port), connected(port) as client:
        yield found, client


async def test_a_whole_roster(rosters: tuple[Rosters, Client]) -> None:
    """Its octets, media type and ETag; the key is that of the token shown."""
    found, client = rosters
    client.ask("GET", "/v1/rosters/example.com")
    answer = await client.read()
    assert answer.status == 200
    assert answer.body == found.file.read_bytes()
    assert answer.headers["content-type"] == "application/vnd.posthouse.roster"
    assert answer.headers["etag"] == '"7"'
    assert answer.headers["content-length"] == str(len(answer.body))
    assert found.asked == [("example.com", "k1", None, "")]
    client.ask("HEAD", "/v1/rosters/EXAMPLE.com")
    answer = await client.read(head=True)
    assert (answer.status, answer.headers["content-length"]) == (200, "1024000")
    client.ask("GET", "/v1/rosters/example.com")
    assert (await client.read()).status == 200


async def test_a_roster_of_the_former_key(rosters: tuple[Rosters, Client]) -> None:
    """After a rotation it is served until there is one of the new key: no gap."""
    found, client = rosters
    found.missing = "k1"
    client.ask("GET", "/v1/rosters/example.com")
    assert (await client.read()).status == 200
    assert [key_id for _, key_id, _, _ in found.asked] == ["k1", "k0"]


async def test_not_modified_and_deltas(rosters: tuple[Rosters, Client]) -> None:
    """If-None-Match and since reach the publisher; 304 has the ETag."""
    found, client = rosters
    client.ask("GET", "/v1/rosters/example.com?since=5", 'If-None-Match: "7"')
    answer = await client.read()
    assert (answer.status, answer.headers["etag"]) == (304, '"7"')
    client.ask("GET", "/v1/rosters/example.com?since=5", 'If-None-Match: "5"')
    answer = await client.read()
    assert (answer.status, answer.body) == (200, b"delta")
    assert answer.headers["content-type"] == "application/vnd.posthouse.roster-delta"
    assert found.asked == [("example.com", "k1", 5, '"7"'), ("example.com", "k1", 5, '"5"')]


@pytest.mark.parametrize("domain", ["example.org", "nowhere.example", "a b", "%00", "..", "x%2fy"])
async def test_domains_of_others(rosters: tuple[Rosters, Client], domain: str) -> None:
    """404 for what is unknown, not this party's, or no domain at all."""
    found, client = rosters
    client.ask("GET", f"/v1/rosters/{domain}".replace(" ", "%20"))
    (await client.read()).expect_problem(404)
    assert found.asked == []


async def test_a_domain_without_roster_yet(rosters: tuple[Rosters, Client]) -> None:
    """503 and when to come again: it may be under way, and the domain is one that is backed up."""
    _, client = rosters
    client.ask("GET", "/v1/rosters/example.org", token="other")
    answer = await client.read()
    answer.expect_problem(503)
    assert answer.headers["retry-after"] == "30"


@pytest.mark.parametrize(
    "since", ["", "x", "-1", "0", "1.5", "9" * 17, "%31%20", "9007199254740992"]
)
async def test_odd_serials(rosters: tuple[Rosters, Client], since: str) -> None:
    """400: since is a serial or is not there."""
    _, client = rosters
    client.ask("GET", f"/v1/rosters/example.com?since={since}")
    (await client.read()).expect_problem(400)


async def test_a_file_that_is_gone(rosters: tuple[Rosters, Client]) -> None:
    """503, and not half an answer."""
    found, client = rosters
    found.file.unlink()
    client.ask("GET", "/v1/rosters/example.com")
    (await client.read()).expect_problem(503)


async def test_many_at_once(rosters: tuple[Rosters, Client]) -> None:
    """Requests sent ahead on one connection are answered in order."""
    _, client = rosters
    for since in range(1, 6):
        client.ask("GET", f"/v1/rosters/example.com?since={since}")
    for _ in range(5):
        assert (await client.read()).body == b"delta"


async def test_slow_handlers(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that never ends is a 503."""
    monkeypatch.setattr("posthouse.interfaces.https_app.HANDLER_SECONDS", 0.05)

    async def never(_request: PeerRequest) -> PeerAnswer:
        await asyncio.Event().wait()
        return PeerAnswer()

    routes = [PeerRoute(method="POST", path="v1/policy", handler=never)]
    async with open_door(routes, PARTIES) as (_, port), connected(port) as client:
        client.ask("POST", "/v1/policy", body=json.dumps({}).encode())
        (await client.read()).expect_problem(503)
