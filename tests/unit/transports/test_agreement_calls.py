"""What the other side's answers about agreements mean."""

from __future__ import annotations

import pytest

from fakes.peer import Answer, FakePeer, refuse, respond
from posthouse.errors import PeerFailure
from posthouse.mail.recipes import (
    AgreementRequest,
    Completion,
    Denial,
    PolicyRequest,
    PolicySettings,
    Recipe,
    Refusal,
)
from posthouse.transports.agreement_calls import PeerForwarders, PeerGranter, follow_move

JSON = "application/json"
REQUEST = AgreementRequest(
    forwarder_id="mx2.example.net",
    category="backup MX",
    policy_negotiation_url="https://mx2.example.net:8447/v1/policy",
    recipes=(Recipe(recipe_id="r-1", recipe_key="k" * 32, name="n", address="alice@example.com"),),
)
COMPLETION = Completion(forwarder_id="mx2.example.net", agreement_id="a-1", password="p")
POLICY = PolicyRequest(
    recipe_id="r-1", recipe_key="k" * 32, agreement_id=None, actor="user", get=("spf",)
)


def peer(path: str, answer: Answer) -> FakePeer:
    made = FakePeer("example.com", "https://mail.example.com:8447/")
    made.answers[path] = [answer]
    return made


@pytest.mark.parametrize(
    ("answer", "denial"),
    [
        (refuse(400), Denial.MALFORMED),
        (refuse(403), Denial.FORBIDDEN),
        (refuse(404), Denial.NOT_FOUND),
        (refuse(409), Denial.CONFLICT),
        (refuse(413), Denial.TOO_LARGE),
        (refuse(422), Denial.UNPROCESSABLE),
        (refuse(429, retry_after_seconds=7), Denial.TOO_MANY),
        (refuse(503, retry_after_seconds=7), Denial.UNAVAILABLE),
        (PeerFailure("ours has 2 MiB", stage="too_large"), Denial.TOO_LARGE),
    ],
)
async def test_refusals(answer: PeerFailure, denial: Denial) -> None:
    """Statuses of the protocol are answers, with the time they ask for."""
    wanted = answer.retry_after_seconds
    for found in (
        await PeerGranter(peer("v1/agreements", answer)).request(REQUEST),
        await PeerGranter(peer("v1/completion", answer)).complete("v1/completion", COMPLETION),
        await PeerForwarders({"mx2": peer("v1/policy", answer)}).negotiate(
            "mx2", "v1/policy", POLICY
        ),
    ):
        assert isinstance(found, Refusal)
        assert (found.denial, found.retry_after_seconds) == (denial, wanted)


@pytest.mark.parametrize(
    "answer",
    [
        refuse(401),
        refuse(405),
        refuse(500),
        PeerFailure("slow", stage="timeout"),
        PeerFailure("its answer", stage="too_large", status=200),
        respond(200, b'{"results": []}', content_type=JSON),
        respond(200, b"<html>", content_type=JSON),
        respond(200, b'{"results": [{"recipe_id": "r-1", "status": "refused"}]}'),
        respond(
            202, b'{"results": [{"recipe_id": "r-1", "status": "refused"}]}', content_type=JSON
        ),
    ],
)
async def test_no_usable_answer(answer: Answer) -> None:
    """Anything else is a failure, which is tried again."""
    with pytest.raises(PeerFailure):
        await PeerGranter(peer("v1/agreements", answer)).request(REQUEST)
    with pytest.raises(PeerFailure):
        await PeerGranter(peer("v1/completion", answer)).complete("v1/completion", COMPLETION)


async def test_urls_elsewhere() -> None:
    """A URL outside the paired base, or of nobody, is not called."""
    made = peer("v1/completion", respond(204))
    with pytest.raises(PeerFailure) as caught:
        await PeerGranter(made).complete("https://evil.example/v1/completion", COMPLETION)
    assert caught.value.stage == "url"
    with pytest.raises(PeerFailure):
        await PeerForwarders({"mx2": made}).negotiate("mx9", "v1/policy", POLICY)
    assert not made.calls
    url = "https://mail.example.com:8447/v1/completion"
    assert await PeerGranter(made).complete(url, COMPLETION) is None


async def test_settings() -> None:
    """What was asked comes back as values."""
    good = respond(200, b'{"settings": {"spf": false}}', content_type=JSON)
    found = await PeerForwarders({"mx2": peer("v1/policy", good)}).negotiate(
        "mx2", "v1/policy", POLICY
    )
    assert found == PolicySettings(spf=False)


def test_a_forwarder_that_moved() -> None:
    """Under its base a URL is called as it is; outside, at the protocol's place under the new one."""
    base = "https://new.example:8447/mx/"
    for url, called in (
        (base + "v1/policy", base + "v1/policy"),
        (base + "else/where", base + "else/where"),
        ("https://old.example/v1/policy", base + "v1/policy"),
        ("https://old.example/x/v1/policy", base + "v1/policy"),
        ("https://old.example/policy", "https://old.example/policy"),  # and refused there
    ):
        assert follow_move(base, url) == called
