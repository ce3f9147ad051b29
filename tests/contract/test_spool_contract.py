"""What every spool promises (`ports_spool.Spool`): the embedded engine and the fake in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fakes.memory_spool import MemorySpool
from posthouse.errors import BodyDamaged
from posthouse.mail.envelope import Client, Envelope, Recipient
from posthouse.mail.queueid import shard_of, time_us_of
from posthouse.ports_spool import (
    Claim,
    Cursor,
    OperatorAction,
    Outcome,
    QueuedMessage,
    Selection,
    Settlement,
    Spool,
    State,
)
from posthouse.storage.segments import Layout
from posthouse.storage.spool import EmbeddedSpool, SpoolSettings

T0 = 1_700_000_000_000_000
SHARD = 7
SPILL = 4096
CLIENT = Client(
    address="192.0.2.1",
    port=4711,
    name="mail.sender.example",
    helo="helo.sender.example",
    protocol="ESMTPS",
    tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
)


class Clock:
    def __init__(self) -> None:
        self.now_us = T0

    def __call__(self) -> int:
        self.now_us += 1
        return self.now_us


@dataclass
class House:
    """A spool under test, its clock, and a way to harm a stored body."""

    spool: Spool
    clock: Clock
    directory: Path | None

    async def accept(
        self,
        *addresses: str,
        body: bytes = b"Subject: x\r\n\r\nhello\r\n",
        sender: str = "a@sender.example",
    ) -> int:
        incoming = self.spool.begin()
        for at in range(0, len(body), 1000):
            if not incoming.write(body[at : at + 1000]):
                await incoming.drain()
        envelope = Envelope(sender=sender, recipients=tuple(map(recipient, addresses)))
        await self.spool.commit(incoming, envelope=envelope, client=CLIENT)
        return incoming.queue_id

    async def claim(
        self,
        domain: str = "example.com",
        *,
        after: Cursor | None = None,
        now_us: int | None = None,
        max_messages: int = 100,
        max_bytes: int = 1 << 20,
    ) -> Claim:
        return await self.spool.claim(
            domain,
            after=after,
            now_us=self.clock.now_us if now_us is None else now_us,
            max_messages=max_messages,
            max_bytes=max_bytes,
        )

    async def settle(
        self, queue_id: int, seq: int, outcome: Outcome, *, due_us: int = 0, reply: str = ""
    ) -> None:
        reason = "" if outcome is Outcome.DELIVERED else "because"
        move = Settlement(queue_id, seq, outcome, due_us=due_us, reason=reason, reply=reply)
        await self.spool.settle([move])

    async def everything(self) -> list[QueuedMessage]:
        return list(await self.spool.list_messages(Selection(), after=None, limit=1000))

    async def show(self, queue_id: int) -> QueuedMessage:
        selection = Selection(queue_ids=(queue_id,))
        [message] = await self.spool.list_messages(selection, after=None, limit=10)
        return message

    async def read(self, queue_id: int, limit: int = 1000) -> bytes:
        body = await self.spool.open_body(queue_id)
        pieces = []
        while piece := await body.read(limit):
            assert len(piece) <= limit
            pieces.append(piece)
        body.close()
        return b"".join(pieces)

    def damage(self, queue_id: int, body: bytes) -> None:
        """Flip a bit of a stored body."""
        if isinstance(self.spool, MemorySpool):
            self.spool.damage_body(queue_id)
            return
        assert self.directory is not None
        layout = Layout(self.directory)
        paths = [*layout.segments.iterdir(), *layout.private.iterdir()]
        for path in paths:
            data = path.read_bytes()
            at = data.find(body)
            if at >= 0:
                path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
                return
        raise AssertionError("body not found on disk")


def recipient(address: str) -> Recipient:
    domain = address.rpartition("@")[2]
    return Recipient(address=address, domain=domain, notify="NEVER", orcpt=f"rfc822;{address}")


@pytest.fixture(params=["embedded", "memory"])
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    clock = Clock()
    spool: Spool
    if request.param == "memory":
        spool = MemorySpool(SHARD, clock)
        yield House(spool, clock, None)
    else:
        settings = SpoolSettings(spill_bytes=SPILL, min_free_bytes=0)
        spool = await EmbeddedSpool.open(
            tmp_path / "shard", shard=SHARD, settings=settings, clock_us=clock
        )
        yield House(spool, clock, tmp_path / "shard")
    await spool.close()


# --------------------------------------------------------------------------- intake


async def test_a_committed_message_is_claimed_as_it_came(house: House) -> None:
    """Envelope, client, DSN parameters and octets come back unchanged."""
    incoming = house.spool.begin()
    incoming.write(b"one ")
    incoming.write(b"two")
    assert incoming.size_bytes == 7
    envelope = Envelope(
        sender="sénder@example.org",
        recipients=(recipient("Ann@example.com"), recipient("bob@example.com")),
        body="8BITMIME",
        smtputf8=True,
        ret="HDRS",
        envid="QQ314159",
    )
    await house.spool.commit(incoming, envelope=envelope, client=CLIENT)
    claim = await house.claim()
    [message] = claim.messages
    assert message.queue_id == incoming.queue_id
    assert message.received_us == time_us_of(incoming.queue_id)
    assert (message.body, message.size_bytes) == (b"one two", 7)
    assert (message.envelope_sender, message.body_type) == ("sénder@example.org", "8BITMIME")
    assert (message.smtputf8, message.ret, message.envid) == (True, "HDRS", "QQ314159")
    assert message.client == CLIENT
    assert [(r.seq, r.address, r.domain) for r in message.recipients] == [
        (0, "Ann@example.com", "example.com"),
        (1, "bob@example.com", "example.com"),
    ]
    assert [(r.notify, r.orcpt, r.attempts, r.state) for r in message.recipients] == [
        ("NEVER", "rfc822;Ann@example.com", 0, State.QUEUED),
        ("NEVER", "rfc822;bob@example.com", 0, State.QUEUED),
    ]


async def test_the_null_reverse_path_and_an_empty_body_are_kept(house: House) -> None:
    """A message may have no sender and no octets."""
    queue_id = await house.accept("a@example.com", body=b"", sender="")
    [message] = (await house.claim()).messages
    assert (message.envelope_sender, message.body) == ("", b"")
    assert await house.read(queue_id) == b""


async def test_queue_ids_ascend_when_the_clock_steps_back(house: House) -> None:
    """Ids are unique and ascending within a shard, and name it."""
    first = house.spool.begin().queue_id
    house.clock.now_us -= 3_600_000_000
    second = house.spool.begin().queue_id
    assert second > first
    assert shard_of(first) == shard_of(second) == SHARD


async def test_what_was_accepted_after_the_clock_stepped_back_is_due(house: House) -> None:
    """New mail need not wait until the clock has caught up."""
    first = await house.accept("a@example.com")
    after = (await house.claim()).cursor
    house.clock.now_us -= 3_600_000_000
    second = await house.accept("b@example.com")
    claim = await house.claim(after=after)
    assert [m.queue_id for m in claim.messages] == [second]
    assert [m.queue_id for m in (await house.claim()).messages] == [first, second]


async def test_a_discarded_message_leaves_nothing(house: House) -> None:
    """discard is harmless at any time, also twice, and no row remains."""
    for body in (b"small", bytes(3 * SPILL)):
        incoming = house.spool.begin()
        incoming.write(body)
        incoming.discard()
        incoming.discard()
    assert (await house.claim()).messages == ()
    assert await house.everything() == []


async def test_discard_after_commit_changes_nothing(house: House) -> None:
    """A caller may discard in any case on its way out."""
    incoming = house.spool.begin()
    incoming.write(b"kept")
    waiting = house.spool.commit(
        incoming,
        envelope=Envelope(sender="", recipients=(recipient("a@example.com"),)),
        client=CLIENT,
    )
    incoming.discard()
    await waiting
    incoming.discard()
    assert await house.read(incoming.queue_id) == b"kept"


async def test_the_bell_rings_with_the_stored_message(house: House) -> None:
    """Listeners hear of each commit in order, with stored due times, the body if small."""
    heard: list[QueuedMessage] = []
    house.spool.set_accept_listener(lambda message: heard.append(message))
    ids = [await house.accept(f"u{n}@example.com", body=b"%d" % n) for n in range(3)]
    house.spool.set_accept_listener(None)
    await house.accept("silent@example.com")
    assert [m.queue_id for m in heard] == ids
    assert [m.body for m in heard] == [b"0", b"1", b"2"]
    stored = (await house.claim()).messages[:3]
    assert [m.recipients for m in stored] == [m.recipients for m in heard]


async def test_the_bell_has_rung_when_commit_returns(house: House) -> None:
    """Who awaited commit can rely on the relay having heard."""
    heard: list[int] = []
    house.spool.set_accept_listener(lambda message: heard.append(message.queue_id))
    queue_id = await house.accept("a@example.com")
    assert heard == [queue_id]


async def test_many_commits_at_once_all_stand(house: House) -> None:
    """Messages that end together share the work and none is lost."""
    ids = await asyncio.gather(*(house.accept(f"u{n}@example.com") for n in range(150)))
    assert sorted(ids) == [m.queue_id for m in await house.everything()]
    assert len(set(ids)) == 150


async def test_a_large_body_comes_back_whole(house: House) -> None:
    """Bodies beyond any inline limit are stored and read in pieces."""
    body = bytes(range(256)) * 200
    queue_id = await house.accept("a@example.com", body=body)
    assert await house.read(queue_id) == body
    [message] = (await house.claim(max_bytes=len(body))).messages
    assert message.body == body


async def test_there_is_no_intake_problem_on_a_healthy_disk(house: House) -> None:
    """None means mail can be taken."""
    assert house.spool.intake_problem() is None


# --------------------------------------------------------------------------- claims


async def test_claims_follow_the_cursor_without_gap_or_repetition(house: House) -> None:
    """Oldest first; every row once; exhausted with the last."""
    ids = [await house.accept(f"u{n}@example.com") for n in range(7)]
    seen: list[int] = []
    after: Cursor | None = None
    for _ in range(3):
        claim = await house.claim(after=after, max_messages=3)
        seen += [m.queue_id for m in claim.messages]
        after = claim.cursor
        assert claim.exhausted == (len(seen) == 7)
    assert seen == ids
    claim = await house.claim(after=after)
    assert (claim.messages, claim.exhausted, claim.next_due_us) == ((), True, None)
    assert claim.cursor == after


async def test_later_mail_lies_behind_every_cursor(house: House) -> None:
    """A reader that has read to the end finds what comes later, and nothing twice."""
    after: Cursor | None = None
    for n in range(5):
        queue_id = await house.accept(f"u{n}@example.com")
        claim = await house.claim(after=after)
        assert [m.queue_id for m in claim.messages] == [queue_id]
        after = claim.cursor


async def test_a_claim_keeps_the_recipients_of_a_message_together(house: House) -> None:
    """max_messages counts messages, not recipients."""
    many = [f"u{n}@example.com" for n in range(40)]
    first = await house.accept(*many, "else@example.net")
    await house.accept(*many)
    claim = await house.claim(max_messages=1)
    [message] = claim.messages
    assert message.queue_id == first
    assert [r.address for r in message.recipients] == many
    assert not claim.exhausted


async def test_each_domain_has_its_own_queue(house: House) -> None:
    """A claim returns recipients of its domain alone."""
    queue_id = await house.accept("a@example.com", "b@example.net")
    await house.accept("c@example.net")
    [message] = (await house.claim("example.com")).messages
    assert [(r.seq, r.address) for r in message.recipients] == [(0, "a@example.com")]
    first, _ = (await house.claim("example.net")).messages
    assert (first.queue_id, first.recipients[0].seq) == (queue_id, 1)
    assert (await house.claim("example.org")).messages == ()


async def test_what_is_not_due_waits_and_its_time_is_told(house: House) -> None:
    """Deferred rows come back when due; next_due_us says when."""
    queue_id = await house.accept("a@example.com")
    later = house.clock.now_us + 60_000_000
    await house.settle(queue_id, 0, Outcome.DEFERRED, due_us=later, reply="451 4.3.0 later")
    claim = await house.claim()
    assert (claim.messages, claim.exhausted, claim.next_due_us) == ((), True, later)
    [message] = (await house.claim(now_us=later)).messages
    [row] = message.recipients
    assert (row.attempts, row.due_us, row.reason, row.reply) == (
        1,
        later,
        "because",
        "451 4.3.0 later",
    )


async def test_bodies_are_read_along_while_they_fit(house: House) -> None:
    """max_bytes bounds the octets of one claim; other messages come without body."""
    for size in (600, 600, 300):
        await house.accept("a@example.com", body=bytes(size))
    claim = await house.claim(max_bytes=1000)
    assert [m.body and len(m.body) for m in claim.messages] == [600, None, 300]
    assert [m.size_bytes for m in claim.messages] == [600, 600, 300]


async def test_a_damaged_body_is_set_aside_and_the_rest_goes_on(house: House) -> None:
    """It is held with the reason and left out of the claim."""
    await house.accept("a@example.com", body=b"sound one")
    harmed = await house.accept("b@example.com", body=b"will be harmed")
    await house.accept("c@example.com", body=b"sound two")
    house.damage(harmed, b"will be harmed")
    claim = await house.claim()
    assert [m.body for m in claim.messages] == [b"sound one", b"sound two"]
    [row] = (await house.show(harmed)).recipients
    assert row.state is State.HELD
    assert row.reason.startswith("damaged: ")
    assert (await house.claim()).exhausted


async def test_a_damaged_body_is_told_before_its_last_octets(house: House) -> None:
    """A reader never gets a damaged body whole."""
    harmed = await house.accept("b@example.com", body=b"0123456789")
    house.damage(harmed, b"0123456789")
    body = await house.spool.open_body(harmed)
    with pytest.raises(BodyDamaged):
        while await body.read(4):
            pass
    body.close()


# --------------------------------------------------------------------------- settlements


async def test_a_message_goes_with_its_last_recipient(house: House) -> None:
    """Move d deletes the row; the message when none is left."""
    queue_id = await house.accept("a@example.com", "b@example.com")
    await house.settle(queue_id, 0, Outcome.DELIVERED)
    assert [r.seq for r in (await house.show(queue_id)).recipients] == [1]
    await house.settle(queue_id, 1, Outcome.DELIVERED)
    assert await house.everything() == []
    with pytest.raises(KeyError):
        await house.spool.open_body(queue_id)


async def test_many_outcomes_settle_at_once(house: House) -> None:
    """Moves d, r and h in one call reach their rows."""
    ids = [await house.accept("a@example.com") for _ in range(150)]
    later = house.clock.now_us + 1_000_000
    outcomes = (Outcome.DELIVERED, Outcome.DEFERRED, Outcome.HELD)
    await house.spool.settle(
        [
            Settlement(queue_id, 0, outcomes[n % 3], due_us=later, reason="r", reply="5")
            for n, queue_id in enumerate(ids)
        ]
    )
    left = {m.queue_id: m.recipients[0] for m in await house.everything()}
    assert set(left) == {queue_id for n, queue_id in enumerate(ids) if n % 3}
    assert all(left[q].state is State.HELD for n, q in enumerate(ids) if n % 3 == 2)
    assert all(left[q].due_us == later for n, q in enumerate(ids) if n % 3 == 1)
    assert all((row.attempts, row.reason, row.reply) == (1, "r", "5") for row in left.values())


async def test_settling_what_is_gone_or_held_changes_nothing(house: House) -> None:
    """The operator may have been quicker than the relay."""
    gone = await house.accept("a@example.com")
    held = await house.accept("b@example.com")
    now_us = house.clock.now_us
    await house.spool.act(Selection(queue_ids=(gone,)), OperatorAction.DELETE, now_us=now_us)
    await house.spool.act(Selection(queue_ids=(held,)), OperatorAction.HOLD, now_us=now_us)
    for queue_id in (gone, held, 12345):
        for outcome in (Outcome.DEFERRED, Outcome.HELD):
            await house.settle(queue_id, 0, outcome, due_us=1, reply="x")
    [message] = await house.everything()
    [row] = message.recipients
    assert (message.queue_id, row.state, row.reason) == (held, State.HELD, "held by operator")
    assert (row.attempts, row.reply) == (0, "")


async def test_what_was_delivered_goes_whatever_its_state(house: House) -> None:
    """A delivery is a fact: releasing what was held during it must not send it twice."""
    held = await house.accept("b@example.com", "c@example.com")
    now_us = house.clock.now_us
    await house.spool.act(Selection(queue_ids=(held,)), OperatorAction.HOLD, now_us=now_us)
    await house.settle(held, 0, Outcome.DELIVERED)
    [row] = (await house.show(held)).recipients
    assert (row.seq, row.state) == (1, State.HELD)
    await house.settle(held, 1, Outcome.DELIVERED)
    await house.settle(12345, 0, Outcome.DELIVERED)
    assert await house.everything() == []


async def test_a_message_tells_how_many_recipients_it_had(house: House) -> None:
    """Whoever reports the last one gone knows that there were others."""
    heard: list[QueuedMessage] = []
    house.spool.set_accept_listener(lambda message: heard.append(message))
    queue_id = await house.accept("a@example.com", "b@example.com", "c@example.net")
    await house.settle(queue_id, 0, Outcome.DELIVERED)
    found = await house.claim()
    assert [m.recipients_in_all for m in (*heard, *found.messages)] == [3, 3]
    assert (await house.show(queue_id)).recipients_in_all == 3


async def test_settling_nothing_is_fine(house: House) -> None:
    """An empty list is settled at once."""
    await house.spool.settle([])


# --------------------------------------------------------------------------- sweeper


async def test_queued_domains_tell_the_earliest_due(house: House) -> None:
    """Held rows do not count; every other domain does."""
    first = await house.accept("a@example.com")
    await house.accept("a@example.com", "b@example.net")
    held = await house.accept("c@example.org")
    await house.settle(held, 0, Outcome.HELD)
    domains = await house.spool.queued_domains()
    assert set(domains) == {"example.com", "example.net"}
    assert domains["example.com"] == (await house.show(first)).recipients[0].due_us


async def test_what_was_kept_too_long_is_held(house: House) -> None:
    """Expiry holds rows queued since before the instant, and returns them, up to the limit."""
    old = [await house.accept("a@example.com", "b@example.net") for _ in range(3)]
    house.clock.now_us += 1_000_000
    limit_us = house.clock.now_us
    await house.accept("young@example.com")
    expired = await house.spool.expire("example.com", kept_before_us=limit_us, limit=2)
    expired = [*expired, *await house.spool.expire("example.com", kept_before_us=limit_us, limit=9)]
    assert [m.queue_id for m in expired] == old
    for message in expired:
        [row] = message.recipients
        assert (row.address, row.state, row.reason) == ("a@example.com", State.HELD, "expired")
    assert not await house.spool.expire("example.com", kept_before_us=limit_us, limit=9)
    assert len((await house.claim("example.net")).messages) == 3
    assert len((await house.claim("example.com")).messages) == 1


async def test_release_begins_keeping_anew(house: House) -> None:
    """keep_for counts from the release (move f)."""
    queue_id = await house.accept("a@example.com")
    house.clock.now_us += 1_000_000
    limit_us = house.clock.now_us
    assert await house.spool.expire("example.com", kept_before_us=limit_us, limit=9)
    now_us = house.clock()
    released = await house.spool.act(Selection(), OperatorAction.RELEASE, now_us=now_us)
    assert released == 1
    assert not await house.spool.expire("example.com", kept_before_us=limit_us, limit=9)
    [message] = (await house.claim()).messages
    assert message.queue_id == queue_id
    assert await house.spool.expire("example.com", kept_before_us=now_us + 1, limit=9)


# --------------------------------------------------------------------------- operator


async def test_listing_goes_on_behind_the_last_message(house: House) -> None:
    """Ascending ids, at most `limit`, behind `after`."""
    ids = [await house.accept("a@example.com") for _ in range(5)]
    listing = house.spool.list_messages
    first = [m.queue_id for m in await listing(Selection(), after=None, limit=3)]
    rest = [m.queue_id for m in await listing(Selection(), after=first[-1], limit=3)]
    assert (first, rest) == (ids[:3], ids[3:])


async def test_selections_mean_what_they_say(house: House) -> None:
    """Every given condition must hold; text is compared without case."""
    one = await house.accept("Ann@example.com", "bob@example.net", sender="Sender@a.example")
    two = await house.accept("ann@example.net", sender="")
    await house.settle(one, 1, Outcome.HELD, reply="550 5.7.1 Blocked by LIST")

    async def find(selection: Selection) -> list[tuple[int, int]]:
        found = await house.spool.list_messages(selection, after=None, limit=10)
        return [(m.queue_id, r.seq) for m in found for r in m.recipients]

    assert await find(Selection()) == [(one, 0), (one, 1), (two, 0)]
    assert await find(Selection(queue_ids=(two, 99))) == [(two, 0)]
    assert await find(Selection(domain="Example.NET")) == [(one, 1), (two, 0)]
    assert await find(Selection(recipient="ANN@example.com")) == [(one, 0)]
    assert await find(Selection(sender="sender@A.example")) == [(one, 0), (one, 1)]
    assert await find(Selection(sender="")) == [(two, 0)]
    assert await find(Selection(state=State.HELD)) == [(one, 1)]
    assert await find(Selection(state=State.QUEUED, domain="example.net")) == [(two, 0)]
    assert await find(Selection(reply="blocked by list")) == [(one, 1)]
    assert await find(Selection(reply="BECAUSE")) == [(one, 1)]
    assert await find(Selection(reply="%")) == []
    assert await find(Selection(older_than_us=time_us_of(two))) == [(one, 0), (one, 1)]
    assert await find(Selection(domain="example.com", state=State.HELD)) == []
    assert await find(Selection(reply="550")) == [(one, 1)]
    assert await find(Selection(reply="5.7")) == [(one, 1)]
    assert await find(Selection(reply="571")) == []
    assert await find(Selection(since_us=time_us_of(two))) == [(one, 1), (two, 0)]
    assert await find(Selection(since_us=house.clock())) == []


async def test_a_held_recipient_tells_since_when(house: House) -> None:
    """Whoever puts it on hold, `due_us` is when that was; releasing makes it due again."""
    one = await house.accept("a@example.com", "b@example.com", "c@example.com")
    await house.claim()
    began_us = house.clock.now_us = house.clock.now_us + 3_600_000_000
    await house.settle(one, 0, Outcome.HELD)
    hold = Selection(recipient="b@example.com")
    await house.spool.act(hold, OperatorAction.HOLD, now_us=house.clock())
    await house.spool.expire("example.com", kept_before_us=house.clock(), limit=10)
    rows = (await house.show(one)).recipients
    assert [row.state for row in rows] == [State.HELD] * 3
    assert all(began_us < row.due_us <= house.clock() for row in rows)


async def test_addresses_beyond_ascii_are_found_without_case(house: House) -> None:
    """SMTPUTF8 addresses are compared by case folding."""
    queue_id = await house.accept("Zoë@example.com", sender="ÄNNE@sender.example")
    for selection in (
        Selection(recipient="ZOË@example.com"),
        Selection(sender="änne@SENDER.example"),
    ):
        found = await house.spool.list_messages(selection, after=None, limit=10)
        assert [m.queue_id for m in found] == [queue_id]


async def test_an_operator_holds_and_releases(house: House) -> None:
    """Moves h and f, with the number of recipients moved."""
    queue_id = await house.accept("a@example.com", "b@example.com")
    act = house.spool.act
    selection = Selection(recipient="a@example.com")
    assert await act(selection, OperatorAction.HOLD, now_us=house.clock()) == 1
    assert await act(selection, OperatorAction.HOLD, now_us=house.clock()) == 0
    claim = await house.claim()
    assert [r.seq for m in claim.messages for r in m.recipients] == [1]
    assert await act(Selection(), OperatorAction.RELEASE, now_us=house.clock()) == 1
    behind = await house.claim(after=claim.cursor)
    assert [(m.queue_id, r.seq, r.reason) for m in behind.messages for r in m.recipients] == [
        (queue_id, 0, "")
    ]


async def test_retry_makes_deferred_mail_due(house: House) -> None:
    """A row put off is claimed at once, behind cursors handed out before."""
    queue_id = await house.accept("a@example.com")
    after = (await house.claim()).cursor
    far = house.clock.now_us + 10**9
    await house.settle(queue_id, 0, Outcome.DEFERRED, due_us=far)
    assert (await house.claim(after=after)).messages == ()
    assert await house.spool.act(Selection(), OperatorAction.RETRY, now_us=house.clock()) == 1
    assert [m.queue_id for m in (await house.claim(after=after)).messages] == [queue_id]


async def test_an_operator_deletes_queued_and_held(house: House) -> None:
    """Move x takes rows in any state, and the octets with the last one."""
    ids = [await house.accept("a@example.com", "b@example.net") for _ in range(3)]
    await house.settle(ids[0], 0, Outcome.HELD)
    act = house.spool.act
    now_us = house.clock()
    assert await act(Selection(domain="example.com"), OperatorAction.DELETE, now_us=now_us) == 3
    assert [[r.seq for r in m.recipients] for m in await house.everything()] == [[1]] * 3
    assert await act(Selection(), OperatorAction.DELETE, now_us=now_us) == 3
    assert await house.everything() == []


async def test_an_action_reaches_more_rows_than_fit_one_transaction(house: House) -> None:
    """Large selections are worked off whole."""
    addresses = [f"u{n}@example.com" for n in range(450)]
    for _ in range(5):
        await house.accept(*addresses)
    moved = await house.spool.act(Selection(), OperatorAction.HOLD, now_us=house.clock())
    assert moved == 2250
    assert (await house.claim()).messages == ()


async def test_totals_count_by_domain(house: House) -> None:
    """Recipients by state; each message's octets once for each domain."""
    one = await house.accept("a@example.com", "b@example.com", "c@example.net", body=bytes(100))
    two = await house.accept("d@example.com", body=bytes(11))
    await house.settle(one, 0, Outcome.HELD)
    com, net = await house.spool.totals()
    assert (com.domain, com.queued, com.held, com.size_bytes) == ("example.com", 2, 1, 111)
    assert (net.domain, net.queued, net.held, net.size_bytes) == ("example.net", 1, 0, 100)
    assert com.oldest_us == net.oldest_us == time_us_of(one)
    await house.settle(one, 1, Outcome.HELD)
    await house.settle(one, 2, Outcome.HELD)
    com, net = await house.spool.totals()
    assert (com.oldest_us, net.oldest_us) == (time_us_of(one), time_us_of(one))
    assert (com.oldest_queued_us, net.oldest_queued_us) == (time_us_of(two), None)
