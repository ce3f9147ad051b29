"""When a published roster is near its end, and what is said of it."""

from __future__ import annotations

import pytest

from posthouse.ports_publish import PublishedDomain, RosterInForce
from posthouse.services.conditions import roster_alerts

BEGIN_S = 1_800_000_000


def domain(*spans: int) -> PublishedDomain:
    rosters = tuple(
        RosterInForce(
            key_id="0" * 16, serial=1, count=3, issued_s=BEGIN_S, expires_s=BEGIN_S + span
        )
        for span in spans
    )
    return PublishedDomain(name="example.com", rosters=rosters)


@pytest.mark.parametrize(
    ("after_s", "words"),
    [(0, ""), (2999, ""), (3000, "is good no longer than"), (4000, "has expired")],
)
def test_the_last_quarter_is_told(after_s: int, words: str) -> None:
    """Of the roster that ends first; since the quarter began."""
    now_us = (BEGIN_S + after_s) * 1_000_000
    found = list(roster_alerts([domain(4000, 90_000)], now_us=now_us))
    assert len(found) == bool(words)
    for alert in found:
        assert (alert.kind, alert.subject) == ("roster-expires", "example.com")
        assert words in alert.text
        assert alert.since_us == (BEGIN_S + 3000) * 1_000_000


def test_without_a_roster_nothing_ends() -> None:
    """That there is none is told by who makes it."""
    assert list(roster_alerts([domain()], now_us=1 << 60)) == []
