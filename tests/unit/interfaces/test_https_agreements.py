"""Agreements over HTTPS: every status of the protocol, and both sides over a real door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes.agreement_world import BACKUP, BASE, DOMAIN, PRIMARY, World
from fakes.https_stage import FakeParties, connected, open_door, party
from independent import granter as independent
from posthouse.errors import PeerFailure
from posthouse.interfaces.https_agreements import (
    AGREEMENTS_PATH,
    COMPLETION_PATH,
    POLICY_PATH,
    make_agreements_handler,
    make_completion_handler,
    make_policy_handler,
)
from posthouse.interfaces.https_app import PeerRoute
from posthouse.mail.recipes import Refusal
from posthouse.ports_agreements import GrantState
from posthouse.ports_https import Flow, PeerAnswer, PeerHandler, PeerRequest, ProblemAnswer
from posthouse.storage.forwarder_book import SqliteForwarderBook
from posthouse.storage.granter_book import SqliteGranterBook
from posthouse.transports.agreement_calls import PeerForwarders, PeerGranter
from posthouse.transports.peers import HttpsPeer

KEY = "k" * 32
ALICE = f"alice@{DOMAIN}"
STRONG = "a-Very5trong-one-that-is-long"


def request(**members: Any) -> dict[str, Any]:
    recipe = {
        "recipe_id": "r-1",
        "recipe_key": KEY,
        "name": "Backup MX",
        "recipients": [ALICE],
        "evidence": {"seen_at": "2026-11-23T20:00:00Z"},
    }
    return {
        "forwarder_id": BACKUP,
        "category": "backup MX",
        "policy_negotiation_url": BASE[BACKUP] + "v1/policy",
        "recipes": [recipe],
        **members,
    }


async def ask(handler: PeerHandler, document: object, name: str = BACKUP) -> tuple[int, Any]:
    """Status, and the document (or the problem)."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    answer = await handler(PeerRequest(party=party(name, DOMAIN), body=body))
    if isinstance(answer, ProblemAnswer):
        return answer.status, answer
    assert isinstance(answer, PeerAnswer)
    assert not isinstance(answer.document, Flow)
    return answer.status, json.loads(answer.document) if answer.document else None


async def test_requests() -> None:
    """200 with results; 400, 403, 409, 413, 422 as the protocol says."""
    world = World("alice", "bob")
    handler = make_agreements_handler(world.granter)
    status, document = await ask(handler, request())
    assert status == 200
    (result,) = document["results"]
    assert result["status"] == "granted"
    assert set(result) == {
        "recipe_id",
        "status",
        "agreement_id",
        "completion_url",
        "password",
        "user_id",
    }
    (recipe,) = request()["recipes"]
    other = {**recipe, "recipients": [f"bob@{DOMAIN}"]}
    many = [{**recipe, "recipe_id": f"r-{n}"} for n in range(1001)]
    for expected, document in [
        (400, b"{"),
        (400, b'{"forwarder_id": "a", "forwarder_id": "a"}'),
        (400, request(category="newsletter")),
        (400, request(recipes=None)),
        (403, request(forwarder_id="mx9.example.org")),
        (409, request(recipes=[other])),
        (413, request(recipes=many)),
        (422, request(policy_negotiation_url="https://evil.example/v1/policy")),
    ]:
        status, problem = await ask(handler, document)
        assert status == expected, document
        assert problem.title
    status, _ = await ask(handler, request(), "mx9.example.org")
    assert status == 403


async def test_completions() -> None:
    """204; 400, 403, 404, 422, 429 with Retry-After."""
    world = World("alice")
    _, document = await ask(make_agreements_handler(world.granter), request())
    (result,) = document["results"]
    handler = make_completion_handler(world.granter)
    told = {
        "forwarder_id": BACKUP,
        "agreement_id": result["agreement_id"],
        "password": result["password"],
        "new_password": STRONG,
    }
    assert (await ask(handler, {**told, "new_password": "weak"}))[0] == 422
    assert await ask(handler, told) == (204, None)
    assert (await ask(handler, {**told, "agreement_id": "a-9"}))[0] == 404
    assert (await ask(handler, {**told, "terminate": False}))[0] == 400
    stop = {**told, "password": STRONG, "terminate": True}
    assert (await ask(handler, stop))[0] == 409
    for _ in range(5):
        assert (await ask(handler, {**told, "password": "guess"}))[0] == 403
    status, problem = await ask(handler, {**told, "password": "guess"})
    assert (status, problem.retry_after_seconds) == (429, 3600)


async def test_policies() -> None:
    """200 with settings; 400, 403, 404, 422."""
    world = World("alice")
    world.arrive("alice")
    await world.step()
    entry = world.entry()
    handler = make_policy_handler(world.policy)
    asked: dict[str, Any] = {
        "recipe_id": entry.recipe_id,
        "recipe_key": entry.recipe_key,
        "agreement_id": entry.agreement_id,
        "actor": "user",
    }
    got = {**asked, "get": ["blocked", "servers", "colour"]}
    status, document = await ask(handler, got, PRIMARY)
    assert status == 200
    assert document["settings"]["blocked"] is False
    (server,) = document["settings"]["servers"]
    assert set(server) == {"party", "host", "preference", "since", "messages", "last_message_at"}
    status, document = await ask(handler, {**asked, "set": {"blocked": True}}, PRIMARY)
    assert (status, document) == (200, {"settings": {"blocked": True}})
    cases: list[tuple[int, dict[str, Any]]] = [
        (400, {}),
        (400, {"get": [], "set": {"blocked": True}}),
        (422, {"set": {"colour": "red"}}),
        (422, {"set": {"ended": False}}),
        (403, {"set": {"ended": True}}),
        (403, {"get": [], "recipe_key": "x" * 32}),
        (404, {"get": [], "recipe_id": "r-9"}),
        (404, {"get": [], "agreement_id": "a-9"}),
    ]
    for expected, members in cases:
        assert (await ask(handler, {**asked, **members}, PRIMARY))[0] == expected, members


# --------------------------------------------------------------------------- over real doors


@asynccontextmanager
async def both_sides(world: World, folder: Path) -> AsyncIterator[None]:
    """The world's services on real books, behind real doors, called by real clients."""
    forwarder_book = await SqliteForwarderBook.open(folder / "backup")
    granter_book = await SqliteGranterBook.open(folder / "primary")
    world.forwarder_book, world.granter_book = forwarder_book, granter_book  # type: ignore[assignment]
    world.restart()
    policy = [PeerRoute(method="POST", path=POLICY_PATH, handler=_later(world, "policy"))]
    grants = [
        PeerRoute(method="POST", path=AGREEMENTS_PATH, handler=_later(world, "request")),
        PeerRoute(method="POST", path=COMPLETION_PATH, handler=_later(world, "complete")),
    ]
    tokens = FakeParties(up=party(BACKUP, DOMAIN), down=party(PRIMARY, DOMAIN))
    async with open_door(policy, tokens) as (_, back), open_door(grants, tokens) as (_, front):
        bases = {PRIMARY: f"http://127.0.0.1:{front}/", BACKUP: f"http://127.0.0.1:{back}/"}
        up = HttpsPeer(PRIMARY, bases[PRIMARY], token="up", spki_sha256=None, now_us=world.clock_us)
        down = HttpsPeer(
            BACKUP, bases[BACKUP], token="down", spki_sha256=None, now_us=world.clock_us
        )
        terms = world.settings.forwarders[BACKUP]
        world.settings = type(world.settings)(
            party=PRIMARY,
            completion_url=bases[PRIMARY] + COMPLETION_PATH,
            forwarders={BACKUP: type(terms)(domains=terms.domains, policy_base=bases[BACKUP])},
        )
        world.restart()
        world.link.calls = PeerGranter(up)
        world.link.policy_url = bases[BACKUP] + POLICY_PATH
        world.callbacks._calls = PeerForwarders({BACKUP: down})
        try:
            yield
        finally:
            await up.close()
            await down.close()
            await forwarder_book.close()
            await granter_book.close()


def _later(world: World, what: str) -> PeerHandler:
    """The handler on the services as they are when it is called."""

    async def handle(request: PeerRequest) -> PeerAnswer | ProblemAnswer:
        if what == "policy":
            return await make_policy_handler(world.policy)(request)
        make = make_agreements_handler if what == "request" else make_completion_handler
        return await make(world.granter)(request)

    return handle


async def test_negotiated_over_http(tmp_path: Path) -> None:
    """From the first message to a block and an end, over sockets and on disk."""
    world = World("alice", "bob", "carol")
    async with both_sides(world, tmp_path):
        for name in ("alice", "bob", "carol"):
            world.arrive(name)
        await world.step()
        entry = await world.forwarder_book.find(ALICE)
        assert entry is not None
        assert entry.password
        grant = await world.granter_book.find(entry.agreement_id)
        assert grant is not None
        assert grant.state is GrantState.AGREED
        blocked = await world.callbacks.set_blocked(grant, True, "user")
        assert not isinstance(blocked, Refusal)
        assert blocked.blocked
        (holder,) = await world.callbacks.find_holders(ALICE, "user")
        assert holder.party == BACKUP
        ended = await world.callbacks.end(entry.agreement_id)
        assert ended is not None
        assert ended.state is GrantState.ENDED
        entry = await world.forwarder_book.find(ALICE)
        assert entry is not None
        assert entry.end is not None


async def test_refusals_and_failures_are_told_apart(tmp_path: Path) -> None:
    """Statuses of the protocol are answers; 401, a dead port and rubbish are failures."""
    world = World("alice")
    async with both_sides(world, tmp_path):
        world.link.forwarder_id = "mx9.example.org"
        world.arrive("alice")
        await world.step()
        assert "refuses us" in world.link.trouble
        assert "not your forwarder_id" in world.link.trouble
        stranger = HttpsPeer(
            PRIMARY,
            world.settings.completion_url.removesuffix(COMPLETION_PATH),
            token="wrong",
            spki_sha256=None,
            now_us=world.clock_us,
        )
        world.restart()
        world.link.calls = PeerGranter(stranger)
        await world.step()
        assert "401" in world.link.trouble
        await stranger.close()
        with pytest.raises(PeerFailure):
            await PeerForwarders({}).negotiate("mx9", "https://mx9/", None)  # type: ignore[arg-type]


async def test_the_door_is_before_the_granter() -> None:
    """What is no JSON, or too much of it, does not reach the granter."""
    world = World("alice")
    handler = make_agreements_handler(world.granter)
    routes = [PeerRoute(method="POST", path=AGREEMENTS_PATH, handler=handler)]
    tokens = FakeParties(good=party(BACKUP, DOMAIN))
    async with open_door(routes, tokens) as (_, port), connected(port) as client:
        client.ask("POST", "/v1/agreements", "Content-Type: text/plain", body=b"{}")
        (await client.read()).expect_problem(415)
    async with open_door(routes, tokens) as (_, port), connected(port) as client:
        client.ask("GET", "/v1/agreements")
        (await client.read()).expect_problem(405)
    assert not world.granter_book.grants


# --------------------------------------------------------------------------- another's primary


async def test_with_an_independent_granter() -> None:
    """A granter written from the protocol's text alone agrees with our forwarder."""
    world = World("alice", "bob", "carol")
    other = independent.Granter(
        party=PRIMARY,
        token="up",
        forwarder_id=BACKUP,
        domains=(DOMAIN,),
        fold=lambda address: address.lower().replace("+news", ""),
        mailboxes={ALICE, f"bob@{DOMAIN}"},
        pending={f"bob@{DOMAIN}"},
    )
    with independent.serving(other):
        peer = HttpsPeer(
            PRIMARY, other.base_url, token="up", spki_sha256=None, now_us=world.clock_us
        )
        world.link.calls = PeerGranter(peer)
        world.rosters.publish(["alice", "bob"], issued_us=0)
        for name in ("Alice+news", "bob"):
            world.arrive(name)
        await world.step()
        entry = world.entry()
        assert other.agreements[entry.recipe_id].password == entry.password != ""
        other.pending.clear()
        await world.step(seconds=3)
        entry = world.entry("bob")
        assert other.agreements[entry.recipe_id].password == entry.password != ""
        routes = [
            PeerRoute(method="POST", path=POLICY_PATH, handler=make_policy_handler(world.policy))
        ]
        async with open_door(routes, FakeParties(down=party(PRIMARY, DOMAIN))) as (_, port):
            status, document = await asyncio.to_thread(
                independent.ask_policy,
                f"http://127.0.0.1:{port}/v1/policy",
                "down",
                {
                    "recipe_id": entry.recipe_id,
                    "recipe_key": entry.recipe_key,
                    "agreement_id": entry.agreement_id,
                    "actor": "granter",
                    "get": ["traffic", "servers", "blocked"],
                },
            )
        await peer.close()
    assert status == 200
    assert document["settings"]["traffic"]["messages"] == 1
    assert document["settings"]["servers"][0]["party"] == BACKUP
