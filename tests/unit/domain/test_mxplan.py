"""MX plans: RFC 5321 §5.1 to the letter, and never a loop."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.domain.mxplan import (
    MAX_EXCHANGES,
    MAX_PLACES,
    Obstacle,
    Ourselves,
    Place,
    Plan,
    plan_mx,
    rank_exchanges,
)

US = Ourselves(names=frozenset({"mx2.example.net"}), addresses=frozenset({"203.0.113.2"}))
ADDRESSES = {
    "mx1.example.com": ("192.0.2.1", "2001:db8::1"),
    "alt.example.com": ("192.0.2.4",),
    "mx2.example.net": ("203.0.113.2",),
    "mx3.example.com": ("192.0.2.3",),
}


class Mx(NamedTuple):
    preference: int
    exchange: str


def plan(
    mx: Sequence[Mx] | None,
    addresses: Mapping[str, Sequence[str]] = ADDRESSES,
    ourselves: Ourselves = US,
) -> Plan:
    return plan_mx(
        mx, addresses, domain="example.com", ourselves=ourselves, shuffle=lambda hosts: None
    )


def test_only_strictly_better_hosts_are_used() -> None:
    """Our own level and everything behind it is discarded; both families of the rest are used."""
    found = plan(
        [
            Mx(30, "mx3.example.com"),
            Mx(20, "alt.example.com"),
            Mx(20, "mx2.example.net"),
            Mx(10, "mx1.example.com"),
        ]
    )
    assert found.places == (
        Place("mx1.example.com", "192.0.2.1"),
        Place("mx1.example.com", "2001:db8::1"),
    )


def test_order_is_by_preference() -> None:
    """The lowest number comes first, whatever the order of the answer."""
    found = plan([Mx(9, "mx2.example.net"), Mx(5, "mx3.example.com"), Mx(1, "alt.example.com")])
    assert [p.host for p in found.places] == ["alt.example.com", "mx3.example.com"]


def test_equal_preferences_are_shuffled() -> None:
    """Hosts of one level change places, levels do not."""
    mx = [
        Mx(1, "mx1.example.com"),
        Mx(5, "alt.example.com"),
        Mx(5, "mx3.example.com"),
        Mx(9, "mx2.example.net"),
    ]
    seen = set()
    for seed in range(20):
        found = plan_mx(
            mx, ADDRESSES, domain="d", ourselves=US, shuffle=random.Random(seed).shuffle
        )
        hosts = list(dict.fromkeys(p.host for p in found.places))
        assert hosts[0] == "mx1.example.com"
        seen.add(tuple(hosts[1:]))
    assert len(seen) == 2


def test_own_address_under_another_name_is_ourselves() -> None:
    """An alias of ours cuts the list at *its* level (the lowest match counts)."""
    addresses = {**ADDRESSES, "alias.example.com": ("203.0.113.2",)}
    found = plan(
        [Mx(5, "alias.example.com"), Mx(10, "mx1.example.com"), Mx(20, "mx2.example.net")],
        addresses,
    )
    assert found.obstacle is Obstacle.SELF_BEST


@pytest.mark.parametrize("text", ["198.51.100.9", "::ffff:198.51.100.9", "2001:db8:5::9"])
def test_own_address_is_known_in_every_form(text: str) -> None:
    """NAT addresses, ranges and IPv4 in IPv6 clothes are recognised."""
    ourselves = Ourselves(
        names=frozenset(), addresses=frozenset({"198.51.100.0/24", "2001:DB8:5:0::9"})
    )
    found = plan([Mx(1, "a.example")], {"a.example": (text,)}, ourselves)
    assert found.obstacle is Obstacle.SELF_BEST


def test_self_best_is_held() -> None:
    """Nobody better: an obstacle that does not pass by itself."""
    found = plan([Mx(10, "mx2.example.net"), Mx(20, "mx3.example.com")])
    assert found == Plan(obstacle=Obstacle.SELF_BEST, text=found.text)
    assert "best MX" in found.text
    assert not Obstacle.SELF_BEST.temporary


def test_not_listed_is_held() -> None:
    """Where neither our names nor our addresses appear, nobody is proven better."""
    assert plan([Mx(10, "mx1.example.com")]).obstacle is Obstacle.NOT_LISTED


def test_not_listed_is_not_concluded_from_missing_answers() -> None:
    """A host that could not be looked up may be us: temporary."""
    found = plan([Mx(10, "mx1.example.com"), Mx(20, "silent.example")])
    assert found.obstacle is Obstacle.UNKNOWN
    assert Obstacle.UNKNOWN.temporary


def test_host_without_answer_is_skipped() -> None:
    """One better MX that could not be looked up does not stop mail to the next."""
    found = plan([Mx(1, "silent.example"), Mx(5, "mx1.example.com"), Mx(20, "mx2.example.net")])
    assert {p.host for p in found.places} == {"mx1.example.com"}


def test_hosts_without_addresses_leave_a_temporary_obstacle() -> None:
    """Better MXes exist, none has an address."""
    found = plan(
        [Mx(1, "empty.example"), Mx(20, "mx2.example.net")], {**ADDRESSES, "empty.example": ()}
    )
    assert found.obstacle is Obstacle.NO_ADDRESSES
    assert found.obstacle.temporary


def test_null_mx_is_held() -> None:
    """RFC 7505: the domain takes no mail; ours is kept all the same."""
    assert plan([Mx(0, "")]).obstacle is Obstacle.NULL_MX


def test_null_mx_beside_others_is_ignored() -> None:
    """RFC 7505 §3 forbids it; the real hosts count."""
    found = plan([Mx(0, ""), Mx(5, "mx1.example.com"), Mx(9, "mx2.example.net")])
    assert found.places


def test_no_domain_is_held() -> None:
    """NXDOMAIN."""
    assert plan(None).obstacle is Obstacle.NO_DOMAIN


def test_implicit_mx() -> None:
    """No MX: the domain's own addresses, unless they are ours or missing."""
    assert plan((), {"example.com": ("192.0.2.8",)}).places == (Place("example.com", "192.0.2.8"),)
    assert plan((), {"example.com": ("203.0.113.2",)}).obstacle is Obstacle.SELF_BEST
    assert plan((), {"example.com": ()}).obstacle is Obstacle.NO_ADDRESSES
    assert plan((), {}).obstacle is Obstacle.UNKNOWN


def test_private_addresses_are_fine() -> None:
    """A primary behind a VPN or on loopback is a place like any other."""
    addresses = {"a.example": ("10.0.0.1", "127.0.0.5", "fd00::1")}
    found = plan([Mx(1, "a.example"), Mx(2, "mx2.example.net")], addresses)
    assert [p.address for p in found.places] == ["10.0.0.1", "127.0.0.5", "fd00::1"]


@pytest.mark.parametrize("text", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "nonsense"])
def test_places_that_are_nobody_are_skipped(text: str) -> None:
    """0.0.0.0 would be this very machine."""
    found = plan([Mx(1, "a.example"), Mx(2, "mx2.example.net")], {"a.example": (text,)})
    assert found.obstacle is Obstacle.NO_ADDRESSES


def test_same_address_is_tried_once() -> None:
    """Two names of one host are one place."""
    addresses = {"a.example": ("192.0.2.1",), "b.example": ("192.0.2.1",)}
    found = plan([Mx(1, "a.example"), Mx(2, "b.example"), Mx(3, "mx2.example.net")], addresses)
    assert found.places == (Place("a.example", "192.0.2.1"),)


def test_plans_are_bounded() -> None:
    """Thousands of records or addresses make neither many questions nor many places."""
    mx = [Mx(1, f"h{i}.example") for i in range(5000)]
    assert len(rank_exchanges(mx, frozenset())) == MAX_EXCHANGES
    addresses = {"a.example": tuple(f"192.0.2.{i}" for i in range(200))}
    found = plan([Mx(1, "a.example"), Mx(2, "mx2.example.net")], addresses)
    assert len(found.places) == MAX_PLACES


def test_hosts_behind_our_name_need_no_question() -> None:
    """Only hosts before our own name are looked up; all of them when we are not named."""
    mx = [Mx(30, "c.example"), Mx(20, "mx2.example.net"), Mx(10, "a.example"), Mx(5, "")]
    assert rank_exchanges(mx, US.names) == ["a.example"]
    assert rank_exchanges(mx, frozenset()) == ["a.example", "mx2.example.net", "c.example"]


HOSTS = [f"h{i}.example" for i in range(6)]
IPS = [f"192.0.2.{i}" for i in range(8)] + ["2001:db8::1", "::ffff:192.0.2.1", "0.0.0.0", "x"]


@given(
    mx=st.lists(st.builds(Mx, st.integers(0, 4), st.sampled_from([*HOSTS, ""])), max_size=8),
    addresses=st.dictionaries(st.sampled_from(HOSTS), st.lists(st.sampled_from(IPS), max_size=3)),
    names=st.frozensets(st.sampled_from(HOSTS), max_size=2),
    own=st.frozensets(st.sampled_from(IPS[:9]), max_size=2),
    seed=st.integers(0, 3),
)
def test_never_ourselves_never_as_good_as_ourselves(
    mx: list[Mx],
    addresses: dict[str, list[str]],
    names: frozenset[str],
    own: frozenset[str],
    seed: int,
) -> None:
    """Whatever DNS holds: a target is strictly better than each match of ours, and no match itself."""
    found = plan_mx(
        mx,
        addresses,
        domain="h0.example",
        ourselves=Ourselves(names=names, addresses=own),
        shuffle=random.Random(seed).shuffle,
    )
    assert (found.obstacle is None) == bool(found.places)
    assert (found.obstacle is None) == (not found.text)
    unmapped = {"::ffff:192.0.2.1": "192.0.2.1"}
    ours = [
        r.preference
        for r in mx
        if r.exchange
        and (
            r.exchange in names
            or any(unmapped.get(a, a) in own for a in addresses.get(r.exchange, []))
        )
    ]
    for place in found.places:
        assert place.host not in names
        assert place.address not in own
        if mx:
            assert ours, "sent although we are not listed"
            best = min(r.preference for r in mx if r.exchange == place.host)
            assert best < min(ours)
