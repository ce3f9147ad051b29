"""STARTTLS towards a next hop: the four modes, falling back, and who tampers."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from fakes.raw_peer import raw_peer
from fakes.scripted_peer import DROP, STALL, Answer, ScriptedPeer
from fakes.stored_body import StoredBody
from fakes.work_source import ListSource, make_transaction
from posthouse import observe
from posthouse.errors import NextHopFailure
from posthouse.ports_relay import Target
from posthouse.ports_spool import Body
from posthouse.transports.smtp_out import OutSettings, SmtpConnector
from posthouse.transports.tls import TlsMode

CA = trustme.CA()
LARGE = b".line\r\n" * 100_000


async def open_body(queue_id: int) -> Body:
    return StoredBody(LARGE)


def server_context(*names: str, ca: trustme.CA = CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    path = tmp_path / "roots.pem"
    path.write_bytes(CA.cert_pem.bytes())
    return path


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Any]:
    """What was logged, as a function that gives the texts so far."""
    path = tmp_path / "log"
    observe.configure(fmt="json", to=str(path))
    observe.gather_with(None)
    yield lambda: [json.loads(line)["text"] for line in path.read_text().splitlines()]
    observe.configure()


@pytest.fixture
async def opened_connectors() -> AsyncIterator[list[SmtpConnector]]:
    made: list[SmtpConnector] = []
    yield made
    for connector in made:
        await connector.close()


@pytest.fixture
def make(opened_connectors: list[SmtpConnector], roots: Path) -> Any:
    def make_connector(mode: TlsMode, **settings: float) -> SmtpConnector:
        connector = SmtpConnector(
            OutSettings(helo_name="mx2.example.net", tls=mode, ca_file=roots, **settings),  # type: ignore[arg-type]
            open_body,
        )
        opened_connectors.append(connector)
        return connector

    return make_connector


def target_of(peer: ScriptedPeer, host: str = "mx.example.com") -> Target:
    return Target(host, peer.host, peer.port)


@pytest.mark.parametrize("extensions", [(), ("PIPELINING",), ("PIPELINING", "CHUNKING")])
@pytest.mark.parametrize("mode", ["opportunistic", "required", "verified"])
async def test_messages_go_through_tls(
    make: Any, mode: TlsMode, extensions: tuple[str, ...], notes: Any
) -> None:
    """Small and large messages arrive encrypted and exact."""
    source = ListSource(
        [
            make_transaction(queue_id=1, body=b".small\r\n"),
            make_transaction(queue_id=2, body=None, size_bytes=len(LARGE)),
            make_transaction(queue_id=3, body=LARGE),
        ]
    )
    async with ScriptedPeer(tls=server_context("mx.example.com"), extensions=extensions) as peer:
        session = await make(mode).connect(target_of(peer), source)
        await source.wait_outcomes(3)
        assert [m.content for m in peer.messages] == [b".small\r\n", LARGE, LARGE]
        assert all(m.tls for m in peer.messages)
        session.quit()
        assert (await session.wait_end()).failure is None
        assert peer.commands.count("EHLO mx2.example.net") == 2
        assert peer.connections == 1
    assert notes() == []


async def test_mode_none_never_asks(make: Any) -> None:
    """With "none" STARTTLS is not used even where offered."""
    async with ScriptedPeer(tls=server_context("mx.example.com")) as peer:
        source = ListSource([make_transaction()])
        await make("none").connect(target_of(peer), source)
        await source.wait_outcomes(1)
        assert not peer.messages[0].tls
        assert "STARTTLS" not in peer.commands


@pytest.mark.parametrize("mode", ["required", "verified"])
async def test_no_mail_in_clear_where_tls_is_a_must(make: Any, mode: TlsMode) -> None:
    """A next hop without STARTTLS gets no mail, and it is no fault of any user."""
    async with ScriptedPeer() as peer:
        with pytest.raises(NextHopFailure, match="offers no TLS") as caught:
            await make(mode).connect(target_of(peer), ListSource([make_transaction()]))
        assert caught.value.stage == "starttls"
        assert not caught.value.permanent
        assert peer.connections == 1


@pytest.mark.parametrize(
    ("host", "ca"), [("other.example", CA), ("mx.example.com", trustme.CA())], ids=["name", "ca"]
)
async def test_verified_refuses_the_wrong_certificate(make: Any, host: str, ca: trustme.CA) -> None:
    """A wrong name or issuer ends the session before any mail; there is no second try in clear."""
    async with ScriptedPeer(tls=server_context("mx.example.com", ca=ca)) as peer:
        with pytest.raises(NextHopFailure, match="certificate verification failed") as caught:
            await make("verified").connect(target_of(peer, host), ListSource([make_transaction()]))
        assert caught.value.stage == "starttls"
        assert peer.connections == 1


@pytest.mark.parametrize("mode", ["opportunistic", "required"])
async def test_unverified_modes_take_any_certificate(make: Any, mode: TlsMode) -> None:
    """Without verification a certificate of anybody for any name is encryption enough."""
    async with ScriptedPeer(tls=server_context("x.example", ca=trustme.CA())) as peer:
        source = ListSource([make_transaction()])
        await make(mode).connect(target_of(peer), source)
        await source.wait_outcomes(1)
        assert peer.messages[0].tls


async def serve_clear_after_bad_tls(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: list[str], how: str
) -> None:
    """Offer STARTTLS, spoil the handshake, and take mail from whoever does not ask for it."""
    writer.write(b"220 hi\r\n")
    await reader.readline()
    writer.write(b"250-p.example\r\n250 STARTTLS\r\n")
    command = (await reader.readline()).decode().strip()
    seen.append(command)
    if command == "STARTTLS":
        writer.write(b"220 go\r\n")
        await reader.read(1)
        if how == "rubbish":
            writer.write(b"500 what is this?\r\n")
        elif how == "silence":
            await reader.read()
        return
    for answer in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
        writer.write(answer)
        await reader.readline()
    await reader.readuntil(b"\r\n.\r\n")
    writer.write(b"250 taken\r\n")
    await reader.readline()


@pytest.mark.parametrize("how", ["rubbish", "close", "silence"])
async def test_opportunistic_goes_on_in_clear_once(make: Any, notes: Any, how: str) -> None:
    """A handshake that fails is tried no second time: the mail goes in clear, and a note says so."""
    seen: list[str] = []
    connector = make("opportunistic", command_timeout=0.5 if how == "silence" else 300.0)
    source = ListSource([make_transaction()])
    async with raw_peer(lambda r, w: serve_clear_after_bad_tls(r, w, seen, how)) as port:
        session = await connector.connect(Target("mx.example.com", "127.0.0.1", port), source)
        await source.wait_outcomes(1)
        session.quit()
        await session.wait_end()
    assert seen == ["STARTTLS", "MAIL FROM:<from@client.example>"]
    assert source.finished_with[1][0].code == 250
    [note] = notes()
    assert note.startswith(f"TLS with mx.example.com[127.0.0.1]:{port} failed: ")
    assert note.endswith("; sending in clear")


@pytest.mark.parametrize("how", ["rubbish", "close"])
async def test_required_does_not_go_on_in_clear(make: Any, how: str) -> None:
    """Where TLS is a must a failed handshake is a failure, at "starttls", after one try."""
    seen: list[str] = []
    async with raw_peer(lambda r, w: serve_clear_after_bad_tls(r, w, seen, how)) as port:
        with pytest.raises(NextHopFailure) as caught:
            await make("required").connect(
                Target("mx.example.com", "127.0.0.1", port), ListSource([make_transaction()])
            )
    assert caught.value.stage == "starttls"
    assert seen == ["STARTTLS"]


async def test_a_refused_starttls_is_noted(make: Any, notes: Any) -> None:
    """Opportunistic: STARTTLS refused is mail in clear over the same connection, with a note."""
    answers: dict[str, Answer] = {"STARTTLS": "454 4.7.0 no entropy"}
    async with ScriptedPeer(answers, tls=server_context("mx.example.com")) as peer:
        source = ListSource([make_transaction()])
        await make("opportunistic").connect(target_of(peer), source)
        await source.wait_outcomes(1)
        assert peer.connections == 1
    [note] = notes()
    assert "refused STARTTLS: 454 4.7.0 no entropy; sending in clear" in note


@pytest.mark.parametrize("mode", ["opportunistic", "required"])
async def test_injected_replies_end_the_session(make: Any, mode: TlsMode) -> None:
    """Octets in clear behind the 220 end it, with no second try in clear for who tampers."""
    answers: dict[str, Answer] = {"STARTTLS": b"220 go\r\n250-evil\r\n250 SIZE 1\r\n"}
    async with ScriptedPeer(answers, tls=server_context("mx.example.com")) as peer:
        with pytest.raises(NextHopFailure, match="octets in clear") as caught:
            await make(mode).connect(target_of(peer), ListSource([make_transaction()]))
        assert caught.value.stage == "starttls"
        assert peer.connections == 1


async def test_silent_in_the_handshake(make: Any) -> None:
    """A handshake that stalls is given up after the time-out of a command."""
    seen: list[str] = []
    async with raw_peer(lambda r, w: serve_clear_after_bad_tls(r, w, seen, "silence")) as port:
        with pytest.raises(NextHopFailure, match="timed out waiting for TLS handshake"):
            await make("required", command_timeout=0.5).connect(
                Target("mx.example.com", "127.0.0.1", port), ListSource()
            )


async def test_gone_under_tls(make: Any) -> None:
    """A session lost under TLS gives its message back as one in clear does."""
    answers: dict[str, Answer] = {".": DROP}
    async with ScriptedPeer(answers, tls=server_context("mx.example.com")) as peer:
        source = ListSource([make_transaction()])
        session = await make("required").connect(target_of(peer), source)
        assert (await session.wait_end()).failure is not None
    [(_, after_dot)] = source.returned_with.values()
    assert after_dot


async def test_silent_under_tls(make: Any) -> None:
    """Time-outs hold under TLS too."""
    answers: dict[str, Answer] = {"MAIL": STALL}
    async with ScriptedPeer(answers, tls=server_context("mx.example.com")) as peer:
        source = ListSource([make_transaction()])
        connector = make("required", command_timeout=0.5)
        session = await connector.connect(target_of(peer), source)
        assert (await session.wait_end()).failure == "timed out waiting for MAIL"


async def test_probe_through_tls(make: Any) -> None:
    """A probe goes the way mail would go."""
    async with ScriptedPeer(tls=server_context("mx.example.com")) as peer:
        await make("verified").probe(target_of(peer))
        assert peer.commands[1:3] == ["STARTTLS", "EHLO mx2.example.net"]
        await peer.wait_command("QUIT")
