"""Mail goes under its agreement, and no answer to AUTH stops it."""

from __future__ import annotations

import pytest

from fakes.agreement_secrets import FORWARDER, FakeSecrets
from fakes.relay_world import PRIMARY, World, fixed
from fakes.timers import Timers, turn_over
from fakes.work_source import make_transaction
from posthouse.mail.credentials import Credentials
from posthouse.ports_relay import SessionEnd, Target
from posthouse.ports_spool import QueuedMessage
from posthouse.services.relay_settings import RelaySettings
from posthouse.services.relay_vouching import LONG_US, SHORT_US, Vouching

TARGET = Target("mx.example.com", PRIMARY)
OTHER = Target("mx.example.org", "192.0.2.9")


def mail(*users: str) -> QueuedMessage:
    return make_transaction(*(f"{user}@example.com" for user in users)).message


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def secrets() -> FakeSecrets:
    return FakeSecrets(alice="one", bob="two", carol="3", dave="4", erin="5", frank="6")


@pytest.fixture
def vouching(secrets: FakeSecrets, timers: Timers) -> Vouching:
    return Vouching(secrets, timers.clock_us)


def found(vouching: Vouching, *users: str, target: Target = TARGET) -> str:
    credentials = vouching.find(target, mail(*users))
    return "" if credentials is None else credentials.agreement_id


def refuse(vouching: Vouching, user: str, code: int, target: Target = TARGET) -> None:
    credentials = vouching.find(target, mail(user))
    assert credentials is not None
    vouching.answered(target, credentials, code, "5.7.8 no")


def test_first_recipient_with_an_agreement_speaks_for_the_message(vouching: Vouching) -> None:
    """Mail without an agreement has no credentials, mail with several has one."""
    assert found(vouching, "stranger") == ""
    assert found(vouching, "stranger", "bob", "alice") == "a-bob"


@pytest.mark.parametrize("code", [535, 432])
def test_a_refused_password_is_reported_and_not_used_again(
    vouching: Vouching, secrets: FakeSecrets, code: int
) -> None:
    """535 and 432 ask for completion; a new password is tried."""
    refuse(vouching, "alice", code)
    assert secrets.reported == [("a-alice", f"{code} 5.7.8 no")]
    assert found(vouching, "alice") == ""
    assert found(vouching, "alice", "bob") == "a-bob"
    secrets.table["alice@example.com"] = Credentials(
        agreement_id="a-alice", password="new", forwarder_id=FORWARDER
    )
    assert found(vouching, "alice") == "a-alice"


@pytest.mark.parametrize(
    ("code", "span_us"), [(454, SHORT_US), (421, SHORT_US), (534, LONG_US), (538, LONG_US)]
)
def test_other_refusals_pause_that_next_hop(
    vouching: Vouching, secrets: FakeSecrets, timers: Timers, code: int, span_us: int
) -> None:
    """The password is not to blame: nothing is reported, AUTH rests for a while, elsewhere not."""
    refuse(vouching, "alice", code)
    assert secrets.reported == []
    assert found(vouching, "bob") == ""
    assert found(vouching, "bob", target=OTHER) == "a-bob"
    timers.now_us += span_us
    assert found(vouching, "alice") == "a-alice"


def test_three_refused_passwords_in_a_row_pause(vouching: Vouching, timers: Timers) -> None:
    """Before a fail2ban counts to five we stop; an acceptance in between starts anew."""
    refuse(vouching, "alice", 535)
    refuse(vouching, "bob", 535)
    good = vouching.find(TARGET, mail("carol"))
    assert good is not None
    vouching.answered(TARGET, good, 235, "2.7.0 ok")
    for user in ("carol", "dave"):
        refuse(vouching, user, 535)
        assert found(vouching, "erin") == "a-erin"
    refuse(vouching, "frank", 535)
    assert found(vouching, "erin") == ""
    assert found(vouching, "erin", target=OTHER) == "a-erin"
    timers.now_us += LONG_US
    assert found(vouching, "erin") == "a-erin"


async def test_messages_carry_their_agreement(secrets: FakeSecrets) -> None:
    """The relay gives each transaction the credentials of its recipient."""
    world = World({"example.com": fixed(PRIMARY)}, secrets=secrets)
    await world.start()
    await world.accept("alice@example.com")
    await world.accept("stranger@example.com")
    await turn_over()
    carried = [t.credentials and t.credentials.agreement_id for t in world.peer().received]
    assert carried == ["a-alice", None]
    assert await world.rows() == {}


async def test_a_next_hop_that_hangs_up_at_auth_gets_mail_without(secrets: FakeSecrets) -> None:
    """After a session broke at AUTH the same message goes with no credentials."""
    settings = RelaySettings(own_names=frozenset({"mx2.example.net"}), concurrency=1)
    world = World({"example.com": fixed(PRIMARY)}, settings, secrets=secrets)
    peer = world.peer()
    peer.hold = True
    await world.start()
    queue_id = await world.accept("alice@example.com")
    await turn_over()
    assert peer.received[0].credentials is not None
    peer.hold = False
    peer.open_sessions[0].lose(end=SessionEnd(failure="lost connection", stage="auth"))
    await turn_over(20)
    assert peer.received[-1].credentials is None
    assert peer.delivered == [queue_id]
