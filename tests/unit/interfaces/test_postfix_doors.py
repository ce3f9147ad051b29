"""The two servers for Postfix over real sockets: answers, bounds, and how they end."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fakes.granted import FakeGranted
from posthouse.interfaces.dovecot_auth import DovecotAuthDoor
from posthouse.interfaces.local_door import Line, LocalDoor, Place
from posthouse.interfaces.postfix_policy import PostfixPolicyDoor


@pytest.fixture
def granted() -> FakeGranted:
    made = FakeGranted()
    made.grant("a-1", "one", "alice@example.com", "example.com")
    made.grant("a-2", "two", "bob@example.com", "example.com")
    made.grant("a-9", "nine", "alice@example.com", "example.com", forwarder="mx9.example.net")
    made.expired["a-3"] = "once"
    return made


@pytest.fixture
async def auth(granted: FakeGranted) -> AsyncIterator[DovecotAuthDoor]:
    door = DovecotAuthDoor(granted)
    yield door
    await door.close()


@pytest.fixture
async def policy(granted: FakeGranted) -> AsyncIterator[PostfixPolicyDoor]:
    door = PostfixPolicyDoor(granted)
    yield door
    await door.close()


async def ask_auth(path: Path, *pairs: tuple[str, str]) -> str:
    """Everything the server says to some attempts with PLAIN, after its greeting."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    greeting = await reader.readuntil(b"DONE\n")
    assert greeting.startswith(b"VERSION\t1\t")
    writer.write(b"VERSION\t1\t1\nCPID\t1\n")
    for number, (user, password) in enumerate(pairs, 1):
        response = b64encode(f"\0{user}\0{password}".encode())
        writer.write(b"AUTH\t%d\tPLAIN\tsecured\tresp=%b\n" % (number, response))
    writer.write_eof()
    said = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await writer.wait_closed()
    return said.decode()


async def test_agreements_are_judged(auth: DovecotAuthDoor, tmp_path: Path) -> None:
    """Good, wrong, unknown, and a one-time password, which is no good here."""
    path = tmp_path / "auth"
    assert await auth.open(Place(path=path)) == 0
    said = await ask_auth(path, ("a-1", "one"), ("a-1", "x"), ("a-7", "one"), ("a-3", "once"))
    assert said.splitlines() == [
        "OK\t1\tuser=a-1",
        "FAIL\t2\tuser=a-1",
        "FAIL\t3\tuser=a-7",
        "FAIL\t4\tuser=a-3\treason=the agreement must be completed first\tcode=pass_expired",
    ]
    assert path.stat().st_mode & 0o777 == 0o666


async def test_a_book_that_cannot_be_read_is_no_wrong_password(
    auth: DovecotAuthDoor, granted: FakeGranted, tmp_path: Path
) -> None:
    """The connection is closed without an answer: Postfix says 454 then, and 535 to any FAIL."""
    path = tmp_path / "auth"
    await auth.open(Place(path=path))
    granted.unreadable = True
    assert await ask_auth(path, ("a-1", "one")) == ""
    granted.unreadable = False
    assert await ask_auth(path, ("a-1", "one")) == "OK\t1\tuser=a-1\n"


async def ask_policy(port: int, *questions: dict[str, str]) -> list[str]:
    """The answers to some questions."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for question in questions:
        lines = {"request": "smtpd_access_policy", "protocol_state": "RCPT", **question}
        writer.write("".join(f"{k}={v}\n" for k, v in lines.items()).encode() + b"\n")
    writer.write_eof()
    said = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await writer.wait_closed()
    return said.decode().removesuffix("\n\n").split("\n\n")


async def test_mail_under_an_agreement_is_let_through(
    policy: PostfixPolicyDoor, granted: FakeGranted
) -> None:
    """An agreement in force passes for its forwarder's domains; AUTH= must name one of the same."""
    port = await policy.open(Place(host="127.0.0.1"))
    alice = {"sasl_username": "a-1", "recipient": "alice@example.com"}
    answers = await ask_policy(
        port,
        alice,
        {"recipient": "alice@example.com"},
        {**alice, "recipient": "x@other.example"},
        {**alice, "sasl_username": "a-7"},
        {**alice, "sasl_sender": "a-2@mx2.example.net"},
        {**alice, "sasl_sender": "a-9@mx9.example.net"},
        {**alice, "sasl_sender": "a-9@mx2.example.net"},
        {**alice, "sasl_sender": "a-7@mx2.example.net"},
    )
    permit, dunno = "action=permit_auth_destination", "action=DUNNO"
    assert answers == [permit, dunno, dunno, dunno, permit, dunno, dunno, dunno]
    del granted.backing["a-1"]  # ended
    assert await ask_policy(port, alice) == [dunno]
    granted.unreadable = True
    assert await ask_policy(port, alice) == [dunno]


async def test_who_does_not_speak_the_protocol_is_cut_off(
    auth: DovecotAuthDoor, policy: PostfixPolicyDoor
) -> None:
    """Garbage ends the connection at once; the next one is served."""
    for door in (auth, policy):
        port = await door.open(Place(host="127.0.0.1"))
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await asyncio.wait_for(reader.read(), 20)
            writer.close()
            await writer.wait_closed()


async def test_connections_are_bounded_and_silent_ones_end() -> None:
    """One too many is closed at once; who says nothing is let go after a while."""
    ended = asyncio.Event()

    async def duty(line: Line) -> None:
        try:
            await line.read()
        finally:
            ended.set()

    door = LocalDoor("auth", duty, idle_seconds=0.05, max_connections=1)
    port = await door.open(Place(host="127.0.0.1"))
    first = await asyncio.open_connection("127.0.0.1", port)
    second = await asyncio.open_connection("127.0.0.1", port)
    for reader, writer in (second, first):
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        await writer.wait_closed()
    assert ended.is_set()
    await door.close()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(
    auth: DovecotAuthDoor, granted: FakeGranted, tmp_path: Path
) -> None:
    """Two servers at one path would answer at random."""
    path = tmp_path / ("long" * 40) / "auth"
    path.parent.mkdir()
    await auth.open(Place(path=path))
    other = DovecotAuthDoor(granted)
    with pytest.raises(OSError, match="another process listens there"):
        await other.open(Place(path=path))
    await auth.close()
    assert not path.exists()
