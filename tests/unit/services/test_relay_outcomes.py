"""What the relay does with each reply: deliver, defer by schedule, hold, or stop and look."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fakes.connector import Reply, accept, answer_with
from fakes.relay_world import PRIMARY, World, fixed
from fakes.timers import turn_over
from posthouse import observe
from posthouse.domain.drain import State as HopState
from posthouse.ports_relay import RecipientResult, SessionEnd, Transaction
from posthouse.ports_spool import State
from posthouse.services.relay_settings import RelaySettings

RETRY_US = (60_000_000, 300_000_000)
SETTINGS = RelaySettings(own_names=frozenset({"mx2.example.net"}), retry_us=RETRY_US, concurrency=2)


@pytest.fixture
def world() -> World:
    return World({"example.com": fixed(PRIMARY)}, SETTINGS)


def by_recipient(replies: dict[str, tuple[int, str, str]]) -> Reply:
    def reply(transaction: Transaction) -> list[RecipientResult]:
        return [
            RecipientResult(r.seq, *replies.get(r.address, (250, "250 2.0.0 Ok", "dot")))
            for r in transaction.message.recipients
        ]

    return reply


async def test_4xx_is_retried_by_the_schedule(world: World) -> None:
    """Each refusal of a recipient waits for the next delay; the last delay repeats."""
    world.peer().reply = answer_with(451, "4.3.0 try later", "rcpt")
    await world.start()
    queue_id = await world.accept()
    await turn_over()
    for tries, delay_us in enumerate((*RETRY_US, RETRY_US[-1]), start=1):
        row = await world.row(queue_id)
        assert len(world.peer().received) == tries
        assert row.state is State.QUEUED
        assert row.attempts == tries
        assert row.due_us - world.timers.now_us == pytest.approx(delay_us, abs=10_000_000)
        assert row.reply == "451 4.3.0 try later"
        await world.timers.advance(delay_us / 1e6 - 5)
        assert len(world.peer().received) == tries
        await world.timers.advance(7)
    world.peer().reply = accept
    await world.timers.advance(310)
    assert world.peer().delivered == [queue_id]


async def test_deferred_mail_does_not_wait_for_the_minute(world: World) -> None:
    """A retry comes when it is due, also when other mail keeps the next hop busy."""
    await world.start()
    world.peer().reply = answer_with(450, "4.2.1 later", "rcpt")
    queue_id = await world.accept()
    await turn_over()
    world.peer().reply = accept
    for _ in range(60):
        await world.accept()
        await world.timers.advance(1.05)
    assert queue_id in world.peer().delivered


@pytest.mark.parametrize("stage", ["rcpt", "data", "dot", "local"])
async def test_5xx_of_a_recipient_is_held_with_the_reply(world: World, stage: str) -> None:
    """A final refusal holds that recipient; the others are delivered; nobody is bounced."""
    world.peer().reply = by_recipient({"b@example.com": (550, "550 5.1.1 no such user", stage)})
    await world.start()
    queue_id = await world.accept("a@example.com", "b@example.com", "c@example.com")
    await turn_over()
    rows = await world.rows()
    assert list(rows) == [(queue_id, 1)]
    row = rows[queue_id, 1]
    assert row.state is State.HELD
    assert row.reply == "550 5.1.1 no such user"
    assert PRIMARY in row.reason
    assert world.state() is HopState.UP


async def test_5xx_at_mail_about_us_blocks_the_next_hop(world: World) -> None:
    """A refusal of ourselves defers the message, stops the queue and alerts; nothing is held."""
    world.peer().reply = answer_with(550, "5.7.1 your host is banned", "mail")
    world.peer().probe_failure = None
    await world.start()
    ids = await world.accept_many(50)
    await turn_over()
    assert world.state() is HopState.BLOCKED
    assert "banned" in world.status().why
    assert [c.kind for c in world.relay.alerts()] == ["next-hop-blocked"]
    assert len(world.peer().received) <= 2
    rows = await world.rows()
    assert len(rows) == len(ids)
    assert all(row.state is State.QUEUED for row in rows.values())


async def test_a_bad_sender_does_not_stop_the_queue_for_long(world: World) -> None:
    """One message that is refused at MAIL with an unclear reply costs a second, not the drain."""
    bad: list[int] = []

    def reply(transaction: Transaction) -> Sequence[RecipientResult]:
        if transaction.message.queue_id in bad:
            return answer_with(554, "5.7.1 sender rejected", "mail")(transaction)
        return accept(transaction)

    world.peer().reply = reply
    world.spool.set_accept_listener(None)
    ids = await world.accept_many(30)
    bad.append(ids[0])
    await world.start()
    await world.timers.advance(1.5)
    assert world.state() is HopState.UP
    assert set(world.peer().delivered) == set(ids[1:])
    assert (await world.row(ids[0])).attempts == 1


async def test_refusals_at_mail_in_a_row_slow_the_probes_down(world: World) -> None:
    """A peer that refuses every MAIL but lets the probe pass is not hammered."""
    world.peer().reply = answer_with(554, "5.7.1 no", "mail")
    await world.accept_many(100)
    await world.start()
    await world.timers.advance(120)
    assert len(world.peer().received) <= 14


@pytest.mark.parametrize(
    ("code", "text"),
    [(552, "5.3.4 too big"), (553, "5.1.8 no such sender domain"), (555, "5.5.4 BODY unknown")],
)
async def test_5xx_at_mail_about_the_message_is_held(world: World, code: int, text: str) -> None:
    """A refusal of this sender, size or syntax holds the message and leaves the next hop up."""
    world.peer().reply = answer_with(code, text, "mail")
    await world.start()
    queue_id = await world.accept()
    await turn_over()
    assert (await world.row(queue_id)).state is State.HELD
    assert world.state() is HopState.UP


async def test_mail_deferred_again_and_again_marks_the_next_hop_down(world: World) -> None:
    """A primary whose disk is full does not get a try for each of a thousand messages."""
    world.peer().reply = answer_with(452, "4.3.1 insufficient storage", "mail")
    world.peer().probe_failure = None
    await world.accept_many(1000)
    await world.start()
    assert world.state() is HopState.DOWN
    assert len(world.peer().received) <= 6
    rows = await world.rows()
    assert sum(row.attempts for row in rows.values()) <= 6


async def test_session_lost_before_the_dot_is_tried_again_at_once(world: World) -> None:
    """A message that got no outcome goes out over the next session without waiting."""
    world.peer().hold = True
    await world.start()
    queue_id = await world.accept()
    await turn_over()
    world.peer().hold = False
    world.peer().sessions[0].lose()
    await turn_over()
    assert world.peer().delivered == [queue_id]
    assert world.peer().connects == 2


async def test_message_that_always_kills_the_session_waits(world: World) -> None:
    """The second loss with the same message defers it; others are delivered."""
    world.peer().hold = True
    await world.start()
    killer = await world.accept()
    await turn_over()
    other = await world.accept()
    for _ in range(2):
        session = world.peer().open_sessions[0]
        assert session.taken[0].message.queue_id == killer
        session.lose()
        await turn_over()
    world.peer().open_sessions[0].answer(accept)
    await turn_over()
    assert world.peer().delivered == [other]
    row = await world.row(killer)
    assert row.attempts == 1
    assert "lost connection, again with this message" in row.reason


async def test_lost_after_the_dot_is_deferred_and_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the reply to the final dot is missing, the log says that it may arrive twice."""
    said: list[str] = []
    monkeypatch.setattr(observe, "recipient_settled", lambda *a, **k: said.append(k["text"]))
    world.peer().hold = True
    await world.start()
    queue_id = await world.accept()
    await turn_over()
    world.peer().sessions[0].lose(after_dot=True)
    await turn_over()
    row = await world.row(queue_id)
    assert row.attempts == 1
    assert row.due_us > world.timers.now_us
    assert said == ["lost connection after the final dot; it may arrive twice"]
    world.peer().hold = False
    await world.timers.advance(62)
    assert world.peer().delivered == [queue_id]


async def test_mail_refused_without_results_blocks_too(world: World) -> None:
    """A session that ends because MAIL was refused blocks the next hop, its message waits."""
    world.peer().hold = True
    await world.start()
    queue_id = await world.accept()
    await turn_over()
    end = SessionEnd(
        failure="refused", stage="mail", reply_code=550, reply_text="550 5.7.1 blocked"
    )
    world.peer().sessions[0].lose(end=end)
    await turn_over()
    assert world.state() is HopState.BLOCKED
    assert (await world.row(queue_id)).state is State.QUEUED


async def test_log_lines_name_relay_status_and_reply(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each outcome is one line in Postfix's terms; a removed message is told once."""
    lines: list[tuple[str, str, str, str, str]] = []
    removed: list[str] = []
    monkeypatch.setattr(
        observe,
        "recipient_settled",
        lambda queue_id, recipient, **k: lines.append(
            (recipient, k["relay"], k["dsn"], k["status"], k["text"][:4])
        ),
    )
    monkeypatch.setattr(observe, "message_removed", removed.append)
    await world.start()
    await world.accept("a@example.com", "b@example.com")
    await turn_over()
    world.peer().reply = by_recipient({"c@example.com": (450, "450 busy", "rcpt")})
    await world.accept("c@example.com", "d@example.com")
    await turn_over()
    relay = f"{PRIMARY}[{PRIMARY}]:25"
    assert lines == [
        ("a@example.com", relay, "2.0.0", "sent", "250 "),
        ("b@example.com", relay, "2.0.0", "sent", "250 "),
        ("c@example.com", relay, "4.0.0", "deferred", "450 "),
        ("d@example.com", relay, "2.0.0", "sent", "250 "),
    ]
    assert len(removed) == 1


async def test_results_that_miss_a_recipient_defer_it(world: World) -> None:
    """A recipient without a reply is neither delivered nor forgotten."""
    world.peer().reply = lambda transaction: accept(transaction)[:1]
    await world.start()
    queue_id = await world.accept("a@example.com", "b@example.com")
    await turn_over()
    row = await world.row(queue_id, 1)
    assert row.attempts == 1
    assert row.state is State.QUEUED


async def test_a_damaged_message_is_held_with_an_alert(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message our own disk spoiled is held and told of, not sent again and again."""
    alerts: list[str] = []
    monkeypatch.setattr(observe, "alert", lambda kind, text, **facts: alerts.append(kind))
    world.peer().reply = answer_with(554, "damaged: checksum does not match", "damaged")
    await world.start()
    queue_id = await world.accept()
    await turn_over()
    row = await world.row(queue_id)
    assert row.state is State.HELD
    assert "damaged" in row.reason
    assert alerts == ["damaged"]
    assert len(world.peer().received) == 1


@pytest.mark.parametrize("text", ["550 5.7.1 SPF fail", "451 sender verify failed"])
@pytest.mark.parametrize("senders", [1, 40])
async def test_refused_senders_do_not_stop_others(world: World, text: str, senders: int) -> None:
    """Forty refused messages before a hundred good ones cost seconds, whoever sent them."""

    def reply(transaction: Transaction) -> Sequence[RecipientResult]:
        if transaction.message.queue_id in bad:
            return answer_with(int(text[:3]), text[4:], "mail")(transaction)
        return accept(transaction)

    world.peer().reply = reply
    bad = [await world.accept(sender=f"bad{i % senders}@x.example") for i in range(40)]
    good = await world.accept_many(100)
    await world.start()
    await world.timers.advance(10)
    assert set(world.peer().delivered) == set(good)
    assert {queue_id for queue_id, _ in await world.rows()} == set(bad)


@pytest.mark.parametrize("stage", ["data", "dot"])
async def test_bodies_refused_for_want_of_room_mark_the_next_hop_down(
    world: World, stage: str
) -> None:
    """A full disk that shows after DATA only does not cost every body of the queue."""
    world.peer().reply = answer_with(452, "4.3.1 insufficient storage", stage)
    await world.accept_many(200)
    await world.start()
    await turn_over()
    assert world.state() is HopState.DOWN
    assert len(world.peer().received) <= 7


async def test_too_many_recipients_go_on_at_once(world: World) -> None:
    """Recipients beyond the peer's limit of one transaction are offered again without delay."""

    def reply(transaction: Transaction) -> Sequence[RecipientResult]:
        return [
            RecipientResult(r.seq, 250, "2.0.0 ok", "dot")
            if at < 4
            else RecipientResult(r.seq, 452, "4.5.3 too many recipients", "rcpt")
            for at, r in enumerate(transaction.message.recipients)
        ]

    world.peer().reply = reply
    await world.start()
    await world.accept(*(f"u{i}@example.com" for i in range(10)))
    await turn_over()
    assert [len(t.message.recipients) for t in world.peer().received] == [10, 6, 2]
    assert await world.rows() == {}
