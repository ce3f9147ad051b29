"""SMTP AUTH over real sockets and TLS: one AUTH a session, and mail goes on whatever is said."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator

import pytest
import trustme

from fakes.scripted_peer import DROP, Answer, ScriptedPeer
from fakes.stored_body import StoredBody
from fakes.work_source import ListSource, make_transaction
from posthouse.mail.credentials import Credentials
from posthouse.ports_relay import Target, Transaction
from posthouse.ports_spool import Body
from posthouse.transports.smtp_out import OutSettings, SmtpConnector

LARGE = b".line\r\n" * 100_000
EXTENSIONS = ("PIPELINING", "AUTH PLAIN LOGIN")


async def open_body(queue_id: int) -> Body:
    return StoredBody(LARGE)


@pytest.fixture(scope="module")
def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("mx.example.com").configure_cert(made)
    return made


@pytest.fixture
async def connector() -> AsyncIterator[SmtpConnector]:
    made = SmtpConnector(OutSettings(helo_name="mx2.example.net"), open_body)
    yield made
    await made.close()


def mail(number: int, agreement: str = "", *, large: bool = False) -> Transaction:
    credentials = Credentials(
        agreement_id=agreement, password=f"of {agreement}", forwarder_id="mx2.example.net"
    )
    return make_transaction(
        queue_id=number,
        body=None if large else b"Subject: x\r\n\r\nx\r\n",
        size_bytes=len(LARGE) if large else None,
        credentials=credentials if agreement else None,
    )


async def send(peer: ScriptedPeer, connector: SmtpConnector, *mails: Transaction) -> ListSource:
    source = ListSource(mails)
    session = await connector.connect(Target("mx.example.com", peer.host, peer.port), source)
    await source.wait_outcomes(len(mails))
    session.quit()
    await session.wait_end()
    return source


async def test_agreements_take_turns_in_one_session(
    context: ssl.SSLContext, connector: SmtpConnector
) -> None:
    """One AUTH, then AUTH= for the others, for small and streamed messages alike."""
    mails = [mail(1), mail(2, "a-1"), mail(3, "a-2", large=True), mail(4), mail(5, "a-1")]
    async with ScriptedPeer(tls=context, extensions=EXTENSIONS) as peer:
        source = await send(peer, connector, *mails)
        assert [m.mail_parameters for m in peer.messages] == [
            "",
            "",
            "AUTH=a-2@mx2.example.net",
            "AUTH=<>",
            "",
        ]
        assert sum(c.startswith("AUTH ") for c in peer.commands) == 1
        assert source.auth_answers == [("a-1", 235, "2.7.0 ok")]


@pytest.mark.parametrize(
    "answer", ["535 5.7.8 no", "454 4.7.0 later", "534 5.7.9 weak", "538 no", "334 ", "500 what"]
)
async def test_a_refusal_stops_no_mail(
    context: ssl.SSLContext, connector: SmtpConnector, answer: Answer
) -> None:
    """Whatever AUTH is answered, both messages arrive in the same session."""
    async with ScriptedPeer({"AUTH": answer}, tls=context, extensions=EXTENSIONS) as peer:
        source = await send(peer, connector, mail(1, "a-1"), mail(2, "a-2", large=True))
        assert [m.mail_parameters for m in peer.messages] == ["", ""]
        assert peer.connections == 1
        assert len(source.auth_answers) == 1
        assert source.auth_answers[0][1] != 235


async def test_who_hangs_up_at_auth_is_told_apart(
    context: ssl.SSLContext, connector: SmtpConnector
) -> None:
    """The message comes back untried and the session's end names AUTH."""
    async with ScriptedPeer({"AUTH": DROP}, tls=context, extensions=EXTENSIONS) as peer:
        source = ListSource([mail(1, "a-1")])
        session = await connector.connect(Target("mx.example.com", peer.host, peer.port), source)
        ended = await session.wait_end()
        assert ended.stage == "auth"
        assert ended.failure is not None
        assert source.returned_with[1][1] is False


async def test_nothing_is_proven_in_clear(connector: SmtpConnector) -> None:
    """A peer that offers AUTH without TLS never sees a password."""
    async with ScriptedPeer(extensions=EXTENSIONS) as peer:
        source = await send(peer, connector, mail(1, "a-1"))
        assert not any(c.startswith("AUTH") for c in peer.commands)
        assert source.auth_answers == []
        assert len(peer.messages) == 1
