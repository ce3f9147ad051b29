"""The promise of `ports_dns.Resolver`, over dnspython against a real DNS server and over the fake."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest

from fakes.resolver import FakeResolver
from peers.dns import DnsResponder
from posthouse.errors import DnsTemporary
from posthouse.ports_dns import MxRecord, Resolver
from posthouse.transports.resolver import DnsResolver

MX = {
    "example.com": [(20, "mx2.example.net"), (10, "mx1.example.com")],
    "null.example": [(0, "")],
}
ADDRESSES = {
    "mx1.example.com": ["192.0.2.1", "2001:db8::1"],
    "mx2.example.net": ["192.0.2.2"],
    "six.example": ["2001:db8::6"],
    "bare.example": ["192.0.2.9"],
    "dead.example": ["192.0.2.66"],
}
NAMES = {
    "192.0.2.1": "mx1.example.com",
    "2001:db8::1": "mx1.example.com",
    "192.0.2.77": "mx1.example.com",  # a lie: the name has other addresses
    "192.0.2.78": "gone.example",
    "192.0.2.66": "dead.example",
}
ALIASES = {"alias.example": "example.com", "mxalias.example": "mx1.example.com"}
FAILING = {"broken.example", "dead.example"}


@pytest.fixture(params=["fake", "dnspython"])
def resolver(request: pytest.FixtureRequest) -> Iterator[Resolver]:
    if request.param == "fake":
        fake = FakeResolver(MX, ADDRESSES, NAMES, ALIASES)
        fake.failing |= FAILING
        yield fake
        return
    with DnsResponder(_zones()) as server:
        server.servfail |= FAILING
        yield DnsResolver([server.address], lifetime_seconds=5)


def _zones() -> dict[str, dict[str, list[str]]]:
    zones: dict[str, dict[str, list[str]]] = {}
    for name, records in MX.items():
        zones.setdefault(name, {})["MX"] = [f"{p} {exchange}." for p, exchange in records]
    for name, addresses in ADDRESSES.items():
        for address in addresses:
            rdtype = "AAAA" if ":" in address else "A"
            zones.setdefault(name, {}).setdefault(rdtype, []).append(address)
    for address, name in NAMES.items():
        zones[_pointer(address)] = {"PTR": [name + "."]}
    for alias, name in ALIASES.items():
        zones[alias] = {"CNAME": [name + "."]}
    return zones


def _pointer(address: str) -> str:
    return ipaddress.ip_address(address).reverse_pointer


async def test_mx_set_is_returned_as_published(resolver: Resolver) -> None:
    """Every MX comes with its preference and its lower-case name without the last dot."""
    found = await resolver.find_mx("example.com")
    assert found is not None
    assert set(found) == {MxRecord(10, "mx1.example.com"), MxRecord(20, "mx2.example.net")}


async def test_null_mx_is_an_empty_exchange(resolver: Resolver) -> None:
    """RFC 7505's "." arrives as ""."""
    assert await resolver.find_mx("null.example") == (MxRecord(0, ""),)


async def test_name_without_mx_differs_from_no_name(resolver: Resolver) -> None:
    """() means the name exists without MX, None that it does not exist."""
    assert await resolver.find_mx("bare.example") == ()
    assert await resolver.find_mx("gone.example") is None


async def test_aliases_are_followed(resolver: Resolver) -> None:
    """A CNAME at the domain or at the exchange leads to the records behind it."""
    found = await resolver.find_mx("alias.example")
    assert found is not None
    assert len(found) == 2
    assert set(await resolver.find_addresses("mxalias.example")) == {"192.0.2.1", "2001:db8::1"}


async def test_both_families_are_found(resolver: Resolver) -> None:
    """A and AAAA of a host both count, and one alone is enough."""
    assert set(await resolver.find_addresses("mx1.example.com")) == {"192.0.2.1", "2001:db8::1"}
    assert await resolver.find_addresses("six.example") == ("2001:db8::6",)


async def test_host_without_address_is_empty(resolver: Resolver) -> None:
    """A host that has no address, or does not exist, has ()."""
    assert await resolver.find_addresses("null.example") == ()
    assert await resolver.find_addresses("gone.example") == ()


async def test_address_is_its_own_address(resolver: Resolver) -> None:
    """An IP text needs no DNS."""
    assert await resolver.find_addresses("192.0.2.200") == ("192.0.2.200",)
    assert await resolver.find_addresses("2001:db8::200") == ("2001:db8::200",)


async def test_failure_is_temporary_never_empty(resolver: Resolver) -> None:
    """SERVFAIL raises DnsTemporary for every kind of question."""
    with pytest.raises(DnsTemporary):
        await resolver.find_mx("broken.example")
    with pytest.raises(DnsTemporary):
        await resolver.find_addresses("broken.example")


async def test_reverse_name_must_be_confirmed(resolver: Resolver) -> None:
    """Only a name whose own addresses hold the address asked for is returned."""
    assert await resolver.find_name("192.0.2.1") == "mx1.example.com"
    assert await resolver.find_name("2001:db8::1") == "mx1.example.com"
    assert await resolver.find_name("192.0.2.77") is None
    assert await resolver.find_name("192.0.2.78") is None
    assert await resolver.find_name("192.0.2.250") is None


async def test_reverse_name_never_raises(resolver: Resolver) -> None:
    """Broken DNS gives no name, not an error."""
    assert await resolver.find_name("192.0.2.66") is None
