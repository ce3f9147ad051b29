"""Sessions with servers of other makes: Postfix and its smtp-sink."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from fakes.stored_body import StoredBody
from fakes.work_source import ListSource, make_transaction
from peers.postfix import Delivered, Postfix
from peers.smtp_tools import SmtpSink
from posthouse.ports_relay import Target
from posthouse.ports_spool import Body, QueuedRecipient
from posthouse.transports.smtp_out import OutSettings, SmtpConnector

pytestmark = pytest.mark.peers

CA = trustme.CA()
LARGE = b"Subject: large\r\n\r\n" + b".a line of some length that begins with a dot\r\n" * 50_000


async def open_body(queue_id: int) -> Body:
    return StoredBody(LARGE)


def settings_for(roots: Path | None = None, *, chunking: bool = True) -> OutSettings:
    return OutSettings(
        helo_name="mx2.example.net",
        tls="verified" if roots is not None else "none",
        ca_file=roots,
        chunking=chunking,
    )


@pytest.mark.parametrize("options", [(), ("-p",), ("-e",), ("-8", "-N")], ids=" ".join)
async def test_smtp_sink_takes_everything(tmp_path: Path, options: tuple[str, ...]) -> None:
    """With and without PIPELINING and ESMTP every message is taken, over several sessions."""
    count = 300
    source = ListSource(
        make_transaction("a@x.example", "b@x.example", body=b".x\r\n" * i, queue_id=i)
        for i in range(count)
    )
    with SmtpSink(tmp_path, options=options) as sink:
        connector = SmtpConnector(settings_for(), open_body)
        target = Target("sink.example", "127.0.0.1", sink.port)
        sessions = [await connector.connect(target, source) for _ in range(4)]
        await source.wait_outcomes(count)
        for session in sessions:
            session.quit()
            assert (await session.wait_end()).failure is None
        await asyncio.to_thread(sink.wait_messages, count)
    assert source.returned_with == {}
    assert {r.code for rs in source.finished_with.values() for r in rs} == {250}


@pytest.mark.parametrize(
    ("options", "stage"),
    [
        (("-f", "MAIL"), "mail"),
        (("-r", "RCPT"), "rcpt"),
        (("-f", "DATA"), "data"),
        (("-r", "."), "dot"),
        (("-Q", "RCPT"), "rcpt"),
        (("-Q", "."), "dot"),
        (("-A", "0"), "data or dot"),  # 550 right behind 354: our dot may be out already
    ],
    ids=" ".join,
)
async def test_smtp_sink_refuses(tmp_path: Path, options: tuple[str, ...], stage: str) -> None:
    """Each way of smtp-sink to refuse is told at its stage."""
    source = ListSource([make_transaction()])
    with SmtpSink(tmp_path, options=options) as sink:
        connector = SmtpConnector(settings_for(), open_body)
        await connector.connect(Target("sink.example", "127.0.0.1", sink.port), source)
        await source.wait_outcomes(1)
        await connector.close()
    [result] = source.finished_with[1]
    assert result.stage in stage.split(" or ")
    assert result.code >= 400


@pytest.mark.parametrize(
    ("options", "after_dot"), [(("-q", "RCPT"), False), (("-q", "."), True)], ids=str
)
async def test_smtp_sink_hangs_up(
    tmp_path: Path, options: tuple[str, ...], after_dot: bool
) -> None:
    """A session smtp-sink drops gives the message back."""
    source = ListSource([make_transaction()])
    with SmtpSink(tmp_path, options=options) as sink:
        connector = SmtpConnector(settings_for(), open_body)
        await connector.connect(Target("sink.example", "127.0.0.1", sink.port), source)
        await source.wait_outcomes(1)
        await connector.close()
    [(_, after)] = source.returned_with.values()
    assert after is after_dot


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Chain, key and roots of the primary."""
    folder = tmp_path_factory.mktemp("certificate")
    issued = CA.issue_cert("mail.example.com")
    chain, key, roots = folder / "chain.pem", folder / "key.pem", folder / "roots.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    roots.write_bytes(CA.cert_pem.bytes())
    return chain, key, roots


@pytest.fixture
def primary(certificate: tuple[Path, Path, Path]) -> Iterator[Postfix]:
    chain, key, _ = certificate
    with Postfix.primary(certificate=chain, private_key=key) as instance:
        yield instance


@pytest.mark.parametrize("chunking", [True, False])
async def test_postfix_takes_every_message_exactly(
    primary: Postfix, certificate: tuple[Path, Path, Path], chunking: bool
) -> None:
    """Over verified TLS, by BDAT and by DATA, what Postfix stores is what was sent."""
    bodies = [
        b"Subject: 1\r\n\r\nplain\r\n",
        b"Subject: 2\r\n\r\n.\r\n..\r\n.dots\r\n\r\n.\r\n",
        "Subject: 3\r\n\r\nacht bit: äöü\r\n".encode(),
        LARGE,
        b"Subject: 5\r\n\r\n" + b"z" * 900 + b"\r\n",
    ]
    row = QueuedRecipient(
        seq=0, address="user@example.com", domain="example.com", notify="NEVER",
        orcpt="rfc822;user@example.com",
    )  # fmt: skip
    source = ListSource(
        make_transaction(
            row,
            sender=f"s{i}@x.example",
            body=None if body is LARGE else body,
            size_bytes=len(body),
            body_type="8BITMIME" if i == 2 else "",
            smtputf8=i == 2,
            ret="HDRS",
            envid="id+3D1",
            queue_id=i,
        )
        for i, body in enumerate(bodies)
    )
    connector = SmtpConnector(settings_for(certificate[2], chunking=chunking), open_body)
    target = Target("mail.example.com", "127.0.0.1", primary.port)
    session = await connector.connect(target, source)
    await source.wait_outcomes(len(bodies))
    session.quit()
    assert (await session.wait_end()).failure is None
    assert [r[0].code for r in source.finished_with.values()] == [250] * len(bodies)
    stored: list[Delivered] = await asyncio.to_thread(primary.wait_messages, len(bodies))
    assert {d.return_path: d.content for d in stored} == {
        f"s{i}@x.example": body for i, body in enumerate(bodies)
    }
    assert all("SMTPS" in d.received for d in stored)  # ESMTPS, UTF8SMTPS


@pytest.mark.parametrize("chunking", [True, False])
async def test_postfix_refuses_recipients(
    primary: Postfix, certificate: tuple[Path, Path, Path], chunking: bool
) -> None:
    """Unknown users get their 550, known ones their mail, in one session in any mixture."""
    rows = [
        ("nobody@example.com",),
        ("user@example.com", "nobody@example.com"),
        ("none@example.com", "nobody@example.com"),
        ("user@elsewhere.example",),
        ("postmaster@example.com",),
    ]
    source = ListSource(
        make_transaction(*row, sender=f"s{i}@x.example", queue_id=i)
        for i, row in enumerate(rows * 5)
    )
    connector = SmtpConnector(settings_for(certificate[2], chunking=chunking), open_body)
    target = Target("mail.example.com", "127.0.0.1", primary.port)
    await connector.probe(target)
    session = await connector.connect(target, source)
    await source.wait_outcomes(len(rows) * 5)
    session.quit()
    assert (await session.wait_end()).failure is None
    codes = [[r.code for r in source.finished_with[i]] for i in range(len(rows) * 5)]
    assert codes == [[550], [250, 550], [550, 550], [554], [250]] * 5
    stored = await asyncio.to_thread(primary.wait_messages, 10)
    assert len(stored) == 10
