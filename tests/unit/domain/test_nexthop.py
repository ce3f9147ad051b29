"""Next hops as people write them, and when they are probed."""

from __future__ import annotations

import pytest

from posthouse.domain.nexthop import (
    HostPort,
    next_hop_key,
    parse_next_hop,
    probe_delay_us,
    quick_probe_delay_us,
)

SECOND = 1_000_000


def test_key() -> None:
    """The same fixed places are one next hop; a domain that follows its MX is one by itself."""
    assert (
        next_hop_key("a.example", [HostPort("h", 25), HostPort("i", 26)])
        == "smtp://h:25,smtp://i:26"
    )
    assert next_hop_key("a.example", ()) == "mx:a.example"


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
