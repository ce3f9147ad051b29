"""Refusals over HTTP: application/problem+json (RFC 9457)."""

from __future__ import annotations

from typing import Final

import msgspec

from posthouse.ports_https import ProblemAnswer

PROBLEM_TYPE: Final = "application/problem+json"

UNKNOWN_PATH: Final = ProblemAnswer(status=404, title="Not found")
NO_TOKEN: Final = ProblemAnswer(
    status=401,
    title="Token missing or unknown",
    detail="Present the token of the pairing file: Authorization: Bearer TOKEN",
)
TOO_LARGE: Final = ProblemAnswer(
    status=413, title="Body too large", detail="A request has at most 1 MiB"
)
NO_JSON: Final = ProblemAnswer(
    status=415, title="Unsupported media type", detail="Send application/json"
)
OUR_FAULT: Final = ProblemAnswer(
    status=503,
    title="Cannot answer now",
    detail="The fault is ours; ask again later",
    retry_after_seconds=60,
)


def wrong_method(allowed: str) -> ProblemAnswer:
    """405. allowed: for the detail; the header is the door's."""
    return ProblemAnswer(status=405, title="Method not allowed", detail=f"Use {allowed}")


def too_many(retry_after_seconds: int) -> ProblemAnswer:
    """429."""
    return ProblemAnswer(
        status=429, title="Too many requests", retry_after_seconds=retry_after_seconds
    )


def encode_problem(problem: ProblemAnswer) -> bytes:
    """The document. `type` is left out: "about:blank", the status says it all (RFC 9457 §4.2.1)."""
    members: dict[str, str | int] = {"title": problem.title, "status": problem.status}
    if problem.detail:
        members["detail"] = problem.detail
    return msgspec.json.encode(members)
