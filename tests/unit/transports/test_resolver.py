"""What DnsResolver promises beyond the port: caching, stale answers, bounds, odd servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from peers.dns import DnsResponder
from posthouse.errors import DnsTemporary
from posthouse.ports_dns import MxRecord
from posthouse.transports.resolver import DnsResolver, parse_server


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server() -> Iterator[DnsResponder]:
    zones = {
        "example.com": {"MX": ["10 MX1.Example.com."]},
        "mx1.example.com": {"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"]},
    }
    with DnsResponder(zones, ttl=100, negative_ttl=50) as responder:
        yield responder


def make(server: DnsResponder, clock: Clock | None = None, **more: int) -> DnsResolver:
    return DnsResolver([server.address], lifetime_seconds=5, clock=clock or Clock(), **more)


async def test_answer_is_kept_for_its_ttl(server: DnsResponder) -> None:
    """A second question within the TTL is not asked; one behind it is, and sees the change."""
    clock = Clock()
    resolver = make(server, clock)
    assert await resolver.find_mx("example.com") == (MxRecord(10, "mx1.example.com"),)
    server.zones["example.com"] = {"MX": ["5 other.example.com."]}
    clock.now += 99
    assert await resolver.find_mx("example.com") == (MxRecord(10, "mx1.example.com"),)
    assert server.asked("example.com", "MX") == 1
    clock.now += 2
    assert await resolver.find_mx("example.com") == (MxRecord(5, "other.example.com"),)


async def test_absence_is_kept_for_the_soa_minimum(server: DnsResponder) -> None:
    """NXDOMAIN and "no such record" are cached as RFC 2308 says, and both end."""
    clock = Clock()
    resolver = make(server, clock)
    for _ in range(2):
        assert await resolver.find_mx("new.example") is None
        assert await resolver.find_mx("mx1.example.com") == ()
    assert server.asked("new.example", "MX") == 1
    assert server.asked("mx1.example.com", "MX") == 1
    server.zones["new.example"] = {"MX": ["1 mx.new.example."]}
    clock.now += 51
    assert await resolver.find_mx("new.example") == (MxRecord(1, "mx.new.example"),)


async def test_absence_is_never_kept_long(server: DnsResponder) -> None:
    """However long the zone says, an absence is asked again after five minutes."""
    clock = Clock()
    server.negative_ttl = 86_400
    resolver = make(server, clock)
    assert await resolver.find_mx("new.example") is None
    clock.now += 301
    assert await resolver.find_mx("new.example") is None
    assert server.asked("new.example", "MX") == 2


async def test_last_good_answer_survives_an_outage_of_dns(server: DnsResponder) -> None:
    """With DNS failing, the last good MX set is served for a day behind its TTL, not longer."""
    clock = Clock()
    resolver = make(server, clock)
    await resolver.find_mx("example.com")
    await resolver.find_addresses("mx1.example.com")
    server.servfail.add("*")
    clock.now += 80_000
    assert await resolver.find_mx("example.com") == (MxRecord(10, "mx1.example.com"),)
    assert await resolver.find_addresses("mx1.example.com") == ("192.0.2.1", "2001:db8::1")
    clock.now += 10_000
    with pytest.raises(DnsTemporary):
        await resolver.find_mx("example.com")


async def test_withdrawn_answer_is_not_served_stale(server: DnsResponder) -> None:
    """Once DNS said that a domain is gone, an outage does not bring its MXes back."""
    clock = Clock()
    resolver = make(server, clock)
    await resolver.find_mx("example.com")
    del server.zones["example.com"], server.zones["mx1.example.com"]
    clock.now += 101
    assert await resolver.find_mx("example.com") is None
    server.servfail.add("*")
    clock.now += 400
    with pytest.raises(DnsTemporary):
        await resolver.find_mx("example.com")


async def test_failure_is_remembered_for_seconds_only(server: DnsResponder) -> None:
    """A failing name is not hammered, and its recovery is seen at the next probe."""
    clock = Clock()
    resolver = make(server, clock)
    server.servfail.add("example.com")
    for _ in range(3):
        with pytest.raises(DnsTemporary):
            await resolver.find_mx("example.com")
    seen = server.asked("example.com", "MX")
    server.servfail.clear()
    clock.now += 6
    assert await resolver.find_mx("example.com")
    assert server.asked("example.com", "MX") == seen + 1


async def test_refused_is_temporary(server: DnsResponder) -> None:
    """A server that refuses to answer says nothing about the domain."""
    server.refuse.add("example.com")
    with pytest.raises(DnsTemporary):
        await make(server).find_mx("example.com")


async def test_silence_is_temporary(server: DnsResponder) -> None:
    """No answer within the lifetime is DnsTemporary."""
    server.silent.add("example.com")
    resolver = DnsResolver([server.address], lifetime_seconds=0.2)
    with pytest.raises(DnsTemporary, match="no answer in time"):
        await resolver.find_mx("example.com")


async def test_one_family_failing_is_no_failure(server: DnsResponder) -> None:
    """A found and AAAA failing gives the A addresses; only A empty and AAAA failing is temporary."""
    server.servfail.add("mx1.example.com/AAAA")
    assert await make(server).find_addresses("mx1.example.com") == ("192.0.2.1",)
    server.zones["mx1.example.com"] = {"AAAA": ["2001:db8::1"]}
    with pytest.raises(DnsTemporary):
        await make(server).find_addresses("mx1.example.com")


async def test_cut_datagram_is_asked_again_over_tcp(server: DnsResponder) -> None:
    """A truncated UDP answer leads to TCP."""
    server.truncate.add("example.com")
    assert await make(server).find_mx("example.com") == (MxRecord(10, "mx1.example.com"),)
    assert ("example.com", "MX", "tcp") in server.queries


async def test_second_server_answers_for_a_failing_first(server: DnsResponder) -> None:
    """Servers are tried until one knows."""
    with DnsResponder() as broken:
        broken.servfail.add("*")
        resolver = DnsResolver([broken.address, server.address], lifetime_seconds=5)
        assert await resolver.find_mx("example.com") == (MxRecord(10, "mx1.example.com"),)


async def test_same_question_is_asked_once_at_a_time(server: DnsResponder) -> None:
    """Askers that come together share one query, and one that gives up spoils nothing."""
    resolver = make(server)
    askers = [asyncio.create_task(resolver.find_mx("example.com")) for _ in range(5)]
    await asyncio.sleep(0)
    askers[0].cancel()
    answers = await asyncio.gather(*askers[1:])
    assert all(answer == (MxRecord(10, "mx1.example.com"),) for answer in answers)
    assert server.asked("example.com", "MX") == 1


async def test_cache_is_bounded_and_strangers_cannot_empty_it(server: DnsResponder) -> None:
    """Reverse look-ups of many clients leave the MX answers in the cache."""
    resolver = make(server, max_entries=4)
    await resolver.find_mx("example.com")
    for last in range(20):
        assert await resolver.find_name(f"192.0.2.{last}") is None
    await resolver.find_mx("example.com")
    assert server.asked("example.com", "MX") == 1
    for name in "abcdef":
        await resolver.find_mx(f"{name}.example")
    await resolver.find_mx("example.com")
    assert server.asked("example.com", "MX") == 2


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".example", ".".join(["abcdefgh"] * 40)])
async def test_name_that_cannot_exist_does_not(server: DnsResponder, name: str) -> None:
    """What no zone can hold is answered without asking."""
    assert await make(server).find_mx(name) is None
    assert server.queries == []


@pytest.mark.parametrize("name", ["evil\\010name.example.", "two\\032words.example."])
async def test_unfit_reverse_name_is_not_returned(server: DnsResponder, name: str) -> None:
    """A reverse name with control characters or blanks never reaches a log or a header."""
    server.zones["9.2.0.192.in-addr.arpa"] = {"PTR": [name]}
    assert await make(server).find_name("192.0.2.9") is None


async def test_garbage_is_no_address(server: DnsResponder) -> None:
    """find_name answers None to what is not an address."""
    assert await make(server).find_name("unknown") is None


async def test_localhost_needs_no_dns(server: DnsResponder) -> None:
    """localhost is loopback whatever DNS says (RFC 6761)."""
    assert await make(server).find_addresses("localhost") == ("127.0.0.1", "::1")
    assert server.queries == []


async def test_system_servers_are_read() -> None:
    """Without a list the system's configuration is used, or loopback where there is none."""
    assert DnsResolver() is not None


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]", ("2001:db8::1", 53)),
        ("[2001:db8::1]:54", ("2001:db8::1", 54)),
    ],
)
def test_server_forms(text: str, server: tuple[str, int]) -> None:
    """The forms a name server may be written in."""
    assert parse_server(text) == server


@pytest.mark.parametrize("text", ["", "ns.example", "192.0.2.1:0", "192.0.2.1:x", "[::1", "[::1]5"])
def test_server_mistakes(text: str) -> None:
    """What is not an address and a port is refused with a reason."""
    with pytest.raises(ValueError):
        parse_server(text)
