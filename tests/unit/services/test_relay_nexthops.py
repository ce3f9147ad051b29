"""Next hops that are down, blocked or held back by DNS: probed, never hammered, drained at once."""

from __future__ import annotations

import asyncio

import pytest

from fakes.connector import accept, refusing, unreachable
from fakes.relay_world import MX, OTHER, PRIMARY, World, fixed
from fakes.resolver import FakeResolver
from fakes.timers import turn_over
from posthouse.domain.drain import State
from posthouse.domain.nexthop import WAITS, HostPort
from posthouse.ports_relay import SessionEnd, Target
from posthouse.services import relay_walk
from posthouse.services.relay_settings import RelaySettings, RouteSettings

SETTINGS = RelaySettings(own_names=frozenset({"mx2.example.net"}), concurrency=4)
THIRD = "192.0.2.3"


def mx_world(resolver: FakeResolver, settings: RelaySettings = SETTINGS) -> World:
    return World({"example.com": MX}, settings, resolver)


def published() -> FakeResolver:
    return FakeResolver(
        {"example.com": [(10, "mx1.example.com"), (20, "mx2.example.net")]},
        {"mx1.example.com": [PRIMARY], "mx2.example.net": ["192.0.2.99"]},
    )


async def test_outage_and_return() -> None:
    """Down: mail waits untouched and costs nothing but probes. Back: everything goes at once."""
    world = World({"example.com": fixed(PRIMARY)}, SETTINGS)
    world.peer().down()
    ids = await world.accept_many(300)
    due = {key: row.due_us for key, row in (await world.rows()).items()}
    await world.start()
    assert world.state() is State.DOWN
    assert "connection refused" in world.status().why
    claims = len(world.spool.claims)
    await world.accept_many(50)
    await world.timers.advance(600)
    assert len(world.spool.claims) == claims
    assert 17 <= world.peer().probes <= 23
    assert world.peer().connects == 1
    assert all(row.due_us == due.get(key, row.due_us) for key, row in (await world.rows()).items())
    assert all(row.attempts == 0 for row in (await world.rows()).values())
    assert world.spool.settle_calls == []
    world.peer().up()
    await world.timers.advance(34)
    assert world.state() is State.UP
    assert len(world.peer().delivered) == 350
    assert world.peer().delivered[:300] == ids
    assert await world.rows() == {}
    assert world.status().next_probe_us is None


async def test_outage_of_many_domains_reads_only_those_with_mail() -> None:
    """A thousand domains at one next hop: start and recovery claim for the few that have mail."""
    world = World({f"d{i}.example": fixed(PRIMARY) for i in range(1000)}, SETTINGS)
    world.peer().down()
    await world.accept("u@d7.example")
    await world.accept("u@d8.example")
    await world.start()
    assert world.state() is State.DOWN
    world.peer().up()
    await world.timers.advance(34)
    assert len(world.peer().delivered) == 2
    assert {domain for domain, _ in world.spool.claims} == {"d7.example", "d8.example"}
    assert len(world.spool.claims) <= 6  # at the start, for addresses to probe with, at the end


async def test_a_primary_that_fetches_is_no_alert() -> None:
    """Nobody on the line is how it should be: no alert in `status`, and a word that says so."""
    line = "/data/run/atrn-1.sock"
    world = World({"example.com": RouteSettings(hops=(HostPort(line, 0),))}, SETTINGS)
    world.peer(line).down()
    await world.accept()
    await world.start()
    assert world.state() is State.DOWN
    assert world.status().why == WAITS
    assert list(world.relay.alerts()) == []
    world.peer(line).up()
    await world.timers.advance(34)
    assert len(world.peer(line).delivered) == 1


async def test_retry_probes_at_once() -> None:
    """An operator need not wait for the next probe."""
    world = World({"example.com": fixed(PRIMARY)}, SETTINGS)
    world.peer().down()
    await world.accept()
    await world.start()
    world.peer().up()
    world.relay.retry("example.com")
    await turn_over()
    assert len(world.peer().delivered) == 1


async def test_dead_next_hop_does_not_slow_another() -> None:
    """A next hop that hangs in connect, and one that is down, leave the third at full speed."""
    world = World(
        {
            "hangs.example": fixed(OTHER),
            "down.example": fixed(THIRD),
            "example.com": fixed(PRIMARY),
        },
        SETTINGS,
    )
    world.peer(OTHER).gate = asyncio.Event()
    world.peer(THIRD).down()
    await world.start()
    for _ in range(20):
        await world.accept("u@hangs.example")
        await world.accept("u@down.example")
        await world.accept("u@example.com")
    await turn_over()
    assert len(world.peer(PRIMARY).delivered) == 20
    states = {s.next_hop: s.state for s in world.relay.status()}
    assert states[f"smtp://{THIRD}:25"] is State.DOWN
    assert states[f"smtp://{PRIMARY}:25"] is State.UP


async def test_places_are_tried_in_order() -> None:
    """The first place that greets wins; a refused connect and a 4xx or 5xx greeting go on."""
    world = World({"example.com": fixed(PRIMARY, OTHER, THIRD)}, SETTINGS)
    world.peer(PRIMARY).down()
    world.peer(OTHER).connect_failure = refusing(554)
    await world.start()
    await world.accept()
    await turn_over()
    assert len(world.peer(THIRD).delivered) == 1
    assert [t.address for t in world.connector.targets] == [PRIMARY, OTHER, THIRD]


async def test_all_places_saying_5xx_is_blocked() -> None:
    """Only when every place refuses us for good is the next hop blocked, and that is alerted."""
    world = World({"example.com": fixed(PRIMARY, OTHER)}, SETTINGS)
    for address in (PRIMARY, OTHER):
        world.peer(address).down(refusing(554, "554 5.7.1 not you"))
    await world.accept()
    await world.start()
    assert world.state() is State.BLOCKED
    assert "not you" in world.relay.alerts()[0].text


@pytest.mark.parametrize("failure", [unreachable(), refusing(421, "421 4.3.2 busy")])
async def test_one_temporary_answer_is_down_not_blocked(failure: Exception) -> None:
    """A place that may yet take us makes it a matter of waiting."""
    world = World({"example.com": fixed(PRIMARY, OTHER)}, SETTINGS)
    world.peer(PRIMARY).down(refusing(554))
    world.peer(OTHER).down(failure)  # type: ignore[arg-type]
    await world.accept()
    await world.start()
    assert world.state() is State.DOWN


async def test_sessions_that_keep_breaking_mark_it_down() -> None:
    """A peer that greets and then drops every session is not reconnected to for ever."""
    world = World({"example.com": fixed(PRIMARY)}, SETTINGS)
    world.peer().hold = True
    await world.start()
    await world.accept_many(20)
    for _ in range(30):
        await turn_over()
        for session in world.peer().open_sessions:
            session.lose()
    await turn_over()
    assert world.state() is State.DOWN
    assert world.peer().connects <= 8


async def test_mx_is_followed_to_strictly_better_hosts() -> None:
    """Mail goes to the MX before ours, never to ourselves or beyond."""
    resolver = published()
    resolver.mx["example.com"].append((30, "mx3.example.com"))  # type: ignore[attr-defined]
    resolver.addresses["mx3.example.com"] = [THIRD]
    world = mx_world(resolver)
    await world.start()
    await world.accept()
    await turn_over()
    assert world.connector.targets == [Target("mx1.example.com", PRIMARY, 25)]
    assert len(world.peer().delivered) == 1


@pytest.mark.parametrize(
    ("mx", "word"),
    [
        ([(10, "mx2.example.net")], "best MX"),
        ([(10, "mx1.example.com")], "none is proven better"),
        ([(0, "")], "null MX"),
    ],
)
async def test_dns_that_leaves_nobody_holds_and_alerts(
    mx: list[tuple[int, str]], word: str
) -> None:
    """Nothing better left: the mail is kept untouched, a person is told, DNS is asked again."""
    resolver = published()
    resolver.mx["example.com"] = mx
    world = mx_world(resolver)
    queue_id = await world.accept()
    await world.start()
    assert world.state() is State.HELD
    assert word in world.relay.alerts()[0].text
    assert world.connector.targets == []
    assert (await world.row(queue_id)).attempts == 0
    resolver.mx["example.com"] = [(10, "mx1.example.com"), (20, "mx2.example.net")]
    await world.timers.advance(34)
    assert world.state() is State.UP
    assert world.peer().delivered == [queue_id]


async def test_vanished_domain_is_held() -> None:
    """NXDOMAIN is no reason to give mail up."""
    world = mx_world(FakeResolver())
    await world.accept()
    await world.start()
    assert world.state() is State.HELD
    assert len(await world.rows()) == 1


async def test_dns_failure_is_temporary() -> None:
    """No answer from DNS is like no answer from the host: down, probed, no alert of a finding."""
    resolver = published()
    resolver.failing.add("example.com")
    world = mx_world(resolver)
    await world.accept()
    await world.start()
    assert world.state() is State.DOWN
    resolver.failing.clear()
    await world.timers.advance(34)
    assert len(world.peer().delivered) == 1


async def test_own_address_behind_nat_is_recognised() -> None:
    """An MX that leads to an address given as ours is ourselves, whatever its name."""
    resolver = published()
    resolver.mx["example.com"] = [(10, "mail.example.com"), (20, "mx2.example.net")]
    resolver.addresses["mail.example.com"] = ["203.0.113.7"]
    settings = RelaySettings(
        own_names=frozenset({"mx2.example.net"}), own_addresses=frozenset({"203.0.113.7"})
    )
    world = mx_world(resolver, settings)
    await world.accept()
    await world.start()
    assert world.state() is State.HELD
    assert world.connector.targets == []


async def test_change_of_mx_is_followed_while_sessions_are_open() -> None:
    """Within a minute, open sessions to a host that is no longer an MX are ended."""
    resolver = published()
    world = mx_world(resolver)
    world.peer().hold = True
    await world.start()
    await world.accept_many(8)
    await turn_over()
    resolver.mx["example.com"] = [(5, "new.example.com"), (20, "mx2.example.net")]
    resolver.addresses["new.example.com"] = [OTHER]
    await world.timers.advance(61)
    for session in world.peer().open_sessions:
        session.answer(accept)
    await turn_over(100)
    assert world.peer().open_sessions == []
    assert len(world.peer(OTHER).delivered) == 8 - len(world.peer().delivered)
    assert await world.rows() == {}


async def test_domain_turned_away_by_dns_stops_while_sending() -> None:
    """When we become the best MX during a drain, the rest is held."""
    resolver = published()
    world = mx_world(resolver)
    world.peer().hold = True
    await world.start()
    await world.accept_many(8)
    await turn_over()
    resolver.mx["example.com"] = [(20, "mx2.example.net")]
    await world.timers.advance(61)
    assert world.state() is State.HELD
    for session in world.peer().open_sessions:
        session.answer(accept)
    await turn_over()
    assert len(await world.rows()) == 8 - len(world.peer().delivered) > 0


async def test_dns_trouble_while_sending_changes_nothing() -> None:
    """Sessions that are open carry on when DNS fails, and so does the next hop."""
    resolver = published()
    world = mx_world(resolver)
    world.peer().hold = True
    await world.start()
    await world.accept_many(8)
    await turn_over()
    resolver.failing.add("example.com")
    await world.timers.advance(61)
    assert world.state() is State.UP


async def test_fixed_name_is_looked_up() -> None:
    """A fixed place given by name uses all its addresses, with its port."""
    resolver = FakeResolver(addresses={"mail.example.com": [PRIMARY, "2001:db8::1"]})
    route = RouteSettings(hops=(HostPort("mail.example.com", 2525),))
    world = World({"example.com": route}, SETTINGS, resolver)
    world.peer(PRIMARY).down()
    await world.start()
    await world.accept()
    await turn_over()
    assert world.connector.targets[-1] == Target("mail.example.com", "2001:db8::1", 2525)
    assert len(world.peer("2001:db8::1").delivered) == 1


async def test_fixed_name_without_address_is_down() -> None:
    """A fixed place whose name has no address, or is not answered for, is like a host that is off."""
    resolver = FakeResolver()
    world = World(
        {"example.com": RouteSettings(hops=(HostPort("gone.example"),))}, resolver=resolver
    )
    await world.accept()
    await world.start()
    assert world.state() is State.DOWN
    assert "no address for gone.example" in world.status().why
    resolver.failing.add("gone.example")
    await world.timers.advance(40)
    assert "no answer about gone.example" in world.status().why


async def test_fault_of_our_own_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error while connecting marks the next hop down; the next probe goes on."""
    world = World({"example.com": fixed(PRIMARY)}, SETTINGS)

    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(world.connector, "connect", broken)
    await world.accept()
    await world.start()
    assert world.state() is State.DOWN
    assert "local error" in world.status().why
    monkeypatch.undo()
    await world.timers.advance(34)
    assert len(world.peer().delivered) == 1


async def test_sessions_lost_at_mail_mark_it_down() -> None:
    """A peer that hangs up or talks nonsense at MAIL is not called again and again."""
    world = World({"example.com": fixed(PRIMARY)}, SETTINGS)
    world.peer().hold = True
    await world.accept_many(300)
    await world.start()
    for _ in range(200):
        for session in world.peer().open_sessions:
            session.lose(end=SessionEnd(failure="lost connection", stage="mail"))
        await turn_over()
    assert world.state() is State.DOWN
    assert world.peer().connects <= 12


async def test_retry_supersedes_a_probe_that_hangs() -> None:
    """A probe nobody answers does not outlast an operator's wish to try now."""
    world = World({"example.com": fixed(PRIMARY)}, SETTINGS)
    world.peer().down()
    queue_id = await world.accept()
    await world.start()
    world.peer().probe_gate = asyncio.Event()
    await world.timers.advance(34)
    assert world.peer().probes == 1
    world.peer().probe_gate = None
    world.peer().up()
    world.relay.retry()
    await turn_over()
    assert world.peer().delivered == [queue_id]


async def test_a_place_that_never_greets_does_not_hold_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mail goes to the second place though the first one takes the connection and is silent."""
    world = World({"example.com": fixed(PRIMARY, OTHER)}, SETTINGS)
    world.peer(PRIMARY).gate = asyncio.Event()
    monkeypatch.setattr(relay_walk, "patience_seconds", lambda interval_us: 0.05)
    queue_id = await world.accept()
    await world.start()
    while not world.peer(OTHER).delivered:  # the suite's time-out bounds it
        await asyncio.sleep(0)
    assert world.peer(OTHER).delivered == [queue_id]
