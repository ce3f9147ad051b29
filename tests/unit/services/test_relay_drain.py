"""Coming home after an outage: one canary, a slow start, and a guard against a broken primary."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

import pytest

from fakes.connector import FakeSession, accept, answer_with, refusing, unreachable
from fakes.relay_world import PRIMARY, World, fixed
from fakes.timers import turn_over
from posthouse.domain.drain import State
from posthouse.ports_relay import RecipientResult, Transaction
from posthouse.ports_spool import QueuedRecipient
from posthouse.ports_spool import State as RowState
from posthouse.services.relay_settings import RelaySettings

SETTINGS = RelaySettings(own_names=frozenset({"mx2.example.net"}), concurrency=8)
KEY = f"smtp://{PRIMARY}:25"
UNKNOWN = answer_with(550, "5.1.1 User unknown in relay recipient table", "rcpt")


def make_world(settings: RelaySettings = SETTINGS, beside: World | None = None) -> World:
    return World({"example.com": fixed(PRIMARY)}, settings, beside=beside)


async def after_an_outage(count: int, settings: RelaySettings = SETTINGS) -> World:
    """A world whose primary is about to come back to `count` waiting messages."""
    world = make_world(settings)
    world.peer().down()
    await world.accept_many(count)
    await world.start()
    assert world.state() is State.DOWN
    world.peer().up()
    return world


def states_of(rows: Mapping[tuple[int, int], QueuedRecipient]) -> dict[RowState, int]:
    return dict(Counter(row.state for row in rows.values()))


def answer_all(world: World) -> None:
    """250 for the oldest message in every session that has one."""
    for session in world.peer().open_sessions:
        if session.taken:
            session.answer(accept)


async def test_one_canary_goes_first() -> None:
    """After the probe one message is under way and no other, until it is delivered."""
    world = await after_an_outage(300)
    world.peer().hold = True
    world.peer().depth = 10
    await world.timers.advance(34)
    assert world.state() is State.CANARY
    assert len(world.peer().received) == 1
    assert len(world.peer().open_sessions) == 1
    world.peer().open_sessions[0].answer(accept)
    await turn_over()
    assert world.state() is State.DRAINING
    assert len(world.peer().received) > 1


async def test_slow_start_grows_to_the_limit() -> None:
    """Sessions are added as deliveries succeed, and the drain ends in state up."""
    world = await after_an_outage(300)
    world.peer().hold = True
    seen = []
    await world.timers.advance(34)
    while world.state() is not State.UP:
        seen.append(len(world.peer().open_sessions))
        answer_all(world)
        await turn_over()
    assert seen[0] == 1
    assert max(seen) == 8
    assert seen.index(8) > 6
    assert len(world.peer().delivered) == 300
    assert len(set(world.peer().delivered)) == 300
    assert await world.rows() == {}


async def test_a_primary_that_refuses_everything_stops_the_drain() -> None:
    """Five refusals for good: the drain stops, they are held, the rest is not touched."""
    world = await after_an_outage(300)
    world.peer().reply = UNKNOWN
    await world.timers.advance(34)
    assert world.state() is State.SURGE_STOPPED
    rows = await world.rows()
    assert states_of(rows) == {RowState.HELD: 5, RowState.QUEUED: 295}
    assert all(
        row.reason.startswith("unknown: ") and row.reply.startswith("550 5.1.1")
        for row in rows.values()
        if row.state is RowState.HELD
    )
    (alert,) = world.relay.alerts()
    assert alert.kind == "drain-stopped"
    assert "User unknown" in alert.text
    world.peer().reply = accept
    probes = world.peer().probes
    await world.timers.advance(600)
    assert world.state() is State.SURGE_STOPPED  # a probe that passes does not lead out
    assert world.peer().probes > probes + 15
    world.board.resume([KEY], guarded=True)
    await turn_over(200)
    assert world.state() is State.UP
    assert len(world.peer().delivered) == 295
    assert world.relay.alerts() == []


async def test_a_primary_that_changes_its_mind_in_the_middle() -> None:
    """The guard looks at the whole drain: what went well before does not hide a surge."""
    world = await after_an_outage(300)
    taken = 0

    def reply(transaction: Transaction) -> list[RecipientResult]:
        nonlocal taken
        taken += 1
        return list((accept if taken <= 100 else UNKNOWN)(transaction))

    world.peer().reply = reply
    await world.timers.advance(34)
    assert world.state() is State.SURGE_STOPPED
    rows = await world.rows()
    assert len(world.peer().delivered) == 100
    held = states_of(rows)[RowState.HELD]
    assert 5 < held <= 11 + SETTINGS.concurrency  # 11 of the last 50 are more than a fifth


async def test_some_bad_mail_stops_nothing() -> None:
    """One in ten refused is mail of strangers, not a broken primary."""
    world = await after_an_outage(300)
    taken = 0

    def reply(transaction: Transaction) -> list[RecipientResult]:
        nonlocal taken
        taken += 1
        return list((UNKNOWN if taken % 10 == 9 else accept)(transaction))

    world.peer().reply = reply
    await world.timers.advance(34)
    assert world.state() is State.UP
    assert states_of(await world.rows()) == {RowState.HELD: 30}


async def test_refusals_while_up_stop_nothing() -> None:
    """The guard is for drains: fresh spam that is refused is held, and other mail flows."""
    world = make_world()
    await world.start()
    world.peer().reply = UNKNOWN
    await world.accept_many(50)
    await turn_over()
    assert world.state() is State.UP
    assert states_of(await world.rows()) == {RowState.HELD: 50}


async def test_resumed_without_guard() -> None:
    """An operator who knows what is in the queue lets everything go; held mail stays held."""
    world = await after_an_outage(100)
    world.peer().reply = UNKNOWN
    await world.timers.advance(34)
    assert world.state() is State.SURGE_STOPPED
    world.board.resume([KEY], guarded=False)
    await turn_over(400)
    assert world.state() is State.UP
    assert states_of(await world.rows()) == {RowState.HELD: 100}
    view = world.board.state_of(KEY)
    assert view is not None
    assert view.guarded


async def test_only_the_canary_is_refused() -> None:
    """One refused message is no surge: the next one is the canary, and the drain goes on."""
    world = await after_an_outage(20)
    replies = iter([UNKNOWN])
    world.peer().reply = lambda transaction: next(replies, accept)(transaction)
    await world.timers.advance(34)
    assert world.state() is State.UP
    assert len(world.peer().delivered) == 19
    assert states_of(await world.rows()) == {RowState.HELD: 1}


async def test_addresses_that_exist_are_refused_before_any_mail_goes() -> None:
    """A probe asks for addresses of the queue: all refused means a broken primary, nothing is sent."""
    world = make_world()
    world.peer().down()
    for name in ("a", "b", "c", "d"):
        await world.accept(f"{name}@example.com")
    await world.start()
    world.peer().up()
    world.peer().probe_rcpt = (550, "550 5.1.1 User unknown")
    await world.timers.advance(120)
    assert world.state() is State.BLOCKED
    assert "refuses all of 4 addresses" in world.status().why
    assert world.peer().probed_for[-1] == (
        "a@example.com",
        "b@example.com",
        "c@example.com",
        "postmaster@example.com",
    )
    assert world.peer().received == []
    assert states_of(await world.rows()) == {RowState.QUEUED: 4}
    world.peer().probe_rcpt = (250, "250 2.1.5 Ok")
    await world.timers.advance(34)
    assert world.state() is State.UP
    assert len(world.peer().delivered) == 4


async def test_the_operator_overrules_a_probe_for_recipients() -> None:
    """Addresses that are gone for good do not keep a queue for ever: resume sends a canary."""
    world = await after_an_outage(3)
    world.peer().probe_rcpt = (550, "550 5.1.1 User unknown")
    await world.timers.advance(34)
    assert world.state() is State.BLOCKED
    world.board.resume([KEY], guarded=True)
    await turn_over()
    assert len(world.peer().delivered) == 3


async def test_a_probe_that_is_greylisted_passes() -> None:
    """4xx at RCPT of a probe says nothing against the next hop."""
    world = await after_an_outage(3)
    world.peer().probe_rcpt = (450, "450 4.7.1 Greylisted")
    await world.timers.advance(34)
    assert world.state() is State.UP
    assert len(world.peer().delivered) == 3


async def test_greylisting_is_no_failure() -> None:
    """Everybody is put off once; the next hop is drained at one session and nobody is held."""
    world = await after_an_outage(50)
    seen: set[int] = set()

    def greylist(transaction: Transaction) -> list[RecipientResult]:
        first = transaction.message.queue_id not in seen
        seen.add(transaction.message.queue_id)
        put_off = answer_with(450, "4.2.0 Greylisted, see http://postgrey.example/", "rcpt")
        return list((put_off if first else accept)(transaction))

    world.peer().reply = greylist
    await world.timers.advance(34)
    assert world.state() is State.UP  # nothing is due any more
    assert max(len(world.peer().open_sessions), 1) == 1
    assert states_of(await world.rows()) == {RowState.QUEUED: 50}
    await world.timers.advance(62)
    assert len(world.peer().delivered) == 50


async def test_a_rate_limit_slows_down_and_defers_nobody() -> None:
    """421 and 4.7.0 pause the next hop; the message goes afterwards, with no attempt spent."""
    world = make_world()
    await world.start()
    limited = answer_with(450, "4.7.1 Error: too much mail from 192.0.2.9", "mail")
    replies = iter([accept, limited])
    world.peer().reply = lambda transaction: next(replies, accept)(transaction)
    world.peer().hold = True
    ids = await world.accept_many(3)
    await turn_over()
    for _ in range(2):
        world.peer().open_sessions[0].answer()
        await turn_over()
    assert world.state() is State.UP
    assert all(row.attempts == 0 for row in (await world.rows()).values())
    received = len(world.peer().received)
    await world.timers.advance(0.9)
    assert len(world.peer().received) == received
    world.peer().hold = False
    await world.timers.advance(3)
    assert sorted(world.peer().delivered) == ids


async def test_turned_away_for_too_many_connections() -> None:
    """421 at connect in the words of a rate limit pauses; only patience at its end makes it down."""
    world = make_world()
    world.peer().connect_failure = refusing(421, "421 4.7.0 Error: too many connections")
    await world.start()
    await world.accept()
    await turn_over()
    assert world.state() is State.UP
    await world.timers.advance(4)
    assert 2 <= world.peer().connects <= 4
    world.peer().connect_failure = None
    await world.timers.advance(10)
    assert len(world.peer().delivered) == 1
    world.peer().connect_failure = refusing(421, "421 4.7.0 Error: too many connections")
    world.peer().probe_failure = world.peer().connect_failure
    await world.timers.advance(10)  # the session is gone
    await world.accept()
    await world.timers.advance(130)
    assert world.state() is State.DOWN
    assert "nothing gets through" in world.status().why or "too many" in world.status().why


async def test_a_rate_is_kept() -> None:
    """drain_rate bounds the drain, and only that."""
    slow = RelaySettings(own_names=SETTINGS.own_names, concurrency=8, drain_rate=10)
    world = await after_an_outage(100, slow)
    await world.timers.advance(34)
    early = len(world.peer().delivered)
    await world.timers.advance(3)
    assert 25 <= len(world.peer().delivered) - early <= 35
    await world.timers.advance(10)
    assert world.state() is State.UP
    await world.accept_many(100)
    await turn_over()
    assert len(world.peer().delivered) == 200


async def test_fresh_mail_does_not_wait_for_the_backlog() -> None:
    """What arrives while weeks of mail are brought home goes every fourth time."""
    world = await after_an_outage(2000)
    world.peer().hold = True
    await world.timers.advance(34)
    world.peer().open_sessions[0].answer()
    await turn_over()
    fresh = set(await world.accept_many(10))
    answered = 0
    while not fresh <= set(world.peer().delivered):
        answered += len(world.peer().open_sessions)
        answer_all(world)
        await turn_over(5)
    assert answered < 200
    world.peer().hold = False
    answer_all(world)
    await turn_over(3000)
    assert len(world.peer().delivered) == len(set(world.peer().delivered)) == 2010


async def test_large_mail_stands_before_nobody() -> None:
    """Small messages pass large ones; two sessions carry those meanwhile, and all get home."""
    world = make_world()
    world.peer().down()
    large = {await world.accept(body=b"x" * 1_100_000) for _ in range(30)}
    small = await world.accept_many(400)
    await world.start()
    world.peer().up()
    world.peer().hold = True

    def carried(session: FakeSession) -> bool:
        return any(t.message.queue_id in large for t in session.taken)

    await world.timers.advance(34)
    under_way = 0
    while not set(small) <= set(world.peer().delivered):
        busy = [session for session in world.peer().open_sessions if carried(session)]
        small_left = len(set(small) - set(world.peer().delivered))
        if small_left > 20:
            under_way = max(under_way, len(busy))
        for session in world.peer().open_sessions:
            if session not in busy and session.taken:
                session.answer(accept)
        await turn_over(5)
    assert under_way == 2
    world.peer().hold = False
    answer_all(world)
    await turn_over(500)
    assert set(world.peer().delivered) == large | set(small)


# --------------------------------------------------------------------------- several workers


async def two_workers(count: int) -> tuple[World, World]:
    first = make_world()
    second = make_world(beside=first)
    first.peer().down()
    await first.accept_many(count)
    await second.accept_many(count)
    await first.start()
    await second.start()
    return first, second


async def test_one_canary_for_all_workers() -> None:
    """Two workers with mail: one of them sends one message; then both drain."""
    first, second = await two_workers(20)
    first.peer().up()
    first.peer().hold = True
    await first.timers.advance(34)
    assert first.state() is second.state() is State.CANARY
    assert len(first.peer().received) == 1
    first.peer().hold = False
    first.peer().open_sessions[0].answer()
    await turn_over(200)
    assert first.state() is second.state() is State.UP
    assert len(first.peer().delivered) == 40


async def test_the_canary_goes_to_who_has_mail() -> None:
    """A worker without mail passes the canary on."""
    first, second = await two_workers(0)
    await second.accept_many(5)
    first.peer().up()
    await first.timers.advance(34)
    await turn_over(100)
    assert first.state() is second.state() is State.UP
    assert len(first.peer().delivered) == 5


async def test_a_worker_that_dies_with_the_canary() -> None:
    """What a worker was trusted with goes to another when it is gone."""
    first, second = await two_workers(5)
    first.peer().up()
    first.peer().hold = True
    await first.timers.advance(34)
    (one,) = first.peer().received
    first.peer().hold = False
    gone = first if one.message.queue_id in {key for key, _ in await first.rows()} else second
    for session in first.peer().open_sessions:
        session.lose()
    if gone is second:
        await second.relay.stop(1)
        await turn_over(100)
        assert len(first.peer().delivered) == 5
    else:  # the board lives with the first one in this world: only its follower leaves
        for follower in list(first.relay._routes.values()):
            follower.retire()
        await turn_over(100)
        assert len(first.peer().delivered) == 5


async def test_a_surge_stops_all_workers() -> None:
    """Refusals are counted over the node: both stop, few are held."""
    first, second = await two_workers(100)
    first.peer().up()
    taken = 0

    def reply(transaction: Transaction) -> list[RecipientResult]:
        nonlocal taken
        taken += 1
        return list((accept if taken <= 20 else UNKNOWN)(transaction))

    first.peer().reply = reply
    await first.timers.advance(34)
    assert first.state() is second.state() is State.SURGE_STOPPED
    held = 0
    for world in (first, second):
        held += states_of(await world.rows()).get(RowState.HELD, 0)
    assert 5 <= held <= 20


async def test_one_that_cannot_connect_while_others_deliver_rests() -> None:
    """A limit of connections that one worker meets is no failure of the next hop."""
    first = make_world()
    second = make_world(beside=first)
    await first.start()
    await second.start()
    first.peer().hold = True
    await first.accept_many(2)
    await turn_over()
    first.peer().open_sessions[0].answer(accept)
    await first.timers.advance(2.1)  # its pulse tells the board
    first.peer().connect_failure = unreachable()
    await second.accept()
    await turn_over()
    assert first.state() is second.state() is State.UP
    assert len(await second.rows()) == 1
    first.peer().connect_failure = None
    first.peer().hold = False
    await first.timers.advance(34)
    assert await second.rows() == {}


@pytest.mark.parametrize("state", ["paused", "resumed"])
async def test_operator_suspends(state: str) -> None:
    """Suspended: nothing flows and nothing is probed until the operator resumes."""
    world = make_world()
    await world.start()
    world.board.pause([KEY], "operator: works on the primary")
    await world.accept_many(3)
    await world.timers.advance(300)
    assert world.state() is State.SUSPENDED
    assert world.peer().connects == world.peer().probes == 0
    if state == "resumed":
        world.board.resume([KEY], guarded=True)
        await turn_over(100)
        assert world.state() is State.UP
        assert len(world.peer().delivered) == 3


async def test_a_silent_canary_does_not_keep_everybody_waiting() -> None:
    """When no reply comes for a probe interval another message may prove the next hop."""
    world = await after_an_outage(10)
    world.peer().hold = True
    await world.timers.advance(34)
    assert len(world.peer().received) == 1
    await world.timers.advance(40)
    assert len(world.peer().received) == 2
    world.peer().hold = False
    world.peer().open_sessions[-1].answer(accept)
    await world.timers.advance(4)
    assert len(world.peer().delivered) == 9
    world.peer().open_sessions[0].answer(accept)
    await asyncio.sleep(0)
    assert len(world.peer().delivered) == 10
