"""What a server offers, and the commands that are made of it."""

from __future__ import annotations

import pytest

from fakes.work_source import make_transaction
from posthouse.ports_spool import QueuedMessage, QueuedRecipient
from posthouse.proto.client_envelope import EnvelopeCommands, LocalRefusal, format_envelope
from posthouse.proto.client_extensions import Extensions, parse_extensions
from posthouse.proto.replies_in import PeerReply

EVERYTHING = Extensions(
    pipelining=True, size_limit=0, eightbitmime=True, smtputf8=True, dsn=True, chunking=True
)


def offered(*lines: str) -> Extensions:
    return parse_extensions(PeerReply(250, b"peer.example", tuple(s.encode() for s in lines)))


@pytest.mark.parametrize(
    ("line", "limit"),
    [
        ("SIZE", 0),
        ("SIZE 0", 0),
        ("size 1000", 1000),
        ("SIZE 1000 more", 1000),
        ("SIZE -1", 0),
        ("SIZE x", 0),
        ("SIZE " + "9" * 20, int("9" * 20)),
        ("SIZE " + "9" * 21, 0),
        ("SIZE \u0663", 0),  # a digit, but not ours
        ("SIZE=1000", None),
        ("RESIZE 1000", None),
    ],
)
def test_size(line: str, limit: int | None) -> None:
    """The limit that SIZE names; no readable number is no limit (RFC 1870 §4)."""
    assert offered(line).size_limit == limit


def test_keywords_are_read_without_case_and_others_passed_over() -> None:
    """Every extension this client uses is recognised, whatever stands around it."""
    found = offered(
        "PIPElining", "8BITMIME", "", "SmtpUtf8", "DSN", "CHUNKING", "ENHANCEDSTATUSCODES",
        "STARTTLS", "AUTH=LOGIN", "X-STRANGE \x00 \ufffd", "  ", "XCLIENT NAME",
    )  # fmt: skip
    assert found == Extensions(
        pipelining=True,
        eightbitmime=True,
        smtputf8=True,
        dsn=True,
        chunking=True,
        enhanced_codes=True,
        starttls=True,
    )


def test_the_first_line_offers_nothing() -> None:
    """The server's name is not taken for an extension."""
    assert parse_extensions(PeerReply(250, b"PIPELINING")) == Extensions()


def message(*recipients: str | QueuedRecipient, **more: object) -> QueuedMessage:
    return make_transaction(*recipients, **more).message  # type: ignore[arg-type]


def test_quoted_local_parts_go_as_they_are() -> None:
    """An address is written exactly as the client spelled it."""
    commands = format_envelope(message('"a b\\"c"@y.example'), EVERYTHING, b"")
    assert isinstance(commands, EnvelopeCommands)
    assert commands.rcpts == [b'RCPT TO:<"a b\\"c"@y.example>\r\n']


def test_nothing_is_declared_that_was_not() -> None:
    """A 7-bit message without DSN wishes has SIZE and nothing else."""
    commands = format_envelope(message("b@y.example", body=b"12345"), EVERYTHING, b"")
    assert commands == EnvelopeCommands(
        b"MAIL FROM:<from@client.example> SIZE=5\r\n", [b"RCPT TO:<b@y.example>\r\n"]
    )


@pytest.mark.parametrize(
    "spoiled",
    [
        {"sender": "a@x.example>\r\nRCPT TO:<evil@z.example"},
        {"sender": "a\n@x.example"},
        {"envid": "1\r\nDATA"},
        {"ret": "FULL\x00"},
        {"sender": "\udc80@x.example"},
    ],
)
def test_an_envelope_cannot_become_two_commands(spoiled: dict[str, str]) -> None:
    """Control characters in any part are refused here, nothing of it is sent."""
    refusal = format_envelope(message("b@y.example", **spoiled), EVERYTHING, b"")
    assert isinstance(refusal, LocalRefusal)
    assert refusal.code == 553


@pytest.mark.parametrize("part", ["address", "notify", "orcpt"])
def test_a_recipient_cannot_become_two_commands(part: str) -> None:
    """The same for what belongs to a recipient."""
    values = {"address": "b@y.example", part: "x\r\nQUIT"}
    row = QueuedRecipient(seq=0, domain="y.example", **values)  # type: ignore[arg-type]
    assert isinstance(format_envelope(message(row), EVERYTHING, b""), LocalRefusal)


@pytest.mark.parametrize(
    ("head", "goes"),
    [
        (b"Subject: x\r\n\r\nbody \xc3\xa4", True),
        (b"Subject: \xc3\xa4\r\n\r\nbody", False),
        (b"Subject: no end of header \xc3\xa4", False),
        (b"", True),
    ],
)
def test_smtputf8_is_needed_for_the_header_not_for_the_body(head: bytes, goes: bool) -> None:
    """Eight-bit text below the header is no reason to keep a message back."""
    result = format_envelope(message("b@y.example", smtputf8=True), Extensions(), head)
    assert isinstance(result, EnvelopeCommands) is goes


@pytest.mark.parametrize(("limit", "goes"), [(0, True), (9, False), (10, True), (None, True)])
def test_size_limit_is_inclusive(limit: int | None, goes: bool) -> None:
    """A message of exactly the limit is offered."""
    result = format_envelope(
        message("b@y.example", body=b"x" * 10), Extensions(size_limit=limit), b""
    )
    assert isinstance(result, EnvelopeCommands) is goes
