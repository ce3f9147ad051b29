"""The table of next-hop states, and next hops as people write them."""

from __future__ import annotations

import pytest

from posthouse.domain.nexthop import (
    MOVES,
    Event,
    Health,
    HostPort,
    State,
    move,
    parse_next_hop,
    probe_delay_us,
    quick_probe_delay_us,
)

SECOND = 1_000_000
EXPECTED = {
    State.UP: (State.UP, State.DOWN, State.BLOCKED, State.HELD),
    State.DOWN: (State.UP, State.DOWN, State.BLOCKED, State.HELD),
    State.BLOCKED: (State.UP, State.DOWN, State.BLOCKED, State.HELD),
    State.HELD: (State.UP, State.DOWN, State.BLOCKED, State.HELD),
}


@pytest.mark.parametrize("state", State)
def test_table(state: State) -> None:
    """Every event has its state from every state."""
    events = (Event.GREETED, Event.LOST, Event.REFUSED, Event.NO_WAY)
    for event, expected in zip(events, EXPECTED[state], strict=True):
        after = move(Health(state=state, since_us=5, why="w"), event, now_us=9, why="new")
        assert after.state is expected
        assert after.since_us == (5 if expected is state else 9)
        assert after.why == ("" if expected is State.UP else "new")


def test_table_has_no_idle_rows() -> None:
    """A row that keeps the state is left out of the table."""
    assert all(before is not after for (before, _), after in MOVES.items())


def test_same_news_changes_nothing() -> None:
    """A probe that fails as before leaves the very same value."""
    health = Health(state=State.DOWN, since_us=5, why="refused")
    assert move(health, Event.LOST, now_us=9, why="refused") is health


def test_only_up_flows() -> None:
    """Mail is sent in state UP alone."""
    assert [state for state in State if Health(state=state).flowing] == [State.UP]


def test_probe_jitter() -> None:
    """A probe comes after the interval give or take a tenth."""
    assert probe_delay_us(30 * SECOND, lambda: 0.0) == 27 * SECOND
    assert probe_delay_us(30 * SECOND, lambda: 0.5) == 30 * SECOND
    assert probe_delay_us(30 * SECOND, lambda: 0.999999) < 33 * SECOND


def test_quick_probe_doubles_to_the_interval() -> None:
    """Refusals in a row make quick probes slower, never slower than the others."""
    delays = [quick_probe_delay_us(30 * SECOND, n) // SECOND for n in (1, 2, 3, 4, 5, 6, 10_000)]
    assert delays == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(
    ("text", "place", "written"),
    [
        ("smtp://mail.example.com", ("mail.example.com", 25), "smtp://mail.example.com:25"),
        (
            "SMTP://Mail.Example.com.:2525/",
            ("mail.example.com", 2525),
            "smtp://mail.example.com:2525",
        ),
        ("smtp://192.0.2.1:10025", ("192.0.2.1", 10025), "smtp://192.0.2.1:10025"),
        ("smtp://[2001:DB8::1]", ("2001:db8::1", 25), "smtp://[2001:db8::1]:25"),
        ("smtp://[2001:db8::1]:26", ("2001:db8::1", 26), "smtp://[2001:db8::1]:26"),
        (" smtp://localhost:25 ", ("localhost", 25), "smtp://localhost:25"),
    ],
)
def test_next_hop_forms(text: str, place: tuple[str, int], written: str) -> None:
    """The forms a fixed next hop may be written in, and how it is shown."""
    assert parse_next_hop(text) == HostPort(*place)
    assert str(parse_next_hop(text)) == written
    assert parse_next_hop(written) == parse_next_hop(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mx",
        "mail.example.com",
        "lmtp://x",
        "smtp://",
        "smtp://:25",
        "smtp://host:",
        "smtp://host:0",
        "smtp://host:65536",
        "smtp://host:1e3",
        "smtp://host:٢٥",
        "smtp://user@host",
        "smtp://host/path",
        "smtp://2001:db8::1",
        "smtp://[2001:db8::1",
        "smtp://[192.0.2.1]",
        "smtp://[::1]25",
        "smtp://256.0.0.1",
        "smtp://1.2.3",
        "smtp://a..b",
        "smtp://münchen.example",
        "smtp://a b",
        "smtp://" + "a" * 64,
        "smtp://a\nb",
    ],
)
def test_next_hop_mistakes(text: str) -> None:
    """What is no next hop is refused with a line that quotes it."""
    with pytest.raises(ValueError, match=r"^'"):
        parse_next_hop(text)
