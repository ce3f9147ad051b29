"""The reply at RCPT, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from posthouse.domain.finding import Answer, Finding
from posthouse.domain.verdict import WhenUnknown, decide_recipient

DEFER, HOLD = WhenUnknown.DEFER, WhenUnknown.HOLD
F = Finding


@pytest.mark.parametrize(
    ("finding", "members", "when_unknown", "reply"),
    [
        (F.VOUCHED, {}, DEFER, "250 2.1.5"),
        (F.VOUCHED, {"stale": True}, DEFER, "250 2.1.5"),
        (F.CATCH_ALL, {"stale": True}, DEFER, "250 2.1.5"),
        (F.RULE, {"stale": True}, DEFER, "250 2.1.5"),
        (F.TRAP, {}, DEFER, "250 2.1.5 trap"),
        (F.TRAP, {"stale": True}, DEFER, "250 2.1.5 trap"),
        (F.DEFER, {}, HOLD, "451 4.2.1"),
        (F.DEFER, {"stale": True}, HOLD, "451 4.2.1"),
        (F.ABSENT, {}, HOLD, "550 5.1.1"),
        (F.ABSENT, {"when_stale": "hold"}, HOLD, "550 5.1.1"),
        (F.ABSENT, {"stale": True}, DEFER, "451 4.4.3"),
        (F.ABSENT, {"stale": True}, HOLD, "451 4.4.3"),
        (F.ABSENT, {"stale": True, "when_stale": "hold"}, DEFER, "451 4.4.3"),
        (F.ABSENT, {"stale": True, "when_stale": "hold"}, HOLD, "250 2.1.5 hold"),
        (F.UNKNOWN, {}, DEFER, "451 4.4.3"),
        (F.UNKNOWN, {}, HOLD, "250 2.1.5 hold"),
        (F.UNKNOWN, {"withheld": "busy"}, HOLD, "451 4.4.3"),
        (F.UNKNOWN, {"withheld": "busy"}, DEFER, "451 4.4.3"),
        (F.UNKNOWN, {"withheld": "guessed"}, HOLD, "451 4.7.1"),
    ],
)
def test_replies(
    finding: Finding, members: dict[str, Any], when_unknown: WhenUnknown, reply: str
) -> None:
    """Each finding has its reply, fresh and stale; the stricter wish holds."""
    answer = Answer(finding=finding, **members)
    verdict = decide_recipient(answer, "x@y.example", "y.example", when_unknown)
    marks = " hold" * verdict.hold + " trap" * verdict.trap
    assert f"{verdict.reply.code} {verdict.reply.enhanced}{marks}" == reply
    assert bool(verdict.domain) == verdict.reply.positive


def test_a_trap_does_not_show() -> None:
    """What the client hears is the same for a trap, a held message and a mailbox."""
    held = Answer(finding=F.UNKNOWN)
    replies = {
        decide_recipient(answer, "x@y.example", "y.example", HOLD).reply.encode()
        for answer in (Answer(finding=F.TRAP), Answer(finding=F.VOUCHED), held)
    }
    assert len(replies) == 1


def test_who_vouched_is_passed_on() -> None:
    """The canonical text and serial of a digest go with the verdict; a trap has none."""
    answer = Answer(finding=F.VOUCHED, canonical="x@y.example", serial=7)
    verdict = decide_recipient(answer, "X@y.example", "y.example", DEFER)
    assert (verdict.canonical, verdict.serial) == ("x@y.example", 7)
