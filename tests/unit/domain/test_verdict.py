"""The reply at RCPT, as a table."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from posthouse.domain.finding import Answer, Finding
from posthouse.domain.verdict import WhenUnknown, decide_recipient, limit_recipient
from posthouse.mail.roster import RosterLimits

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


class Wish(msgspec.Struct, kw_only=True):
    """What MAIL asked for."""

    size_bytes: int = 0
    body: str = ""
    smtputf8: bool = False


@pytest.mark.parametrize(
    ("wish", "limits", "reply"),
    [
        (Wish(), {}, "250 2.1.5"),
        (None, {}, "250 2.1.5"),
        (Wish(size_bytes=1000, body="8BITMIME", smtputf8=True), {}, "250 2.1.5"),
        (Wish(size_bytes=1001), {}, "552 5.3.4"),
        (Wish(smtputf8=True), {"smtputf8": False}, "550 5.6.7"),
        (Wish(body="8BITMIME"), {"eight_bit_mime": False}, "550 5.6.3"),
        (Wish(body="7BIT"), {"eight_bit_mime": False, "smtputf8": False}, "250 2.1.5"),
    ],
)
def test_what_the_primary_takes(wish: Wish | None, limits: dict[str, Any], reply: str) -> None:
    """Size, SMTPUTF8 and 8BITMIME beyond what the primary takes are refused at RCPT."""
    members = {"max_message_bytes": 1000, "smtputf8": True, "eight_bit_mime": True}
    verdict = decide_recipient(Answer(finding=F.VOUCHED), "x@y.example", "y.example", DEFER)
    limited = limit_recipient(verdict, RosterLimits(**(members | limits)), wish)
    assert f"{limited.reply.code} {limited.reply.enhanced}" == reply
    assert limited.max_bytes == (1000 if limited.reply.positive else 0)
