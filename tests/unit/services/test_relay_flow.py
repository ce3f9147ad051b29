"""Mail flows home: fresh, from the backlog, over as many sessions as it needs, each message once."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from fakes.connector import accept, answer_with, refusing
from fakes.relay_world import OTHER, PRIMARY, World, fixed
from fakes.timers import turn_over
from posthouse.errors import StorageBroken
from posthouse.ports_spool import OperatorAction, Outcome, Selection, Settlement
from posthouse.services.relay_settings import RelaySettings

SETTINGS = RelaySettings(own_names=frozenset({"mx2.example.net"}), concurrency=4)


@pytest.fixture
def world() -> World:
    return World({"example.com": fixed(PRIMARY)}, SETTINGS)


async def test_fresh_message_goes_straight_out(world: World) -> None:
    """A message accepted while the next hop is up is sent from memory and leaves the spool."""
    await world.start()
    claims = len(world.spool.claims)
    queue_id = await world.accept(body=b"A: b\r\n\r\nbody\r\n")
    await turn_over()
    assert world.peer().delivered == [queue_id]
    assert world.peer().received[0].body == b"A: b\r\n\r\nbody\r\n"
    assert await world.rows() == {}
    assert len(world.spool.claims) == claims  # never read back


async def test_backlog_drains_at_start_in_order(world: World) -> None:
    """What waited before the start is sent, oldest first, and nothing stays."""
    ids = await world.accept_many(250)
    await world.start()
    await turn_over(200)
    assert world.peer().delivered == ids
    assert await world.rows() == {}


async def test_no_message_is_sent_twice_under_load(world: World) -> None:
    """Accepting, claiming, sending and settling at once sends each message exactly once."""
    await world.accept_many(150)
    await world.start()
    world.peer().depth = 3
    for _ in range(300):
        await world.accept()
    await turn_over(200)
    delivered = world.peer().delivered
    assert len(delivered) == 450
    assert len(set(delivered)) == 450
    assert await world.rows() == {}


async def test_message_in_hand_is_not_claimed_again(world: World) -> None:
    """While a message is under way, re-reading the queue does not send it a second time."""
    world.peer().hold = True
    await world.start()
    queue_id = await world.accept()
    await turn_over()
    world.relay.retry()
    await world.timers.advance(61)
    assert [t.message.queue_id for t in world.peer().received] == [queue_id]
    world.peer().sessions[0].answer()
    await turn_over()
    assert await world.rows() == {}


async def test_message_settled_while_a_claim_runs_is_not_sent_again(world: World) -> None:
    """A claim that read the table before a delivery was settled does not bring it back."""
    world.peer().hold = True
    await world.start()
    first = await world.accept()
    await turn_over()
    gate = world.spool.claim_gate = asyncio.Event()
    world.relay.retry()
    await turn_over()
    world.peer().hold = False
    world.peer().sessions[0].answer()
    await turn_over()
    assert await world.rows() == {}
    gate.set()
    await turn_over()
    assert [t.message.queue_id for t in world.peer().received] == [first]


async def test_message_deferred_while_a_claim_runs_waits(world: World) -> None:
    """A claim that saw the old due instant does not cut the schedule short."""
    world.peer().hold = True
    await world.start()
    await world.accept()
    await turn_over()
    gate = world.spool.claim_gate = asyncio.Event()
    world.relay.retry()
    await turn_over()
    world.peer().sessions[0].answer(answer_with(450, "4.2.1 later", "rcpt"))
    await turn_over()
    gate.set()
    await world.timers.advance(50)
    assert len(world.peer().received) == 1
    await world.timers.advance(15)
    assert len(world.peer().received) == 2


@pytest.mark.parametrize("count", [3, 350])
async def test_mail_accepted_while_a_claim_runs_is_not_forgotten(world: World, count: int) -> None:
    """What arrives behind a running claim's back goes out with it, few or many."""
    await world.start()
    gate = world.spool.claim_gate = asyncio.Event()
    world.relay.retry()
    await turn_over()
    ids = await world.accept_many(count)
    gate.set()
    await turn_over(200)
    assert sorted(world.peer().delivered) == ids
    assert await world.rows() == {}


async def test_recipients_of_one_message_share_a_transaction(world: World) -> None:
    """All recipients at one next hop go in one transaction."""
    await world.start()
    await world.accept("a@example.com", "b@example.com", "c@example.com")
    await turn_over()
    assert [r.address for r in world.peer().received[0].message.recipients] == [
        "a@example.com",
        "b@example.com",
        "c@example.com",
    ]
    assert await world.rows() == {}


async def test_message_for_two_next_hops_is_split() -> None:
    """Each next hop sees its own recipients only, and each is settled by itself."""
    world = World({"example.com": fixed(PRIMARY), "example.org": fixed(OTHER)})
    await world.start()
    world.peer(OTHER).hold = True
    await world.accept("a@example.com", "b@example.org")
    await turn_over()
    assert [r.address for t in world.peer(PRIMARY).received for r in t.message.recipients] == [
        "a@example.com"
    ]
    assert [r.address for r in (await world.rows()).values()] == ["b@example.org"]
    world.peer(OTHER).sessions[0].answer()
    await turn_over()
    assert await world.rows() == {}


async def test_domains_with_the_same_places_share_one_next_hop() -> None:
    """Identical fixed lists are one next hop with one state and one set of sessions."""
    world = World({"example.com": fixed(PRIMARY), "example.org": fixed(PRIMARY)})
    await world.start()
    await world.accept("a@example.com")
    await world.accept("b@example.org")
    await turn_over()
    assert world.peer().connects == 1
    assert len(world.peer().delivered) == 2
    assert len(world.relay.status()) == 1
    assert world.status().domains == ("example.com", "example.org")


async def test_outcomes_of_one_turn_are_settled_together(world: World) -> None:
    """Many deliveries in one turn of the loop cost one call to the spool."""
    await world.accept_many(100)
    await world.start()
    await turn_over()
    assert len(world.spool.settle_calls) <= 3
    assert sum(map(len, world.spool.settle_calls)) == 100


async def test_one_session_serves_a_trickle(world: World) -> None:
    """Messages that come one by one reuse the session that is open."""
    await world.start()
    for _ in range(10):
        await world.accept()
        await turn_over()
    assert world.peer().connects == 1
    assert world.status().sessions == 1


async def test_sessions_grow_with_the_backlog_up_to_the_limit(world: World) -> None:
    """A backlog opens as many sessions as are allowed, after the first one was greeted."""
    world.peer().hold = True
    await world.accept_many(100)
    await world.start()
    assert world.peer().connects == 4
    assert world.status().sessions == 4
    assert world.status().in_hand == 100


async def test_first_session_is_tried_alone(world: World) -> None:
    """A backlog knocks once, not twenty times, while nobody knows whether the peer is up."""
    gate = world.peer().gate = asyncio.Event()
    await world.accept_many(100)
    await world.start()
    assert world.peer().connecting == 1
    gate.set()
    await turn_over()
    assert len(world.peer().delivered) == 100


async def test_mail_stuck_behind_a_slow_peer_opens_another_session(world: World) -> None:
    """Two messages do not justify a second session at once, but do when the first hangs."""
    world.peer().hold = True
    await world.start()
    await world.accept_many(2)
    await turn_over()
    assert world.peer().connects == 1
    await world.timers.advance(5)
    assert world.peer().connects == 2
    assert len(world.peer().received) == 2


async def test_idle_sessions_are_closed_with_quit(world: World) -> None:
    """A session without work is ended in good order after the idle time."""
    await world.start()
    await world.accept()
    await turn_over()
    assert world.status().sessions == 1
    await world.timers.advance(3 * SETTINGS.idle_seconds)
    assert world.peer().open_sessions == []
    assert world.status().sessions == 0
    await world.accept()
    await turn_over()
    assert len(world.peer().delivered) == 2


async def test_no_more_sessions_when_the_peer_limits_them(world: World) -> None:
    """When more sessions are refused, those that are open carry on and the next hop stays up."""
    peer = world.peer()
    peer.hold = True
    await world.start()
    await world.accept()
    await turn_over()
    peer.connect_failure = refusing(421, "421 4.7.0 too many connections")
    await world.accept_many(40)
    await turn_over()
    assert world.state() == "up"
    tried = peer.connects
    peer.hold = False
    peer.sessions[0].answer(accept)
    await turn_over(100)
    assert len(peer.delivered) == 41
    assert peer.connects <= tried + 1


async def test_body_budget_bounds_memory() -> None:
    """Bodies beyond the budget are left on disk to be streamed."""
    settings = msgspec.structs.replace(SETTINGS, batch_bytes=2500, body_bytes=4000)
    world = World({"example.com": fixed(PRIMARY)}, settings)
    world.peer().hold = True
    for _ in range(8):
        await world.accept(body=b"x" * 1000)
    await world.start()
    await turn_over()
    session = world.peer().sessions[0]
    bodies: list[bool] = []
    while session.taken or len(bodies) < 8:
        for one in world.peer().open_sessions:
            if one.taken:
                bodies.append(one.taken[0].body is not None)
                one.answer()
        await turn_over()
    assert len(bodies) == 8
    assert sum(bodies) < 8
    assert await world.rows() == {}


async def test_lost_bell_is_made_good_within_a_minute(world: World) -> None:
    """Mail the relay never heard of is found when the table is compared."""
    await world.start()
    world.spool.set_accept_listener(None)
    queue_id = await world.accept()
    await turn_over()
    assert world.peer().delivered == []
    await world.timers.advance(61)
    assert world.peer().delivered == [queue_id]


async def test_retry_reads_the_queue_anew(world: World) -> None:
    """An operator's release is seen at once when the relay is told."""
    world.spool.set_accept_listener(None)
    queue_id = await world.accept()
    selection = Selection(queue_ids=(queue_id,))
    await world.spool.act(selection, OperatorAction.HOLD, now_us=world.timers.now_us)
    await world.start()
    await world.timers.advance(120)
    assert world.peer().delivered == []
    await world.spool.act(selection, OperatorAction.RELEASE, now_us=world.timers.now_us)
    world.relay.retry("example.com")
    await turn_over()
    assert world.peer().delivered == [queue_id]


async def test_hold_counts_for_what_is_ready_but_unsent(world: World) -> None:
    """After an operator's hold and `retry`, a message that only waited in memory is not sent."""
    peer = world.peer()
    peer.hold = True
    await world.start()
    first = await world.accept()
    second = await world.accept()
    await turn_over()
    selection = Selection(queue_ids=(second,))
    await world.spool.act(selection, OperatorAction.HOLD, now_us=world.timers.now_us)
    world.relay.retry()
    await turn_over()
    peer.hold = False
    peer.sessions[0].answer(accept)
    await world.timers.advance(61)
    assert peer.delivered == [first]


async def test_unknown_domain_is_left_alone_with_an_alert() -> None:
    """Mail of a domain that is no longer configured stays put, and a person is told."""
    world = World({"example.com": fixed(PRIMARY)})
    await world.accept("user@gone.example")
    await world.start()
    assert [c.kind for c in world.relay.alerts()] == ["not-configured"]
    assert "gone.example" in world.relay.alerts()[0].text
    assert len(await world.rows()) == 1
    world.relay.reload({"gone.example": fixed(OTHER)}, world.settings)
    await turn_over()
    assert len(world.peer(OTHER).delivered) == 1
    assert world.relay.alerts() == []


async def test_reload_moves_a_domain_to_its_new_next_hop(world: World) -> None:
    """After a reload, waiting mail goes the new way; what is under way is finished."""
    world.peer().hold = True
    await world.start()
    await world.accept_many(3)
    await turn_over()
    world.relay.reload({"example.com": fixed(OTHER)}, world.settings)
    await turn_over()
    assert len(world.peer(OTHER).delivered) == 2
    assert [s.next_hop for s in world.relay.status()] == [f"smtp://{OTHER}:25"]
    world.peer().sessions[0].answer()
    await turn_over()
    assert await world.rows() == {}
    assert world.peer().open_sessions == []


async def test_unreadable_queue_is_read_again(world: World) -> None:
    """A claim that fails is repeated, and nothing is lost."""
    world.spool.claim_trouble = StorageBroken("read failed")
    ids = await world.accept_many(3)
    await world.start()
    world.spool.claim_trouble = None
    await world.timers.advance(6)
    assert world.peer().delivered == ids


async def test_unreadable_table_is_compared_again_soon(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the spool cannot say which domains have mail, it is asked again within seconds."""

    async def broken() -> None:
        raise StorageBroken("read failed")

    monkeypatch.setattr(world.spool, "queued_domains", broken)
    ids = await world.accept_many(3)
    await world.start()
    monkeypatch.undo()
    await world.timers.advance(6)
    assert world.peer().delivered == ids


async def test_settling_that_fails_is_repeated_before_anything_is_sent_again(
    world: World,
) -> None:
    """While outcomes cannot be stored, they are kept, alerted, and nothing goes out twice."""
    await world.start()
    await world.accept()
    world.spool.settle_trouble = StorageBroken("disk I/O error")
    await turn_over()
    assert world.peer().received
    assert [c.kind for c in world.relay.alerts()] == ["settle"]
    await world.accept_many(5)
    world.relay.retry()
    await world.timers.advance(90)
    assert len(world.peer().received) == 1
    world.spool.settle_trouble = None
    await world.timers.advance(20)
    assert len(world.peer().received) == 6
    assert len(set(world.peer().delivered)) == 6
    assert world.relay.alerts() == []
    assert await world.rows() == {}


async def test_stop_leaves_everything_settled_or_queued(world: World) -> None:
    """Stopping finishes what is under way, says QUIT, and leaves the rest in the spool."""
    world.peer().hold = True
    await world.start()
    ids = await world.accept_many(10)
    await turn_over()
    sessions = world.peer().open_sessions
    under_way = [t.message.queue_id for s in sessions for t in s.taken]
    stopping = asyncio.create_task(world.relay.stop(30))
    await turn_over()
    for session in sessions:
        session.answer(accept)
    await stopping
    assert world.peer().delivered == under_way
    assert {queue_id for queue_id, _ in await world.rows()} == set(ids) - set(under_way)
    assert world.peer().open_sessions == []
    settled = [s for call in world.spool.settle_calls for s in call]
    assert all(s.outcome is Outcome.DELIVERED for s in settled)


async def test_stop_does_not_wait_for_a_dead_peer(world: World) -> None:
    """A connection that is still being opened does not hold up the end."""
    world.peer().gate = asyncio.Event()
    await world.start()
    queue_id = await world.accept()
    await turn_over()
    assert world.peer().connecting == 1
    await asyncio.wait_for(world.relay.stop(1000), 5)
    assert list(await world.rows()) == [(queue_id, 0)]
    assert world.timers.pending == 0


async def test_rows_deferred_by_a_clock_far_ahead_do_not_stick(world: World) -> None:
    """What was deferred while the clock stood a year ahead is tried within a minute."""
    queue_id = await world.accept()
    ahead_us = world.timers.now_us + 365 * 86_400_000_000
    await world.spool.settle([Settlement(queue_id, 0, Outcome.DEFERRED, ahead_us, "later", "")])
    await world.start()
    await world.timers.advance(61)
    assert world.peer().delivered == [queue_id]


async def test_sessions_that_wait_in_vain_do_not_use_up_the_limit(world: World) -> None:
    """Where every session is stuck, as many again may be opened, and no more."""
    limit = world.settings.concurrency
    world.peer().hold = True
    await world.accept_many(50 * limit)
    await world.start()
    await world.timers.advance(25)
    assert len(world.peer().open_sessions) == limit
    await world.timers.advance(300)
    assert len(world.peer().open_sessions) == 2 * limit
