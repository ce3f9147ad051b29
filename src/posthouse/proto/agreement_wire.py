"""The documents of agreements: requests, completion, policy (PROTOCOL.md §3).

`decode_*` give values of `mail/recipes` or raise DocumentError (a 400, or a 413
where there are too many recipes: `TooMany`); `encode_*` write what the other
side's `decode_*` reads. Everything is I-JSON (`proto/ijson`): a member is there
or not, null is neither, unless the protocol shows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from posthouse.errors import DocumentError
from posthouse.mail.recipes import (
    CATEGORY,
    ID,
    MAX_RECIPES,
    Actor,
    AgreementRequest,
    Completion,
    Holder,
    PolicyRequest,
    PolicySettings,
    Recipe,
    RecipeResult,
    Settings,
    Status,
    Traffic,
)
from posthouse.mail.wire_text import format_time, parse_time
from posthouse.proto import ijson

_US: Final = 1_000_000
# 128 bits are 22 characters of base64url; more than 256 characters are no key.
_KEY: Final = re.compile(r"[!-~]{22,256}\Z")
_PARTY: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\Z")
MAX_NAME: Final = 1_000
MAX_PASSWORD: Final = 512
MAX_ADDRESS: Final = 1_000  # octets of a path with a long local part, and then some
MAX_URL: Final = 2_048
MAX_KEYWORDS: Final = 64
MAX_HOLDERS: Final = 1_000
GET_KEYWORDS: Final = ("blocked", "dnsbl", "spf", "traffic", "servers")
SET_KEYWORDS: Final = frozenset({"blocked", "ended", "reset_password"})

_Text = Annotated[str, Meta(max_length=MAX_URL)]
_Address = Annotated[str, Meta(min_length=1, max_length=MAX_ADDRESS)]
_Password = Annotated[str, Meta(min_length=1, max_length=MAX_PASSWORD)]
_Count = Annotated[int, Meta(ge=0)]


class TooMany(DocumentError):
    """More recipes than one request may have: 413."""


class UnknownKeyword(DocumentError):
    """A `set` keyword that nobody knows, or a value it does not take: 422."""


# --------------------------------------------------------------------------- requests


class _Evidence(msgspec.Struct):
    seen_at: str


class _Recipe(msgspec.Struct):
    recipe_id: str
    recipe_key: str
    name: Annotated[str, Meta(max_length=MAX_NAME)]
    recipients: Annotated[list[_Address], Meta(min_length=1, max_length=1)]
    evidence: _Evidence


class _Request(msgspec.Struct):
    forwarder_id: str
    category: Literal["backup MX"]
    policy_negotiation_url: _Text
    recipes: list[_Recipe]


class _Result(msgspec.Struct, omit_defaults=True):
    recipe_id: str
    status: Status
    agreement_id: str | UnsetType = UNSET
    completion_url: _Text | UnsetType = UNSET
    password: _Password | UnsetType = UNSET
    user_id: Annotated[str, Meta(max_length=MAX_NAME)] | UnsetType = UNSET
    retry_after_seconds: _Count | UnsetType = UNSET


class _Results(msgspec.Struct):
    results: list[_Result]


def decode_request(document: bytes) -> AgreementRequest:
    """Read a POST to `v1/agreements`. Raises DocumentError, TooMany."""
    found = ijson.decode(document, _Request)
    if len(found.recipes) > MAX_RECIPES:
        raise TooMany(f"{len(found.recipes)} recipes, at most {MAX_RECIPES}")
    recipes = tuple(map(_read_recipe, found.recipes))
    if len({recipe.recipe_id for recipe in recipes}) != len(recipes):
        raise DocumentError("a recipe_id stands there twice")
    return AgreementRequest(
        forwarder_id=_check("forwarder_id", _PARTY, found.forwarder_id),
        category=found.category,
        policy_negotiation_url=found.policy_negotiation_url,
        recipes=recipes,
    )


def encode_request(request: AgreementRequest) -> bytes:
    """Write a POST to `v1/agreements`."""
    return ijson.encode(
        {
            "forwarder_id": request.forwarder_id,
            "category": CATEGORY,
            "policy_negotiation_url": request.policy_negotiation_url,
            "recipes": [
                {
                    "recipe_id": recipe.recipe_id,
                    "recipe_key": recipe.recipe_key,
                    "name": recipe.name,
                    "recipients": [recipe.address],
                    "evidence": {"seen_at": format_time(recipe.seen_us // _US)},
                }
                for recipe in request.recipes
            ],
        }
    )


def decode_results(document: bytes, request: AgreementRequest) -> tuple[RecipeResult, ...]:
    """Read the answer to `request`. Raises DocumentError, also when the recipes differ."""
    found = ijson.decode(document, _Results).results
    if [result.recipe_id for result in found] != [one.recipe_id for one in request.recipes]:
        raise DocumentError("the results are not those of the recipes, in their order")
    return tuple(map(_read_result, found))


def encode_results(results: tuple[RecipeResult, ...]) -> bytes:
    """Write the answer to a request."""
    return ijson.encode(
        _Results(
            [
                _Result(
                    recipe_id=result.recipe_id,
                    status=result.status,
                    agreement_id=result.agreement_id or UNSET,
                    completion_url=result.completion_url or UNSET,
                    password=result.password or UNSET,
                    user_id=result.user_id or UNSET,
                    retry_after_seconds=(
                        UNSET if result.retry_after_seconds is None else result.retry_after_seconds
                    ),
                )
                for result in results
            ]
        )
    )


def _read_recipe(found: _Recipe) -> Recipe:
    return Recipe(
        recipe_id=_check("recipe_id", ID, found.recipe_id),
        recipe_key=_check("recipe_key", _KEY, found.recipe_key),
        name=found.name,
        address=found.recipients[0],
        seen_us=_read_time("seen_at", found.evidence.seen_at),
    )


def _read_result(found: _Result) -> RecipeResult:
    granted = found.status is Status.GRANTED
    if (granted or found.status is Status.PENDING) and not found.agreement_id:
        raise DocumentError(f"{found.status} without agreement_id")
    if granted and bool(found.completion_url) != bool(found.password):
        raise DocumentError("completion_url and password come together")
    agreement_id = found.agreement_id or ""
    return RecipeResult(
        recipe_id=found.recipe_id,
        status=found.status,
        agreement_id=_check("agreement_id", ID, agreement_id) if agreement_id else "",
        completion_url=found.completion_url or "",
        password=found.password or "",
        user_id=found.user_id or "",
        retry_after_seconds=(
            None if found.retry_after_seconds is UNSET else found.retry_after_seconds
        ),
    )


# --------------------------------------------------------------------------- completion


class _Completion(msgspec.Struct, omit_defaults=True):
    forwarder_id: str
    agreement_id: str
    password: _Password
    new_password: _Password | UnsetType = UNSET
    feedback_address: _Address | UnsetType = UNSET
    terminate: bool | UnsetType = UNSET  # a Literal takes no booleans


def decode_completion(document: bytes) -> Completion:
    """Read a POST to the completion URL. Raises DocumentError."""
    found = ijson.decode(document, _Completion)
    if found.terminate is False:
        raise DocumentError("terminate is true or absent")
    return Completion(
        forwarder_id=_check("forwarder_id", _PARTY, found.forwarder_id),
        agreement_id=_check("agreement_id", ID, found.agreement_id),
        password=found.password,
        new_password=found.new_password or None,
        feedback_address=found.feedback_address or None,
        terminate=found.terminate is True,
    )


def encode_completion(completion: Completion) -> bytes:
    """Write a POST to the completion URL."""
    return ijson.encode(
        _Completion(
            forwarder_id=completion.forwarder_id,
            agreement_id=completion.agreement_id,
            password=completion.password,
            new_password=completion.new_password or UNSET,
            feedback_address=completion.feedback_address or UNSET,
            terminate=completion.terminate or UNSET,
        )
    )


# --------------------------------------------------------------------------- policy


class _Policy(msgspec.Struct):
    recipe_id: str
    recipe_key: str
    agreement_id: str | None
    actor: Actor
    get: Annotated[list[str], Meta(max_length=MAX_KEYWORDS)] | UnsetType = UNSET
    set: dict[str, Any] | UnsetType = UNSET
    visited: Annotated[list[_Text], Meta(max_length=MAX_KEYWORDS)] | UnsetType = UNSET


class _Traffic(msgspec.Struct, omit_defaults=True):
    messages: _Count
    bytes: _Count
    last_message_at: str | UnsetType = UNSET


class _Holder(msgspec.Struct, omit_defaults=True):
    party: _Text
    host: _Text | UnsetType = UNSET
    preference: Annotated[int, Meta(ge=0, le=65535)] | UnsetType = UNSET
    since: str | UnsetType = UNSET
    messages: _Count | UnsetType = UNSET
    last_message_at: str | UnsetType = UNSET
    error: _Text | UnsetType = UNSET


class _Settings(msgspec.Struct, omit_defaults=True):
    blocked: bool | UnsetType = UNSET
    ended: bool | UnsetType = UNSET
    reset_password: str | UnsetType = UNSET
    dnsbl: list[_Text] | UnsetType = UNSET
    spf: bool | UnsetType = UNSET
    traffic: _Traffic | UnsetType = UNSET
    servers: Annotated[list[_Holder], Meta(max_length=MAX_HOLDERS)] | UnsetType = UNSET


class _PolicyAnswer(msgspec.Struct):
    settings: _Settings


def decode_policy(document: bytes) -> PolicyRequest:
    """Read a POST to the policy negotiation URL. Raises DocumentError, UnknownKeyword."""
    found = ijson.decode(document, _Policy)
    if (found.get is UNSET) == (found.set is UNSET):
        raise DocumentError("exactly one of get and set")
    recipe_id = _check("recipe_id", ID, found.recipe_id)
    agreement_id = found.agreement_id
    return PolicyRequest(
        recipe_id=recipe_id,
        recipe_key=found.recipe_key[:1000],
        agreement_id=(None if agreement_id is None else _check("agreement_id", ID, agreement_id)),
        actor=found.actor,
        get=None if found.get is UNSET else tuple(found.get),
        set=None if found.set is UNSET else _read_set(found.set),
        visited=() if found.visited is UNSET else tuple(found.visited),
    )


def encode_policy(request: PolicyRequest) -> bytes:
    """Write a POST to the policy negotiation URL."""
    document: dict[str, Any] = {
        "recipe_id": request.recipe_id,
        "recipe_key": request.recipe_key,
        "agreement_id": request.agreement_id,
        "actor": request.actor,
    }
    if request.get is not None:
        document["get"] = list(request.get)
    if request.set is not None:
        members = msgspec.structs.asdict(request.set)
        document["set"] = {name: value for name, value in members.items() if value is not None}
    if request.visited:
        document["visited"] = list(request.visited)
    return ijson.encode(document)


def _read_set(members: Mapping[str, Any]) -> Settings:
    """Values of the right type are judged with 422, others are ill-typed: 400."""
    if not members:
        raise DocumentError("set is empty")
    for name in members:
        if name not in SET_KEYWORDS:
            raise UnknownKeyword(f"there is no setting {name[:60]!r}")
    for name in ("blocked", "ended"):
        if name in members and not isinstance(members[name], bool):
            raise DocumentError(f"set: {name} is not true or false")
    password = members.get("reset_password", UNSET)
    if password is not UNSET and not (
        isinstance(password, str) and 0 < len(password) <= MAX_PASSWORD
    ):
        raise DocumentError("set: reset_password is not a password")
    if members.get("ended") is False:
        raise UnknownKeyword("ended can be set to true only")
    return Settings(
        blocked=members.get("blocked"),
        ended=members.get("ended"),
        reset_password=members.get("reset_password"),
    )


def decode_settings(document: bytes) -> PolicySettings:
    """Read the answer to a policy request. Raises DocumentError."""
    found = ijson.decode(document, _PolicyAnswer).settings
    traffic, servers = found.traffic, found.servers
    return PolicySettings(
        blocked=_or_none(found.blocked),
        ended=_or_none(found.ended),
        reset_password=_or_none(found.reset_password),
        dnsbl=None if found.dnsbl is UNSET else tuple(found.dnsbl),
        spf=_or_none(found.spf),
        traffic=None if traffic is UNSET else _read_traffic(traffic),
        servers=None if servers is UNSET else tuple(map(_read_holder, servers)),
    )


def encode_settings(settings: PolicySettings) -> bytes:
    """Write the answer to a policy request."""
    traffic, servers = settings.traffic, settings.servers
    return ijson.encode(
        _PolicyAnswer(
            _Settings(
                blocked=_or_unset(settings.blocked),
                ended=_or_unset(settings.ended),
                reset_password=_or_unset(settings.reset_password),
                dnsbl=UNSET if settings.dnsbl is None else list(settings.dnsbl),
                spf=_or_unset(settings.spf),
                traffic=(
                    UNSET
                    if traffic is None
                    else _Traffic(
                        messages=traffic.messages,
                        bytes=traffic.bytes,
                        last_message_at=_time_or_unset(traffic.last_message_us),
                    )
                ),
                servers=UNSET if servers is None else [_write_holder(one) for one in servers],
            )
        )
    )


def _read_traffic(found: _Traffic) -> Traffic:
    return Traffic(
        messages=found.messages,
        bytes=found.bytes,
        last_message_us=_read_time_or_zero("last_message_at", found.last_message_at),
    )


def _read_holder(found: _Holder) -> Holder:
    return Holder(
        party=found.party,
        host=found.host or "",
        preference=found.preference or 0,
        since_us=_read_time_or_zero("since", found.since),
        messages=found.messages or 0,
        last_message_us=_read_time_or_zero("last_message_at", found.last_message_at),
        error=found.error or "",
    )


def _write_holder(holder: Holder) -> _Holder:
    if holder.error:
        return _Holder(party=holder.party, error=holder.error)
    return _Holder(
        party=holder.party,
        host=holder.host,
        preference=holder.preference,
        since=_time_or_unset(holder.since_us),
        messages=holder.messages,
        last_message_at=_time_or_unset(holder.last_message_us or holder.since_us),
    )


# --------------------------------------------------------------------------- members


def _check(member: str, pattern: re.Pattern[str], text: str) -> str:
    if pattern.match(text) is None:
        raise DocumentError(f"{member} is not of its form")
    return text


def _read_time(member: str, text: str) -> int:
    try:
        return parse_time(text) * _US
    except ValueError as error:
        raise DocumentError(f"{member}: {error}") from error


def _read_time_or_zero(member: str, text: str | UnsetType) -> int:
    return 0 if text is UNSET else _read_time(member, text)


def _time_or_unset(instant_us: int) -> str | UnsetType:
    return format_time(instant_us // _US) if instant_us else UNSET


def _or_unset(value: Any) -> Any:
    return UNSET if value is None else value


def _or_none(value: Any) -> Any:
    return None if value is UNSET else value
