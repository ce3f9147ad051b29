"""Documents of agreements: what is read, what is refused, and that both ways agree."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.errors import DocumentError
from posthouse.mail.recipes import (
    Completion,
    Holder,
    PolicyRequest,
    PolicySettings,
    RecipeResult,
    Settings,
    Status,
    Traffic,
)
from posthouse.proto.agreement_wire import (
    TooMany,
    UnknownKeyword,
    decode_completion,
    decode_policy,
    decode_request,
    decode_results,
    decode_settings,
    encode_completion,
    encode_policy,
    encode_request,
    encode_results,
    encode_settings,
)

KEY = "k" * 22
GONE = object()


def recipe(number: int = 1, **members: Any) -> dict[str, Any]:
    return _with(
        {
            "recipe_id": f"r-01J{number}",
            "recipe_key": KEY,
            "name": "Backup MX mx2.example.net for alice@example.com",
            "recipients": ["alice@example.com"],
            "evidence": {"seen_at": "2026-11-23T20:00:00Z"},
        },
        members,
    )


def request(**members: Any) -> dict[str, Any]:
    return _with(
        {
            "forwarder_id": "mx2.example.net",
            "category": "backup MX",
            "policy_negotiation_url": "https://mx2.example.net:8447/v1/policy",
            "recipes": [recipe()],
        },
        members,
    )


def _with(document: dict[str, Any], members: dict[str, Any]) -> dict[str, Any]:
    merged = {**document, **members}
    return {name: value for name, value in merged.items() if value is not GONE}


def octets(document: object) -> bytes:
    return json.dumps(document).encode()


# --------------------------------------------------------------------------- requests


def test_request_as_the_protocol_shows_it() -> None:
    """The document of the protocol is read member by member; unknown ones are ignored."""
    found = decode_request(octets(request(more={"nested": [1.5]})))
    assert found.forwarder_id == "mx2.example.net"
    assert found.policy_negotiation_url == "https://mx2.example.net:8447/v1/policy"
    (one,) = found.recipes
    assert (one.recipe_id, one.recipe_key, one.address) == ("r-01J1", KEY, "alice@example.com")
    assert one.seen_us == 1795464000 * 1_000_000
    assert decode_request(encode_request(found)) == found
    assert KEY not in repr(found)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"null",
        b'{"forwarder_id": "a", "forwarder_id": "a"}',
        b"\xef\xbb\xbf" + octets(request()),
        *(
            octets(request(**{name: value}))
            for name, value in [
                ("forwarder_id", GONE),
                ("forwarder_id", None),
                ("forwarder_id", 1),
                ("forwarder_id", ""),
                ("forwarder_id", "mx2 example"),
                ("category", GONE),
                ("category", "mailing list"),
                ("policy_negotiation_url", GONE),
                ("policy_negotiation_url", "h" * 2049),
                ("recipes", GONE),
                ("recipes", {}),
                ("recipes", [recipe(), recipe()]),
                ("recipes", [None]),
            ]
        ),
        *(
            octets(request(recipes=[_with(recipe(), {name: value})]))
            for name, value in [
                ("recipe_id", GONE),
                ("recipe_id", ""),
                ("recipe_id", "r_1"),
                ("recipe_id", "r" * 65),
                ("recipe_id", "r-1\n"),
                ("recipe_key", GONE),
                ("recipe_key", "k" * 21),
                ("recipe_key", "k" * 257),
                ("recipe_key", "k" * 21 + " "),
                ("name", GONE),
                ("name", "n" * 1001),
                ("recipients", GONE),
                ("recipients", []),
                ("recipients", ["a@example.com", "b@example.com"]),
                ("recipients", "a@example.com"),
                ("recipients", [""]),
                ("recipients", ["a" * 1001]),
                ("evidence", GONE),
                ("evidence", {}),
                ("evidence", {"seen_at": 1795464000}),
                ("evidence", {"seen_at": "2026-11-23 20:00:00"}),
            ]
        ),
    ],
)
def test_requests_refused(document: bytes) -> None:
    """Anything missing, ill-typed or out of its form is refused whole."""
    with pytest.raises(DocumentError):
        decode_request(document)


def test_a_thousand_recipes_and_no_more() -> None:
    """1,000 recipes are read, 1,001 are too many."""
    assert len(decode_request(octets(request(recipes=[recipe(n) for n in range(1000)]))).recipes)
    with pytest.raises(TooMany):
        decode_request(octets(request(recipes=[recipe(n) for n in range(1001)])))


RESULTS = (
    RecipeResult(
        recipe_id="r-01J1",
        status=Status.GRANTED,
        agreement_id="a-01J",
        completion_url="https://mail.example.com:8447/v1/completion",
        password="secret",
        user_id="alice",
    ),
    RecipeResult(
        recipe_id="r-01J2", status=Status.PENDING, agreement_id="a-02J", retry_after_seconds=60
    ),
    RecipeResult(recipe_id="r-01J3", status=Status.REFUSED),
    RecipeResult(recipe_id="r-01J4", status=Status.NO_SUCH_USER),
    RecipeResult(recipe_id="r-01J5", status=Status.GRANTED, agreement_id="a-05J"),
)


def test_results_both_ways() -> None:
    """What one side writes the other reads; what is absent is not written."""
    asked = decode_request(octets(request(recipes=[recipe(n) for n in range(1, 6)])))
    written = encode_results(RESULTS)
    assert decode_results(written, asked) == RESULTS
    assert json.loads(written)["results"][3] == {"recipe_id": "r-01J4", "status": "no_such_user"}
    assert "secret" not in repr(RESULTS)


@pytest.mark.parametrize(
    "results",
    [
        [],
        [{"recipe_id": "r-other", "status": "refused"}],
        [{"recipe_id": "r-01J1", "status": "perhaps"}],
        [{"recipe_id": "r-01J1", "status": "granted"}],
        [{"recipe_id": "r-01J1", "status": "granted", "agreement_id": "a_1"}],
        [{"recipe_id": "r-01J1", "status": "granted", "agreement_id": None}],
        [{"recipe_id": "r-01J1", "status": "granted", "agreement_id": "a-1", "password": "p"}],
        [{"recipe_id": "r-01J1", "status": "pending"}],
        [{"recipe_id": "r-01J1", "status": "refused", "retry_after_seconds": -1}],
        [{"recipe_id": "r-01J1", "status": "refused"}] * 2,
    ],
)
def test_results_refused(results: object) -> None:
    """Results that do not answer the question are no results."""
    asked = decode_request(octets(request()))
    with pytest.raises(DocumentError):
        decode_results(octets({"results": results}), asked)


# --------------------------------------------------------------------------- completion


def completion(**members: Any) -> dict[str, Any]:
    return _with(
        {"forwarder_id": "mx2.example.net", "agreement_id": "a-01J", "password": "p"}, members
    )


def test_completion_both_ways() -> None:
    """Optional members are there or not."""
    plain = Completion(forwarder_id="mx2.example.net", agreement_id="a-01J", password="p")
    assert decode_completion(octets(completion())) == plain
    assert json.loads(encode_completion(plain)) == completion()
    full = Completion(
        forwarder_id="mx2.example.net",
        agreement_id="a-01J",
        password="p",
        new_password="n",
        feedback_address="fbl@example.net",
        terminate=True,
    )
    assert decode_completion(encode_completion(full)) == full
    assert "p" not in repr(full).partition("(")[2].replace("completion", "")


@pytest.mark.parametrize(
    "members",
    [
        {"forwarder_id": GONE},
        {"agreement_id": GONE},
        {"agreement_id": "a b"},
        {"password": GONE},
        {"password": ""},
        {"password": None},
        {"new_password": None},
        {"new_password": ""},
        {"new_password": "n" * 513},
        {"feedback_address": 1},
        {"terminate": False},
        {"terminate": 1},
        {"terminate": None},
    ],
)
def test_completions_refused(members: dict[str, Any]) -> None:
    """null is not absent, and terminate has one value."""
    with pytest.raises(DocumentError):
        decode_completion(octets(completion(**members)))


# --------------------------------------------------------------------------- policy


def policy(**members: Any) -> dict[str, Any]:
    return _with(
        {"recipe_id": "r-1", "recipe_key": KEY, "agreement_id": None, "actor": "user"}, members
    )


def test_policy_both_ways() -> None:
    """get and set, with null for an agreement that is not known yet."""
    asked = decode_policy(octets(policy(get=["blocked", "colour"], visited=["example.com"])))
    assert asked == PolicyRequest(
        recipe_id="r-1",
        recipe_key=KEY,
        agreement_id=None,
        actor="user",
        get=("blocked", "colour"),
        visited=("example.com",),
    )
    assert decode_policy(encode_policy(asked)) == asked
    told = decode_policy(
        octets(policy(agreement_id="a-1", actor="granter", set={"blocked": False, "ended": True}))
    )
    assert told.set == Settings(blocked=False, ended=True)
    assert decode_policy(encode_policy(told)) == told
    assert KEY not in repr(told)


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"get": ["blocked"], "set": {"blocked": True}},
        {"get": "blocked"},
        {"get": [1]},
        {"get": None},
        {"get": ["x"] * 65},
        {"set": {}},
        {"set": None},
        {"set": {"blocked": 1}},
        {"set": {"blocked": None}},
        {"set": {"ended": "true"}},
        {"set": {"reset_password": ""}},
        {"set": {"reset_password": 5}},
        {"get": [], "actor": "postmaster"},
        {"get": [], "actor": GONE},
        {"get": [], "agreement_id": GONE},
        {"get": [], "agreement_id": "a b"},
        {"get": [], "recipe_key": GONE},
        {"get": [], "recipe_id": "r 1"},
        {"get": [], "visited": ["x"] * 65},
        {"get": [], "visited": [1]},
    ],
)
def test_policies_refused(members: dict[str, Any]) -> None:
    """Exactly one of get and set, and every value of its type."""
    with pytest.raises(DocumentError) as caught:
        decode_policy(octets(policy(**members)))
    assert not isinstance(caught.value, UnknownKeyword)


@pytest.mark.parametrize("members", [{"colour": "red"}, {"ended": False}, {"traffic": 1}])
def test_settings_nobody_knows(members: dict[str, Any]) -> None:
    """A keyword that cannot be set, or not to this value, is told from a malformed document."""
    with pytest.raises(UnknownKeyword):
        decode_policy(octets(policy(set=members)))


def test_settings_both_ways() -> None:
    """Only what was asked is written; an unreachable party has a name and an error."""
    hour = 3_600_000_000
    full = PolicySettings(
        blocked=False,
        ended=True,
        reset_password="p",
        dnsbl=(),
        spf=False,
        traffic=Traffic(messages=2, bytes=9, last_message_us=hour),
        servers=(
            Holder(
                party="mx2.example.net",
                host="mx2.example.net",
                preference=20,
                since_us=hour,
                messages=2,
                last_message_us=2 * hour,
            ),
            Holder(party="mx3.example.org", error="connect: refused"),
        ),
    )
    assert decode_settings(encode_settings(full)) == full
    assert json.loads(encode_settings(PolicySettings(spf=True))) == {"settings": {"spf": True}}
    written = json.loads(encode_settings(full))["settings"]["servers"]
    assert written[1] == {"party": "mx3.example.org", "error": "connect: refused"}
    assert written[0]["since"] == "1970-01-01T01:00:00Z"


DECODERS = (decode_request, decode_completion, decode_policy, decode_settings)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    st.sampled_from([request(), completion(), policy(get=[]), policy(set={"blocked": True})]),
    st.text(max_size=12),
    JSON,
)
def test_total(document: dict[str, Any], name: str, value: object) -> None:
    """Whatever a member is replaced with, a decoder reads it or raises DocumentError."""
    for member in (*document, name):
        data = json.dumps({**document, member: value}).encode("utf-8", "surrogatepass")
        for decode in DECODERS:
            try:
                decode(data)
            except DocumentError:
                pass


@given(st.binary(max_size=40))
def test_total_on_octets(data: bytes) -> None:
    """Whatever octets come, a decoder raises DocumentError."""
    for decode in DECODERS:
        with pytest.raises(DocumentError):
            decode(data)
