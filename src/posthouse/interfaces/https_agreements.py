"""Agreements over HTTPS: what comes in for a granter and for a forwarder (PROTOCOL.md §3).

Octets in, values to the service, its answer out. The door has authenticated the
party, and has seen to size and media type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from posthouse.errors import DocumentError
from posthouse.mail.recipes import (
    AgreementRequest,
    Completion,
    Denial,
    PolicyRequest,
    PolicySettings,
    RecipeResult,
    Refusal,
)
from posthouse.ports_https import PeerAnswer, PeerHandler, PeerRequest, ProblemAnswer
from posthouse.proto import agreement_wire as wire

AGREEMENTS_PATH: Final = "v1/agreements"
COMPLETION_PATH: Final = "v1/completion"
POLICY_PATH: Final = "v1/policy"

_TITLES: Final = {
    Denial.MALFORMED: "Malformed request",
    Denial.FORBIDDEN: "Not allowed",
    Denial.NOT_FOUND: "Not found",
    Denial.CONFLICT: "Conflict",
    Denial.TOO_LARGE: "Too many recipes",
    Denial.UNPROCESSABLE: "Cannot be processed",
    Denial.TOO_MANY: "Too many requests",
    Denial.UNAVAILABLE: "Cannot answer now",
}

T = TypeVar("T")


class GranterService(Protocol):
    """`services.granter.Granter`."""

    async def request(
        self, party: str, asked: AgreementRequest
    ) -> Sequence[RecipeResult] | Refusal: ...

    async def complete(self, party: str, told: Completion) -> Refusal | None: ...


class PolicyService(Protocol):
    """`services.policy.PolicyDesk`."""

    async def negotiate(self, party: str, asked: PolicyRequest) -> PolicySettings | Refusal: ...


def make_agreements_handler(granter: GranterService) -> PeerHandler:
    """POST v1/agreements."""

    async def handle(request: PeerRequest) -> PeerAnswer | ProblemAnswer:
        asked = _decode(wire.decode_request, request.body)
        if isinstance(asked, ProblemAnswer):
            return asked
        answer = await granter.request(request.party.name, asked)
        if isinstance(answer, Refusal):
            return make_problem(answer)
        return PeerAnswer(document=wire.encode_results(tuple(answer)))

    return handle


def make_completion_handler(granter: GranterService) -> PeerHandler:
    """POST to the completion URL."""

    async def handle(request: PeerRequest) -> PeerAnswer | ProblemAnswer:
        told = _decode(wire.decode_completion, request.body)
        if isinstance(told, ProblemAnswer):
            return told
        refusal = await granter.complete(request.party.name, told)
        return PeerAnswer(status=204) if refusal is None else make_problem(refusal)

    return handle


def make_policy_handler(desk: PolicyService) -> PeerHandler:
    """POST to the policy negotiation URL."""

    async def handle(request: PeerRequest) -> PeerAnswer | ProblemAnswer:
        asked = _decode(wire.decode_policy, request.body)
        if isinstance(asked, ProblemAnswer):
            return asked
        answer = await desk.negotiate(request.party.name, asked)
        if isinstance(answer, Refusal):
            return make_problem(answer)
        return PeerAnswer(document=wire.encode_settings(answer))

    return handle


def make_problem(refusal: Refusal) -> ProblemAnswer:
    """A refusal as problem+json."""
    return ProblemAnswer(
        status=refusal.denial.value,
        title=_TITLES[refusal.denial],
        detail=refusal.detail,
        retry_after_seconds=refusal.retry_after_seconds,
    )


def _decode(decode: Callable[[bytes], T], body: bytes) -> T | ProblemAnswer:
    try:
        return decode(body)
    except wire.TooMany as error:
        return make_problem(Refusal(Denial.TOO_LARGE, error.detail))
    except wire.UnknownKeyword as error:
        return make_problem(Refusal(Denial.UNPROCESSABLE, error.detail))
    except DocumentError as error:
        return make_problem(Refusal(Denial.MALFORMED, error.detail))
