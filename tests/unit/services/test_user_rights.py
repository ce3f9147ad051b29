"""What mailbox owners may know and do: links, visits, servers, blocks; and what strangers learn."""

from __future__ import annotations

import pytest

from fakes.rights_stage import FORBIDDEN, MINUTE_US, World, grant, secret_in
from posthouse.errors import PeerFailure, StorageBroken
from posthouse.mail.recipes import Denial
from posthouse.ports_agreements import GrantState
from posthouse.ports_rights import Visit
from posthouse.services import user_rights


@pytest.fixture
async def world() -> World:
    return World()


async def visit(world: World, address: str = "alice@example.com") -> Visit:
    secret = world.rights.redeem(await world.get_link(address))
    assert secret is not None
    found = world.rights.find_visit(secret)
    assert found is not None
    return found


# --------------------------------------------------------------------------- links


async def test_a_link_goes_to_the_mailbox(world: World) -> None:
    """However the address is spelled, the mail goes to the mailbox itself, and says what it is."""
    await world.get_link("Alice+Shop@EXAMPLE.com")
    recipient, subject, text = world.sent[0]
    assert recipient == "alice@example.com"
    assert "alice@example.com" in text
    assert "30 minutes" in text
    assert "link" in subject
    assert len(secret_in(text)) >= user_rights.SECRET_BYTES


@pytest.mark.parametrize(
    "address",
    ["nobody@example.com", "alice@example.org", "alice", "", "@", "a b@example.com", "\udcff@x"],
)
async def test_others_get_the_same_answer_and_no_mail(world: World, address: str) -> None:
    """Whether an address exists shows neither in the answer nor in what happened before it."""
    assert world.rights.ask_link(address, "192.0.2") == 0
    assert world.looked_up == []  # nothing was done before the answer
    await world.settle()
    assert world.sent == []


@pytest.mark.parametrize("part", ["addresses", "mail"])
async def test_failures_do_not_show(world: World, part: str) -> None:
    """A mail server that is down, or a roster that cannot be read, changes no answer."""
    world.broken.add(part)
    assert world.rights.ask_link("alice@example.com", "192.0.2") == 0
    await world.settle()
    assert world.sent == []


async def test_a_mailbox_is_not_flooded(world: World) -> None:
    """After a few links an address gets no more for a while, whoever asks; the answer is the same."""
    for number in range(10):
        assert world.rights.ask_link("alice@example.com", f"192.0.{number}") == 0
        await world.settle()
    assert len(world.sent) == user_rights.LINKS_AN_HOUR
    world.rights.ask_link("bob@example.com", "198.51.100")
    await world.settle()
    assert world.sent[-1][0] == "bob@example.com"
    world.now_us += 60 * MINUTE_US
    world.rights.ask_link("alice@example.com", "198.51.100")
    await world.settle()
    assert world.sent[-1][0] == "alice@example.com"


async def test_a_network_that_asks_too_much(world: World) -> None:
    """It is told to wait, whatever addresses it names."""
    answers = [
        world.rights.ask_link(f"user{number}@example.com", "192.0.2")
        for number in range(user_rights.ASKED_AN_HOUR_BY_NETWORK + 1)
    ]
    assert answers[:-1] == [0] * user_rights.ASKED_AN_HOUR_BY_NETWORK
    assert answers[-1] > 0
    assert world.rights.ask_link("x@example.com", "198.51.100") == 0
    await world.settle()


async def test_a_link_works_once(world: World) -> None:
    """Looking at it does not use it up, redeeming does."""
    secret = await world.get_link()
    assert world.rights.find_link(secret)
    assert world.rights.find_link(secret)
    assert world.rights.redeem(secret) is not None
    assert not world.rights.find_link(secret)
    assert world.rights.redeem(secret) is None


async def test_a_link_works_for_a_while(world: World) -> None:
    """After its lifetime it is as good as none."""
    secret = await world.get_link()
    world.now_us += 30 * MINUTE_US
    assert not world.rights.find_link(secret)
    assert world.rights.redeem(secret) is None
    assert not world.rights.find_link("")
    assert world.rights.redeem("guessed") is None


async def test_memory_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest link and the oldest visit make room."""
    monkeypatch.setattr(user_rights, "MAX_LINKS", 2)
    monkeypatch.setattr(user_rights, "MAX_VISITS", 2)
    first = await world.get_link()
    await world.get_link()
    await world.get_link()
    assert not world.rights.find_link(first)
    visits = []
    for _ in range(3):
        world.now_us += 20 * MINUTE_US
        visits.append(world.rights.redeem(await world.get_link("bob@example.com")))
        world.now_us -= 20 * MINUTE_US
    assert world.rights.find_visit(visits[0] or "") is None
    assert world.rights.find_visit(visits[2] or "") is not None


# --------------------------------------------------------------------------- visits


async def test_a_visit_ends(world: World) -> None:
    """By time, or because its owner leaves."""
    secret = world.rights.redeem(await world.get_link())
    assert secret is not None
    assert world.rights.find_visit(secret) is not None
    assert world.rights.find_visit(secret + "x") is None
    world.now_us += 29 * MINUTE_US
    assert world.rights.find_visit(secret) is not None
    world.now_us += MINUTE_US
    assert world.rights.find_visit(secret) is None
    other = world.rights.redeem(await world.get_link())
    assert other is not None
    world.rights.leave(other)
    assert world.rights.find_visit(other) is None


async def test_forms_are_bound_to_their_visit(world: World) -> None:
    """The secret of another visit's forms is not good here."""
    first, second = await visit(world), await visit(world)
    assert world.rights.may_post(first, first.csrf)
    assert not world.rights.may_post(first, second.csrf)
    assert not world.rights.may_post(first, "")
    assert not world.rights.may_post(first, "\udcff")


async def test_the_servers(world: World) -> None:
    """Ours first, then by preference; what could not be asked stands last, blocks show."""
    world.grants[1] = grant("mx3.example.net", blocked=True)
    view = await world.rights.look(await visit(world))
    assert view.address == "alice@example.com"
    assert view.may_block
    assert [(one.party, one.own, one.blocked, one.error) for one in view.servers] == [
        ("example.com", True, None, ""),
        ("mx2.example.net", False, False, ""),
        ("mx3.example.net", False, True, ""),
        ("mx4.example.org", False, None, "timeout"),
    ]
    assert view.servers[1].messages == 1234
    assert view.servers[1].agreement_id == "a-mx2-example-net"
    assert view.servers[3].agreement_id == ""


async def test_a_mailbox_without_backups(world: World) -> None:
    """Only we hold it."""
    view = await world.rights.look(await visit(world, "bob@example.com"))
    assert [one.party for one in view.servers] == ["example.com"]


async def test_blocking(world: World) -> None:
    """It is asked of that backup, on behalf of the user."""
    mine = await visit(world)
    assert await world.rights.set_blocked(mine, "a-mx2-example-net", True) is None
    assert await world.rights.set_blocked(mine, "a-mx2-example-net", False) is None
    assert world.blocks == [("mx2.example.net", True, "user"), ("mx2.example.net", False, "user")]


async def test_blocks_of_others_are_out_of_reach(world: World) -> None:
    """Another's agreement, one that ended, one that does not exist: all the same answer."""
    world.grants.append(grant("mx9.example.net", mailbox="bob@example.com"))
    world.grants.append(grant("mx8.example.net", state=GrantState.ENDED))
    mine = await visit(world)
    for agreement_id in ("a-mx9-example-net", "a-mx8-example-net", "nonsense", ""):
        refusal = await world.rights.set_blocked(mine, agreement_id, True)
        assert refusal is not None
        assert refusal.denial is Denial.NOT_FOUND
    assert world.blocks == []


async def test_what_the_backup_says(world: World) -> None:
    """A refusal is handed on, no answer is a failure, a broken book too."""
    mine = await visit(world)
    world.refusal = FORBIDDEN
    assert await world.rights.set_blocked(mine, "a-mx2-example-net", True) == FORBIDDEN
    world.broken.add("backup")
    with pytest.raises(PeerFailure):
        await world.rights.set_blocked(mine, "a-mx2-example-net", True)
    world.broken.add("book")
    with pytest.raises(StorageBroken):
        await world.rights.look(mine)
