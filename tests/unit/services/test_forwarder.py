"""The forwarder against the real granter, over a wire that can be cut anywhere."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.agreement_world import BACKUP, DOMAIN, PRIMARY, SECOND, START_US, World
from posthouse.domain.agreement import DAY_US, EndedBy, Event, Standing, State, decide_move
from posthouse.mail.recipes import (
    AgreementRequest,
    Denial,
    PolicyRequest,
    PolicySettings,
    RecipeResult,
    Refusal,
    Settings,
    Status,
)
from posthouse.ports_agreements import GrantState
from posthouse.services import forwarder

ALICE = f"alice@{DOMAIN}"


async def test_from_first_message_to_agreed() -> None:
    """A vouched address is negotiated at once when the primary can be reached."""
    world = World("alice")
    world.arrive("Alice+news")
    await world.step()
    world.assert_agreed()
    entry = world.entry()
    assert entry.address == f"Alice+news@{DOMAIN}"
    assert entry.user_id == "alice"
    assert (entry.messages, entry.bytes) == (1, 100)
    assert entry.due_us is None
    assert world.forwarder_book.published[ALICE] == entry
    (grant,) = world.live_grants()
    assert grant.evidence_us == START_US
    assert len(world.requests) == len(world.completions) == 1


async def test_an_outage_costs_nothing() -> None:
    """While the primary is down addresses stay seen; everything is asked for when it is back."""
    world = World(*(f"user{n}" for n in range(50)))
    world.up = False
    for number in range(50):
        world.arrive(f"user{number}")
    await world.settle(rounds=5)
    assert {entry.standing.state for entry in world.forwarder_book.entries.values()} <= {
        State.SEEN,
        State.REQUESTED,
    }
    world.up = True
    world.forwarder.reached(DOMAIN)
    await world.step()
    for number in range(50):
        world.assert_agreed(f"user{number}")
    assert len(world.requests[-1].recipes) == 50


async def test_silence_backs_off_and_reached_rings() -> None:
    """A granter that does not answer is tried after 5 s, doubling to 5 min."""
    world = World("alice")
    world.up = False
    world.arrive("alice")
    waits = []
    for _ in range(8):
        world.now_us = max(world.now_us, world.link.rest_until_us)
        await world.step()
        waits.append((world.link.rest_until_us - world.now_us) // SECOND)
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300]
    before = len(world.requests)
    await world.step(seconds=299)
    assert len(world.requests) == before
    world.forwarder.reached(DOMAIN)
    await world.step()
    assert len(world.requests) == before + 1


async def test_pending_doubles_and_ends_with_a_yes() -> None:
    """`pending` is asked again, each time after twice as long; a yes is completed."""
    world = World("alice", ask=True)
    world.arrive("alice")
    asked_at = []
    for _ in range(200):
        before = len(world.requests)
        await world.step(seconds=1800)
        if len(world.requests) > before:
            asked_at.append(world.now_us)
    gaps = [(b - a) // (3600 * SECOND) for a, b in itertools.pairwise(asked_at)]
    assert gaps[:6] == [1, 2, 4, 8, 16, 24]
    assert world.entry().standing.state is State.REQUESTED
    (grant,) = world.live_grants()
    await world.callbacks.decide_pending(grant.agreement_id, grant=True)
    await world.step(seconds=86_400)
    world.assert_agreed()
    assert world.live_grants()[0].agreement_id == grant.agreement_id


async def test_refused_is_asked_again_after_seven_days() -> None:
    """A no is an alert, and not the last word."""
    world = World("alice", ask=True)
    world.arrive("alice")
    await world.step()
    (grant,) = world.live_grants()
    await world.callbacks.decide_pending(grant.agreement_id, grant=False)
    await world.step(seconds=86_400)
    assert world.entry().standing.state is State.REFUSED
    assert ("agreements-refused", DOMAIN) in world.alerts.standing
    before = len(world.requests)
    await world.step(seconds=7 * 86_400 - 1)
    assert len(world.requests) == before
    await world.callbacks.decide_pending(grant.agreement_id, grant=True)
    await world.step(seconds=2)
    world.assert_agreed()
    assert not world.alerts.standing


async def test_no_such_user_ends_and_holds() -> None:
    """Where no fresh roster vouches, the agreement ends and every spelling is held."""
    world = World("alice")
    world.rosters.now = msgspec.structs.replace(world.rosters.now, fresh=False)  # type: ignore[type-var]
    world.arrive("Bob")
    world.arrive("bob+x")
    await world.step()
    entry = world.entry("bob")
    assert entry.standing.state is State.ENDED
    assert entry.end is not None
    assert entry.end.by is EndedBy.GRANTER
    assert sorted(world.held.addresses) == [f"Bob@{DOMAIN}", f"bob+x@{DOMAIN}", f"bob@{DOMAIN}"]
    assert entry.due_us is None
    assert not world.live_grants("bob")
    world.rosters.publish(["alice", "bob"], issued_us=world.now_us - 1)
    await world.step()
    assert world.entry("bob").standing.state is State.ENDED, "this roster cannot know of the end"
    world.rosters.publish(["alice", "bob"], issued_us=world.now_us + 1)
    world.mailboxes.exist = {"alice", "bob"}
    await world.step(seconds=60)
    world.assert_agreed("bob")


async def test_no_such_user_against_a_fresh_roster() -> None:
    """Where the roster in force vouches, nothing ends: an alert, and asked again."""
    world = World("alice", "bob")
    world.mailboxes.exist = {"alice"}
    world.arrive("bob")
    await world.step()
    assert world.entry("bob").standing.state is State.REQUESTED
    assert world.entry("bob").due_us == world.now_us + 3600 * SECOND
    assert ("agreements-disputed", DOMAIN) in world.alerts.standing
    assert not world.held.addresses
    world.mailboxes.exist = {"alice", "bob"}
    await world.step(seconds=3601)
    world.assert_agreed("bob")
    assert not world.alerts.standing


async def test_without_a_roster_denials_are_forgotten() -> None:
    """`no_such_user` of a domain without a roster is remembered for an hour, then asked anew."""
    world = World("alice")
    world.rosters.now = None
    world.arrive("bob", messages=0)
    await world.step()
    entry = world.entry("bob")
    assert entry.standing.state is State.ENDED
    assert entry.end is not None
    assert entry.end.until_us == world.now_us + 3600 * SECOND
    world.arrive("bob", messages=0)
    await world.step(seconds=3599)
    assert world.entry("bob").standing.state is State.ENDED
    world.mailboxes.exist = {"alice", "bob"}
    world.arrive("bob", messages=0)
    await world.step(seconds=2)
    world.assert_agreed("bob")


async def test_wishes_are_limited() -> None:
    """What nobody vouches for may fill the book by 1,000 addresses a minute, no faster."""
    world = World()
    world.rosters.now = None
    world.up = False
    for number in range(1200):
        world.arrive(f"guess{number}", messages=0)
    for _ in range(10):
        await world.step()
    assert len(world.forwarder_book.entries) == 1000


async def test_wishes_end_in_a_long_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of guesses while nobody answers does not fill the disk; answers make room."""
    monkeypatch.setattr(forwarder, "MAX_WISHES", 1500)
    world = World()
    world.rosters.now = None
    world.up = False
    for minute in range(3):
        for number in range(1000):
            world.arrive(f"guess{minute}-{number}", messages=0)
        for _ in range(8):
            await world.step()
        await world.step(seconds=60)
    assert len(world.forwarder_book.entries) == 1500
    world.up = True
    for _ in range(20):  # the granter answers so many unknown ones an hour
        await world.step(seconds=3601)
    assert world.forwarder_book.entries == {}
    assert world.forwarder_book.published == {}


async def test_at_most_a_thousand_new_requests_a_minute() -> None:
    """The rest of a large domain waits for the next minute; completions do not."""
    names = [f"user{n}" for n in range(1500)]
    world = World(*names)
    for name in names:
        world.arrive(name)
    for _ in range(12):
        await world.step()
    states = await world.forwarder.describe()
    assert states[DOMAIN] == {"agreed": 1000, "seen": 500}
    await world.step(seconds=60)
    assert (await world.forwarder.describe())[DOMAIN] == {"agreed": 1500}


async def test_a_fresh_roster_that_proves_absence_ends() -> None:
    """The next fresh roster is asked about everybody on record; a later one lifts the end."""
    world = World("alice", "bob")
    world.arrive("alice")
    world.arrive("bob")
    await world.step()
    world.assert_agreed()
    world.rosters.publish(["bob"], issued_us=world.now_us)
    await world.step()
    assert world.entry().standing.state is State.ENDED
    assert world.entry().end is not None
    assert world.forwarder_book.published[ALICE].standing.state is State.ENDED
    assert world.entry("bob").serial == 11
    world.rosters.publish(["alice", "bob"], issued_us=0)
    await world.step()
    world.assert_agreed()
    assert world.entry().serial == 12


async def test_a_stale_or_silent_roster_ends_nothing() -> None:
    """Only a fresh roster, and only with a word about the address, ends an agreement."""
    world = World("alice")
    world.arrive("alice")
    await world.step()
    world.rosters.publish([], issued_us=0)
    world.rosters.now = msgspec.structs.replace(world.rosters.now, fresh=False)  # type: ignore[type-var]
    await world.step()
    world.assert_agreed()
    world.rosters.silent = {"alice"}
    world.rosters.publish([], issued_us=0)
    await world.step()
    world.assert_agreed()


async def test_blocks_lapse_with_the_policy() -> None:
    """A roster that forbids blocking takes every block back."""
    world = World("alice")
    world.arrive("alice")
    await world.step()
    (grant,) = world.live_grants()
    answer = await world.callbacks.set_blocked(grant, True, "user")
    assert not isinstance(answer, Refusal)
    assert answer.blocked
    assert world.entry().standing == Standing(State.BLOCKED, State.AGREED)
    assert world.forwarder_book.published[ALICE].standing.state is State.BLOCKED
    world.rosters.publish(["alice"], issued_us=0, blocking=False)
    await world.step()
    world.assert_agreed()
    assert world.entry().standing == Standing(State.AGREED)


async def test_completed_again_after_535() -> None:
    """A password that a next hop refused is set anew, and used again."""
    world = World("alice")
    world.arrive("alice")
    await world.step()
    old = world.entry().password
    await world.forwarder_book.change(
        [ALICE], lambda _key, e: e and msgspec.structs.replace(e, login_refused=True, due_us=0)
    )
    await world.step()
    world.assert_agreed()
    assert world.entry().password != old


async def test_reset_by_the_granter() -> None:
    """A reset voids the password; its value is good for completion, which follows at once."""
    world = World("alice")
    world.arrive("alice")
    await world.step()
    old = world.entry()
    await world.callbacks.reset_password(old.agreement_id)
    assert world.live_grants()[0].state is GrantState.GRANTED
    await world.step()
    world.assert_agreed()
    assert world.entry().password not in (old.password, old.one_time_password)
    # the same again, and the forwarder cannot be told: it finds out by 535
    world.policy = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        await world.callbacks.reset_password(old.agreement_id)
    world.restart()
    await world.forwarder_book.change(
        [ALICE], lambda _key, e: e and msgspec.structs.replace(e, login_refused=True, due_us=0)
    )
    await world.settle(rounds=4, seconds=1)
    world.assert_agreed()


# --------------------------------------------------------------------------- odd granters


class Odd:
    """A granter that answers what it is told; the first answer again when there is no other."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.sizes: list[int] = []

    async def request(self, document: AgreementRequest) -> list[RecipeResult] | Refusal:
        self.sizes.append(len(document.recipes))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Refusal):
            return answer
        assert callable(answer)
        found = answer(document)
        return found if isinstance(found, Refusal) else list(found)

    async def complete(self, url: str, document: object) -> Refusal | None:
        raise AssertionError("nothing was granted")


def odd_world(*answers: object, names: tuple[str, ...] = ("alice",)) -> tuple[World, Odd]:
    world, odd = World(*names), Odd(*answers)
    world.link.calls = odd
    for name in names:
        world.arrive(name)
    return world, odd


@pytest.mark.parametrize("denial", [Denial.CONFLICT, Denial.MALFORMED, Denial.TOO_LARGE])
async def test_one_bad_recipe_does_not_stop_the_others(denial: Denial) -> None:
    """A request refused whole is halved until the one recipe is found."""

    def answer(document: AgreementRequest) -> object:
        if any(recipe.address.startswith("bad") for recipe in document.recipes):
            return Refusal(denial, "no")
        return [
            RecipeResult(recipe_id=r.recipe_id, status=Status.REFUSED) for r in document.recipes
        ]

    names = (*(f"user{n}" for n in range(15)), "bad")
    world, odd = odd_world(answer, names=names)
    await world.step()
    states = [world.entry(name).standing.state for name in names]
    assert states[:15] == [State.REFUSED] * 15
    assert states[15] is State.REQUESTED
    assert odd.sizes[0] == 16
    assert len(odd.sizes) == 9
    bad = world.entry("bad")
    assert (bad.recipe_id == "") == (denial is Denial.CONFLICT)


@pytest.mark.parametrize(
    ("refusal", "seconds"),
    [
        (Refusal(Denial.FORBIDDEN, "not you"), 300),
        (Refusal(Denial.UNPROCESSABLE, "your URL"), 300),
        (Refusal(Denial.NOT_FOUND, "no path"), 300),
        (Refusal(Denial.TOO_MANY, "slow down", 77), 77),
        (Refusal(Denial.UNAVAILABLE, "later", 9999), 3600),
        (Refusal(Denial.UNAVAILABLE, "later"), 5),
    ],
)
async def test_refused_whole(refusal: Refusal, seconds: int) -> None:
    """A granter that refuses us is left alone, as long as it says, and nothing changes."""
    world, odd = odd_world(refusal)
    await world.step()
    assert world.link.rest_until_us == world.now_us + seconds * SECOND
    assert world.entry().standing.state is State.REQUESTED
    await world.step(seconds=seconds - 1)
    assert len(odd.sizes) == 1
    await world.step(seconds=1)
    assert len(odd.sizes) == 2


async def test_a_completion_url_elsewhere_is_not_called() -> None:
    """A URL outside the paired base is no place for a password."""
    world = World("alice")
    world.settings = msgspec.structs.replace(
        world.settings, completion_url="https://evil.example/v1/completion"
    )
    world.restart()
    world.arrive("alice")
    await world.step()
    assert not world.completions
    entry = world.entry()
    assert entry.standing.state is State.REQUESTED
    assert entry.due_us == world.now_us + DAY_US
    assert "completion_url" in entry.note


# --------------------------------------------------------------------------- crashes


async def _count_points() -> dict[str, int]:
    world = World("alice")
    world.arrive("alice")
    await world.step()
    world.assert_agreed()
    return dict(world.cuts.counts)


@pytest.mark.parametrize("side", ["forwarder", "granter"])
async def test_killed_between_any_two_steps(side: str) -> None:
    """Whichever side dies at whichever point of the handshake, both come to the same state."""
    points = (await _count_points())[side]
    assert points >= 8
    for point in range(1, points + 1):
        world = World("alice")
        world.arrive("alice")
        world.cuts.kill_at = {side: point}
        try:
            await world.step()
        except Exception:
            pass
        world.restart()
        await world.settle(rounds=6)
        world.assert_agreed()


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.sampled_from(["forwarder", "granter"]), st.integers(1, 60)), max_size=4),
    st.lists(st.integers(0, 2), max_size=4),
)
async def test_killed_again_and_again(kills: list[tuple[str, int]], losses: list[int]) -> None:
    """Deaths of both sides and lost answers, one after the other, end in the same state."""
    world = World("alice", "bob")
    world.arrive("alice")
    world.arrive("bob")
    for (side, point), loss in zip(kills, [*losses, 0, 0, 0, 0], strict=False):
        world.cuts.kill_at = {side: world.cuts.counts[side] + point}
        world.lost_replies = loss
        try:
            await world.step(seconds=400)
        except Exception:
            pass
        world.restart()
    world.lost_replies = 0
    await world.settle(rounds=8)
    world.assert_agreed("alice")
    world.assert_agreed("bob")


@settings(max_examples=150)
@given(st.integers(0, 80), st.integers(0, 80), st.booleans(), st.booleans())
async def test_books_restored_from_old_copies(
    copied_at: int, restored_at: int, forwarder_too: bool, granter_too: bool
) -> None:
    """Either book, or both, as they were at any earlier moment: both come to the same state."""
    world = World("alice")
    world.arrive("alice")
    world.cuts.kill_at = {"forwarder": copied_at}
    try:
        await world.step()
    except Exception:
        pass
    forwarder_book, granter_book = world.copy_books()
    world.restart()
    world.cuts.kill_at = {"forwarder": world.cuts.counts["forwarder"] + restored_at}
    world.arrive("alice")
    try:
        await world.step(seconds=400)
        await world.forwarder_book.change(
            [ALICE], lambda _key, e: e and msgspec.structs.replace(e, login_refused=True, due_us=0)
        )
        await world.step(seconds=400)
    except Exception:
        pass
    if forwarder_too:
        world.forwarder_book = forwarder_book
    if granter_too:
        world.granter_book = granter_book
    world.restart()
    world.arrive("alice")
    await world.step(seconds=400)
    # a next hop refuses the password if it is not the granter's: that is how it is noticed
    await world.forwarder_book.change(
        [ALICE], lambda _key, e: e and msgspec.structs.replace(e, login_refused=True, due_us=0)
    )
    await world.settle(rounds=10)
    world.assert_agreed()


async def test_late_policy_on_a_recipe_that_was_remade() -> None:
    """What a granter says about a recipe of before changes nothing."""
    world = World("alice")
    world.arrive("alice")
    await world.step()
    old = world.entry()
    world.rosters.publish([], issued_us=0)
    await world.step()
    world.rosters.publish(["alice"], issued_us=0)
    await world.step()
    answer = await world.policy.negotiate(
        PRIMARY,
        PolicyRequest(
            recipe_id=old.recipe_id,
            recipe_key=old.recipe_key,
            agreement_id=old.agreement_id,
            actor="granter",
            set=Settings(ended=True),
        ),
    )
    assert isinstance(answer, Refusal)
    assert answer.denial is Denial.NOT_FOUND
    world.assert_agreed()


async def test_ended_by_the_granter_holds_the_queue() -> None:
    """The mailbox was deleted: the forwarder is told, ends it, and holds what is queued."""
    world = World("alice", *(f"user{n}" for n in range(20)))
    world.arrive("alice")
    await world.step()
    world.mailboxes.exist = {f"user{n}" for n in range(20)}
    assert await world.callbacks.end_gone(DOMAIN) == 1
    await world.callbacks.tell_ends()
    assert not world.live_grants()
    assert world.entry().standing.state is State.ENDED
    await world.step()
    assert ALICE in world.held.addresses
    assert decide_move(world.entry().standing, Event.BLOCK) == Standing(State.ENDED)


async def test_servers_lists_this_party_first() -> None:
    """Where is my address stored: here, since when, how much came."""
    world = World("alice")
    world.arrive("alice", messages=3)
    await world.step()
    holders = await world.callbacks.find_holders(ALICE, "user")
    assert [(h.party, h.host, h.preference, h.messages) for h in holders] == [
        (BACKUP, BACKUP, 20, 3)
    ]
    assert holders[0].since_us == START_US
    answer = await world.policy.negotiate(
        PRIMARY,
        PolicyRequest(
            recipe_id=world.entry().recipe_id,
            recipe_key=world.entry().recipe_key,
            agreement_id=None,
            actor="user",
            get=("blocked", "traffic", "dnsbl", "spf", "colour"),
        ),
    )
    assert isinstance(answer, PolicySettings)
    assert (answer.blocked, answer.dnsbl, answer.spf, answer.servers) == (False, (), False, None)
    assert answer.traffic is not None
    assert (answer.traffic.messages, answer.traffic.bytes) == (3, 300)
