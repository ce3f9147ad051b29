"""The granter by itself: who may ask for what, and what is answered."""

from __future__ import annotations

import msgspec
import pytest

from fakes.agreement_world import BACKUP, BASE, DOMAIN, PRIMARY, SECOND, World
from posthouse.domain.agreement_passwords import is_weak
from posthouse.errors import PeerFailure
from posthouse.mail.recipes import (
    AgreementRequest,
    Completion,
    Denial,
    PolicyRequest,
    PolicySettings,
    Recipe,
    RecipeResult,
    Refusal,
    Status,
)
from posthouse.ports_agreements import GrantState
from posthouse.ports_postfix import AuthFinding

KEY = "k" * 32
STRONG = "a-Very5trong-one-that-is-long"


def recipe(name: str = "alice", number: int = 1, **members: object) -> Recipe:
    made = Recipe(
        recipe_id=f"r-{number}",
        recipe_key=KEY,
        name="Backup MX",
        address=name if "@" in name else f"{name}@{DOMAIN}",
        seen_us=5,
    )
    return msgspec.structs.replace(made, **members)


def request(*recipes: Recipe, **members: object) -> AgreementRequest:
    made = AgreementRequest(
        forwarder_id=BACKUP,
        category="backup MX",
        policy_negotiation_url=BASE[BACKUP] + "v1/policy",
        recipes=recipes,
    )
    return msgspec.structs.replace(made, **members)


async def ask(world: World, *recipes: Recipe) -> list[RecipeResult]:
    answer = await world.granter.request(BACKUP, request(*recipes))
    assert not isinstance(answer, Refusal), answer
    return list(answer)


async def deny(world: World, asked: AgreementRequest, party: str = BACKUP) -> Refusal:
    answer = await world.granter.request(party, asked)
    assert isinstance(answer, Refusal)
    return answer


async def complete(world: World, result: RecipeResult, **members: object) -> Refusal | None:
    made = Completion(
        forwarder_id=BACKUP,
        agreement_id=result.agreement_id,
        password=result.password,
        new_password=STRONG,
    )
    return await world.granter.complete(BACKUP, msgspec.structs.replace(made, **members))


# --------------------------------------------------------------------------- requests


async def test_a_forwarder_that_moved_is_found_with_its_next_request() -> None:
    """Older agreements are called at the new URL, whatever page of the book they are on."""
    world = World("alice", "bob")
    [old] = await ask(world, recipe("alice", 1))
    await complete(world, old)
    new_base = "https://moved.example.net:9/"
    settings = world.settings
    terms = msgspec.structs.replace(settings.forwarders[BACKUP], policy_base=new_base)
    world.granter.reload(
        msgspec.structs.replace(settings, forwarders={**settings.forwarders, BACKUP: terms})
    )
    moved = request(recipe("bob", 2), policy_negotiation_url=new_base + "v1/policy")
    assert not isinstance(await world.granter.request(BACKUP, moved), Refusal)
    grant = await world.granter_book.find(old.agreement_id)
    assert grant is not None
    assert grant.policy_url == new_base + "v1/policy"
    assert grant.state is GrantState.AGREED


async def test_each_status_in_the_order_of_the_recipes() -> None:
    """Granted, unknown, another's domain: each recipe has its own answer."""
    world = World("alice")
    results = await ask(
        world,
        recipe("nobody", 1),
        recipe("Alice+x", 2),
        recipe("alice@example.org", 3),
        recipe('"', 4),
        recipe("not an address@example.com", 5),
    )
    assert [(r.recipe_id, r.status) for r in results] == [
        ("r-1", Status.NO_SUCH_USER),
        ("r-2", Status.GRANTED),
        ("r-3", Status.REFUSED),
        ("r-4", Status.NO_SUCH_USER),
        ("r-5", Status.NO_SUCH_USER),
    ]
    granted = results[1]
    assert granted.user_id == "alice"
    assert granted.completion_url == BASE[PRIMARY] + "v1/completion"
    (grant,) = world.granter_book.grants.values()
    assert grant.mailbox == f"alice@{DOMAIN}"
    assert granted.password.encode() not in msgspec.json.encode(grant)


async def test_a_repeat_gives_the_same_agreement() -> None:
    """Until completion a new one-time password, the former void; then neither password nor URL."""
    world = World("alice")
    (first,) = await ask(world, recipe())
    (second,) = await ask(
        world, msgspec.structs.replace(recipe("ALICE+y", seen_us=9), name="another")
    )
    assert first.agreement_id == second.agreement_id
    assert first.password != second.password
    refusal = await complete(world, first)
    assert refusal is not None
    assert refusal.denial is Denial.FORBIDDEN
    assert await complete(world, second) is None
    (third,) = await ask(world, recipe())
    assert third == RecipeResult(
        recipe_id="r-1",
        status=Status.GRANTED,
        agreement_id=first.agreement_id,
        user_id="alice",
    )


@pytest.mark.parametrize(
    "other", [recipe("bob"), recipe(recipe_key="z" * 32)], ids=["recipient", "key"]
)
async def test_known_recipe_with_other_contents(other: Recipe) -> None:
    """409, and nothing of the whole request stays."""
    world = World("alice", "bob", "carol")
    await ask(world, recipe())
    before = dict(world.granter_book.grants)
    refusal = await deny(world, request(recipe("carol", 2), other))
    assert refusal.denial is Denial.CONFLICT
    assert world.granter_book.grants == before


async def test_only_for_oneself_and_under_the_base() -> None:
    """Another's forwarder_id is 403, a call-back URL outside the paired base 422."""
    world = World("alice")
    assert (await deny(world, request(recipe()), "mx9.example.org")).denial is Denial.FORBIDDEN
    other = request(recipe(), forwarder_id="mx9.example.org")
    assert (await deny(world, other)).denial is Denial.FORBIDDEN
    for url in (
        "https://mx2.example.net/v1/policy",
        "https://mx2.example.net:8447@evil.example/v1/policy",
        "https://evil.example:8447/v1/policy",
        "https://mx2.example.net:8447/../v1/policy",
        "http://mx2.example.net:8447/v1/policy",
        "",
    ):
        refusal = await deny(world, request(recipe(), policy_negotiation_url=url))
        assert refusal.denial is Denial.UNPROCESSABLE, url
    assert not world.granter_book.grants


async def test_pending_when_nobody_can_tell() -> None:
    """A source that cannot be read now is no reason to say no."""
    world = World("alice")
    world.mailboxes.exist = None
    (first,) = await ask(world, recipe())
    assert first.status is Status.PENDING
    assert first.retry_after_seconds == 300
    world.mailboxes.exist = {"alice"}
    (second,) = await ask(world, recipe())
    assert second.status is Status.GRANTED
    assert second.agreement_id == first.agreement_id


async def test_a_mailbox_that_goes_and_comes_back() -> None:
    """Its agreement ends with it, and a new mailbox begins with a new password."""
    world = World("alice")
    (first,) = await ask(world, recipe())
    assert await complete(world, first) is None
    world.mailboxes.exist = set()
    (gone,) = await ask(world, recipe())
    assert gone.status is Status.NO_SUCH_USER
    assert await world.granter.check(first.agreement_id, STRONG) is AuthFinding.BAD
    world.mailboxes.exist = {"alice"}
    (back,) = await ask(world, recipe())
    assert back.status is Status.GRANTED
    assert back.password
    assert await world.granter.check(first.agreement_id, STRONG) is AuthFinding.BAD


async def test_new_requests_are_limited() -> None:
    """1,000 new recipes a minute and domain; repeats cost nothing."""
    world = World(*(f"u{n}" for n in range(1200)))
    recipes = [recipe(f"u{n}", n) for n in range(1000)]
    await ask(world, *recipes)
    await ask(world, *recipes)
    refusal = await deny(world, request(recipe("u1001", 1001)))
    assert refusal.denial is Denial.TOO_MANY
    assert refusal.retry_after_seconds == 1
    refusal = await deny(world, request(*(recipe(f"u{n}", n) for n in range(1000, 1100))))
    assert refusal.retry_after_seconds == 7
    assert len(world.granter_book.grants) == 1000
    world.now_us += 7 * SECOND
    await ask(world, *(recipe(f"u{n}", n) for n in range(1000, 1100)))


async def test_it_is_no_oracle() -> None:
    """Who asks for too many that do not exist is told to wait, the existing ones included."""
    world = World("alice")
    await ask(world, *(recipe(f"guess{n}", n) for n in range(900)))
    world.now_us += 120 * SECOND
    refusal = await deny(world, request(recipe("guess", 1000), recipe("alice", 1001)))
    assert refusal.denial is Denial.TOO_MANY
    assert not world.granter_book.grants
    world.now_us += 3600 * SECOND
    await ask(world, recipe("guess", 1000), recipe("alice", 1001))


# --------------------------------------------------------------------------- completion


async def test_completion_sets_the_password() -> None:
    """The one-time password is good for a new password, and for nothing else."""
    world = World("alice")
    (granted,) = await ask(world, recipe())
    assert await world.granter.check(granted.agreement_id, granted.password) is AuthFinding.EXPIRED
    for members in ({"new_password": None}, {"new_password": None, "terminate": True}):
        refusal = await complete(world, granted, **members)
        assert refusal is not None
        assert refusal.denial is Denial.FORBIDDEN
    assert await complete(world, granted, feedback_address="fbl@example.net") is None
    assert await world.granter.check(granted.agreement_id, STRONG) is AuthFinding.GOOD
    assert await world.granter.check(granted.agreement_id, granted.password) is AuthFinding.BAD
    assert await world.granter.check("a-9", STRONG) is AuthFinding.BAD
    (grant,) = world.granter_book.grants.values()
    assert grant.feedback_address == "fbl@example.net"
    backing = await world.granter.find_backing(granted.agreement_id)
    assert backing is not None
    assert (backing.forwarder_id, backing.mailbox) == (BACKUP, f"alice@{DOMAIN}")


async def test_completion_again() -> None:
    """The same new password again is 204, another with a used password 403."""
    world = World("alice")
    (granted,) = await ask(world, recipe())
    assert await complete(world, granted) is None
    assert await complete(world, granted) is None
    refusal = await complete(world, granted, new_password=STRONG + "2")
    assert refusal is not None
    assert refusal.denial is Denial.FORBIDDEN
    assert await complete(world, granted, password=STRONG, new_password=STRONG + "2") is None
    assert await complete(world, granted, password=STRONG, new_password=STRONG + "2") is None
    assert await complete(world, granted, password=STRONG + "2", new_password=None) is None
    assert await world.granter.check(granted.agreement_id, STRONG + "2") is AuthFinding.GOOD
    refusal = await complete(world, granted)  # void for long
    assert refusal is not None
    assert refusal.denial is Denial.FORBIDDEN


async def test_weak_passwords() -> None:
    """422 for what a person might have chosen; the one-time password stays good."""
    world = World("alice")
    (granted,) = await ask(world, recipe())
    for weak in (
        "short",
        "a" * 40,
        "abcabcabcabcabcabcabc",
        granted.agreement_id + "xyz",
        "ü" * 20,
    ):
        assert is_weak(granted.agreement_id, weak)
        refusal = await complete(world, granted, new_password=weak)
        assert refusal is not None
        assert refusal.denial is Denial.UNPROCESSABLE
    assert await complete(world, granted) is None


async def test_the_sixth_wrong_password() -> None:
    """From then on 429 for an hour, for the right one too."""
    world = World("alice")
    (granted,) = await ask(world, recipe())
    denials = []
    for _ in range(7):
        refusal = await complete(world, granted, password="guess")
        assert refusal is not None
        denials.append(refusal.denial)
    assert denials == [Denial.FORBIDDEN] * 5 + [Denial.TOO_MANY] * 2
    world.now_us += 3599 * SECOND
    refusal = await complete(world, granted)
    assert refusal is not None
    assert (refusal.denial, refusal.retry_after_seconds) == (Denial.TOO_MANY, 2)
    world.now_us += 2 * SECOND
    assert await complete(world, granted) is None


async def test_five_wrong_ones_are_forgiven() -> None:
    """The right password after five wrong ones is taken."""
    world = World("alice")
    (granted,) = await ask(world, recipe())
    for _ in range(5):
        await complete(world, granted, password="guess")
    assert await complete(world, granted) is None


async def test_completion_of_others_and_of_nothing() -> None:
    """Another forwarder's agreement is 403, an unknown one 404."""
    world = World("alice")
    (granted,) = await ask(world, recipe())
    refusal = await complete(world, granted, forwarder_id="mx9.example.org")
    assert refusal is not None
    assert refusal.denial is Denial.FORBIDDEN
    told = Completion(
        forwarder_id="mx9.example.org", agreement_id=granted.agreement_id, password="x"
    )
    refusal = await world.granter.complete("mx9.example.org", told)
    assert refusal is not None
    assert refusal.denial is Denial.FORBIDDEN
    refusal = await complete(world, granted, agreement_id="a-9")
    assert refusal is not None
    assert refusal.denial is Denial.NOT_FOUND


async def test_terminate() -> None:
    """409 while the mailbox exists, 204 when it does not, and again 204."""
    world = World("alice")
    (granted,) = await ask(world, recipe())
    assert await complete(world, granted) is None

    async def terminate() -> Refusal | None:
        return await complete(world, granted, password=STRONG, new_password=None, terminate=True)

    refusal = await terminate()
    assert refusal is not None
    assert refusal.denial is Denial.CONFLICT
    world.mailboxes.exist = None
    refusal = await terminate()
    assert refusal is not None
    assert refusal.denial is Denial.UNAVAILABLE
    world.mailboxes.exist = set()
    assert await terminate() is None
    assert await terminate() is None
    refusal = await complete(world, granted, password=STRONG)
    assert refusal is not None
    assert refusal.denial is Denial.NOT_FOUND


async def test_one_agreement_per_mailbox() -> None:
    """A forwarder that lost its book gets a new agreement; the old one ends with its completion."""
    world = World("alice")
    (old,) = await ask(world, recipe(number=1))
    assert await complete(world, old) is None
    (new,) = await ask(world, recipe(number=2))
    assert await world.granter.check(old.agreement_id, STRONG) is AuthFinding.GOOD
    assert await complete(world, new) is None
    assert await world.granter.check(old.agreement_id, STRONG) is AuthFinding.BAD
    assert [grant.agreement_id for grant in world.live_grants()] == [new.agreement_id]


async def test_a_forwarder_that_is_not_paired_any_more() -> None:
    """Its agreements are good for nothing, and stay on record."""
    world = World("alice")
    (granted,) = await ask(world, recipe())
    assert await complete(world, granted) is None
    world.granter.reload(msgspec.structs.replace(world.settings, forwarders={}))
    assert await world.granter.check(granted.agreement_id, STRONG) is AuthFinding.BAD
    assert await world.granter.find_backing(granted.agreement_id) is None


# --------------------------------------------------------------------------- calls to forwarders


async def test_blocking_forbidden_by_the_owner() -> None:
    """The granter does not even ask where its own domain forbids it; unblocking it does."""
    world = World("alice")
    world.arrive("alice")
    await world.step()
    (grant,) = world.live_grants()
    world.callbacks.reload(msgspec.structs.replace(world.settings, blocking={DOMAIN: False}))
    refusal = await world.callbacks.set_blocked(grant, True, "user")
    assert isinstance(refusal, Refusal)
    assert refusal.denial is Denial.FORBIDDEN
    assert not isinstance(await world.callbacks.set_blocked(grant, False, "user"), Refusal)


async def test_many_gone_at_once_end_nothing() -> None:
    """More than a fifth of all gone together: the source is to be looked at."""
    names = [f"u{n}" for n in range(30)]
    world = World(*names)
    await ask(world, *(recipe(name, n) for n, name in enumerate(names)))
    world.mailboxes.exist = set(names[10:])
    assert await world.callbacks.end_gone(DOMAIN) == 0
    world.mailboxes.exist = set(names[5:])
    assert await world.callbacks.end_gone(DOMAIN) == 5
    states = [grant.state for grant in world.granter_book.grants.values()]
    assert states.count(GrantState.ENDING) == 5


async def test_an_end_is_told_until_it_is_known() -> None:
    """A forwarder that cannot be reached is told later."""
    world = World("alice")
    world.arrive("alice")
    await world.step()
    real = world.policy

    class Down:
        async def negotiate(self, party: str, asked: object) -> object:
            raise PeerFailure("down", stage="connect")

    world.policy = Down()  # type: ignore[assignment]
    ended = await world.callbacks.end(world.entry().agreement_id)
    assert ended is not None
    assert ended.state is GrantState.ENDING
    world.policy = real
    await world.callbacks.tell_ends()
    (grant,) = world.granter_book.grants.values()
    assert grant.state is GrantState.ENDED
    assert world.entry().end is not None
    assert await world.callbacks.end(grant.agreement_id) is None


async def test_unreachable_holders_are_named() -> None:
    """Where an address is stored is told as far as it is known."""
    world = World("alice")
    world.arrive("alice")
    await world.step()

    class Down:
        async def negotiate(self, party: str, asked: object) -> object:
            raise PeerFailure("refused", stage="connect")

    world.policy = Down()  # type: ignore[assignment]
    (holder,) = await world.callbacks.find_holders(f"alice@{DOMAIN}", "user")
    assert (holder.party, holder.error) == (BACKUP, "connect")
    assert await world.callbacks.find_holders(f"bob@{DOMAIN}", "user") == ()


# --------------------------------------------------------------------------- the other end


def policy(world: World, **members: object) -> PolicyRequest:
    entry = world.entry()
    made = PolicyRequest(
        recipe_id=entry.recipe_id,
        recipe_key=entry.recipe_key,
        agreement_id=entry.agreement_id,
        actor="user",
        get=("blocked",),
    )
    return msgspec.structs.replace(made, **members)


async def test_who_may_negotiate() -> None:
    """Right key, right party, right agreement; each wrong one has its answer."""
    world = World("alice")
    world.arrive("alice")
    await world.step()

    async def denied(party: str = PRIMARY, **members: object) -> Denial | None:
        answer = await world.policy.negotiate(party, policy(world, **members))
        return answer.denial if isinstance(answer, Refusal) else None

    assert await denied() is None
    assert await denied(agreement_id=None) is None
    assert await denied("example.org") is Denial.FORBIDDEN
    assert await denied(recipe_key="x" * 64) is Denial.FORBIDDEN
    assert await denied(recipe_key="ü" * 64) is Denial.FORBIDDEN
    assert await denied(recipe_id="r-9") is Denial.NOT_FOUND
    assert await denied(agreement_id="a-9") is Denial.NOT_FOUND


async def test_what_users_may_not_set() -> None:
    """A user blocks, but neither ends nor resets; a refused set changes nothing."""
    from posthouse.mail.recipes import Settings

    world = World("alice")
    world.arrive("alice")
    await world.step()
    before = world.entry()
    for wanted in (Settings(ended=True), Settings(blocked=True, reset_password="x")):
        answer = await world.policy.negotiate(PRIMARY, policy(world, get=None, set=wanted))
        assert isinstance(answer, Refusal)
        assert answer.denial is Denial.FORBIDDEN
    world.rosters.publish(["alice"], issued_us=0, blocking=False)
    answer = await world.policy.negotiate(
        PRIMARY, policy(world, get=None, set=Settings(blocked=True))
    )
    assert isinstance(answer, Refusal)
    assert world.entry() == before
    answer = await world.policy.negotiate(
        PRIMARY, policy(world, actor="granter", get=None, set=Settings(ended=True))
    )
    assert answer == PolicySettings(ended=True)
    answer = await world.policy.negotiate(
        PRIMARY, policy(world, actor="granter", get=None, set=Settings(blocked=True))
    )
    assert isinstance(answer, Refusal)
    assert answer.denial is Denial.FORBIDDEN
