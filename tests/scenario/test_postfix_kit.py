"""The primary kit against a real Postfix, with the lines of docs/postfix-kit.md as they stand there.

Postgrey greylists, a stand-in for an SPF policy refuses everybody it is asked
about: what comes under an agreement meets neither, a stranger meets both.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fakes.agreement_secrets import FakeSecrets
from fakes.granted import FakeGranted
from peers.postfix import Postfix
from peers.postfix_kit import Backup, SpfStandIn, make_primary, read_main_cf
from peers.postgrey import Postgrey
from peers.processes import find_program
from peers.smtp_tools import swaks
from posthouse.interfaces.dovecot_auth import DovecotAuthDoor
from posthouse.interfaces.local_door import Place
from posthouse.interfaces.postfix_policy import PostfixPolicyDoor

pytestmark = pytest.mark.peers


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Postfix]:
    """Configured by the document; not started."""
    made = make_primary(tmp_path, "alice", "bob", "carol", "postmaster")
    yield made
    made.remove()


@pytest.fixture
def postgrey(tmp_path: Path, primary: Postfix) -> Iterator[Postgrey]:
    socket = primary.queue_directory / "postgrey" / "socket"
    with Postgrey(tmp_path, delay=300, socket=socket) as made:
        yield made


@pytest.fixture
async def spf(primary: Postfix) -> AsyncIterator[SpfStandIn]:
    made = SpfStandIn()
    await made.door.open(Place(path=primary.queue_directory / "private" / "policyd-spf"))
    yield made
    await made.door.close()


@pytest.fixture
def granted() -> FakeGranted:
    made = FakeGranted()
    made.grant("a-alice", "one", "alice@example.com", "example.com")
    made.grant("a-bob", "two", "bob@example.com", "example.com")
    made.expired["a-carol"] = "once"
    return made


@pytest.fixture
async def kit(
    primary: Postfix, granted: FakeGranted, postgrey: Postgrey, spf: SpfStandIn
) -> AsyncIterator[Postfix]:
    """The primary with everything around it, running."""
    auth, policy = DovecotAuthDoor(granted), PostfixPolicyDoor(granted)
    await auth.open(Place(path=primary.queue_directory / "posthouse" / "auth"))
    await policy.open(Place(path=primary.queue_directory / "posthouse" / "policy"))
    with primary:
        yield primary
    await auth.close()
    await policy.close()


@pytest.fixture
def secrets() -> FakeSecrets:
    return FakeSecrets(alice="one", bob="two")


@pytest.fixture
async def backup(primary: Postfix, secrets: FakeSecrets) -> AsyncIterator[Backup]:
    made = Backup(primary.port, secrets)
    yield made
    await made.close()


async def stranger(port: int, helo: str, user: str = "alice", *more: str) -> str:
    """What a stranger's RCPT is answered."""
    sent = await asyncio.to_thread(
        swaks, port, "--helo", helo, "--from", "a@b.example", "--to", f"{user}@example.com", *more
    )
    return sent.transcript


async def test_mail_under_an_agreement_meets_no_greylisting_and_no_spf(
    kit: Postfix, spf: SpfStandIn, backup: Backup
) -> None:
    """Two agreements and one message without pass at once, in one authenticated session."""
    for user in ("alice", "bob", "carol", "alice"):
        await backup.accept(user)
    backup.relay.start()
    messages = await asyncio.to_thread(kit.wait_messages, 4)
    await backup.settled()
    assert sorted(m.recipient for m in messages) == [
        "alice@example.com",
        "alice@example.com",
        "bob@example.com",
        "carol@example.com",
    ]
    assert all("ESMTPSA" in message.received for message in messages)
    assert spf.asked == []
    log = kit.log()
    assert log.count("sasl_method=PLAIN, sasl_username=a-alice") == 4
    assert log.count("sasl_sender=a-bob@mx2.example.net") == 1
    assert "Greylisted" not in log


async def test_a_stranger_is_judged_as_before(kit: Postfix, spf: SpfStandIn) -> None:
    """SPF first, then greylisting; a recipient that does not exist gets its 550."""
    assert "550 5.7.23" in await stranger(kit.port, "foe.example")
    assert "Greylisted" in await stranger(kit.port, "friend.example")
    assert "Greylisted" in await stranger(kit.port, "friend.example", "alice", "--tls")
    assert len(spf.asked) == 3
    assert kit.messages() == []


async def test_an_agreement_is_no_licence(kit: Postfix, backup: Backup) -> None:
    """Unknown users stay unknown, and nobody relays with an agreement."""
    await backup.accept("alice")
    await backup.accept("nobody")
    backup.relay.start()
    await backup.settled("550 5.1.1")
    login = ("--tls", "--auth", "PLAIN", "--auth-user", "a-alice", "--auth-password", "one")
    foreign = await asyncio.to_thread(
        swaks, kit.port, "--from", "a@b.example", "--to", "x@elsewhere.example", *login
    )
    assert "235 2.7.0" in foreign.transcript
    assert "554 5.7.1" in foreign.transcript


async def test_a_refused_password_stops_no_mail(
    kit: Postfix, backup: Backup, secrets: FakeSecrets, granted: FakeGranted
) -> None:
    """535: the agreement is to be completed anew; mail is then a stranger's."""
    secrets.table["carol@example.com"] = FakeSecrets(carol="once").table["carol@example.com"]
    await backup.accept("carol")
    backup.relay.start()
    await backup.settled("550 5.7.23 ")
    assert [agreement for agreement, _ in secrets.reported] == ["a-carol"]
    assert "535 5.7.8" in secrets.reported[0][1]
    assert granted.asked == ["a-carol"]
    assert kit.messages() == []


async def test_a_book_that_cannot_be_read_is_454(
    kit: Postfix, backup: Backup, secrets: FakeSecrets, granted: FakeGranted
) -> None:
    """No password is called wrong for our own trouble."""
    granted.unreadable = True
    await backup.accept("alice")
    backup.relay.start()
    await backup.settled("550 5.7.23 ")
    assert secrets.reported == []
    assert "454 4.7.0" in await stranger(
        kit.port, "friend.example", "alice", "--tls", "--auth", "PLAIN",
        "--auth-user", "a-alice", "--auth-password", "one",
    )  # fmt: skip


async def test_without_primary_serve(primary: Postfix, postgrey: Postgrey, spf: SpfStandIn) -> None:
    """What the document warns of: in clear as ever, under TLS not while the SASL socket is gone."""
    with primary:
        assert "Greylisted" in await stranger(primary.port, "friend.example")
        await stranger(primary.port, "friend.example", "alice", "--tls")
        assert "fatal: no SASL authentication mechanisms" in primary.log()
        primary.set_parameters({"smtpd_sasl_auth_enable": "no"})  # its remedy
        await asyncio.to_thread(primary.restart)
        assert "Greylisted" in await stranger(primary.port, "friend.example", "alice", "--tls")


def test_postfix_reads_the_lines_as_they_are_meant(primary: Postfix) -> None:
    """`postconf` knows every name, and nothing is warned of."""
    done = subprocess.run(
        [find_program("postconf", "postfix"), "-n", "-c", str(primary.config_directory)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    for name, value in read_main_cf().items():
        assert f"{name} = {value}" in done.stdout
