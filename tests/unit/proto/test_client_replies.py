"""The reply parser: what is a reply, what is not, and its bounds."""

from __future__ import annotations

import pytest

from posthouse.proto.replies_in import (
    MAX_LINE_BYTES,
    MAX_REPLY_LINES,
    MAX_TEXT,
    PeerReply,
    ReplyParser,
)


def parse(octets: bytes, size: int = 1 << 20) -> tuple[list[PeerReply], str]:
    """All replies and how the stream broke, fed `size` octets at a time."""
    parser = ReplyParser()
    replies: list[PeerReply] = []
    for at in range(0, len(octets), size):
        replies += parser.feed(octets[at : at + size])
    return replies, parser.broken


def held(parser: ReplyParser) -> bool:
    return parser.mid_reply


@pytest.mark.parametrize(
    ("octets", "code", "text"),
    [
        (b"250 2.0.0 ok\r\n", 250, "2.0.0 ok"),
        (b"250\r\n", 250, ""),  # RFC 5321 §4.2: the text may be missing
        (b"250 \r\n", 250, ""),
        (b"250-a\r\n250 b\r\n", 250, "a b"),
        (b"250-a\r\n250\r\n", 250, "a"),
        (b"550-5.1.1 no\r\n550-5.1.1 such\r\n550 5.1.1 user\r\n", 550, "5.1.1 no such user"),
        (b"599 x\n", 599, "x"),  # bare LF, as Postfix and Exim read it
        ("250 grüße\r\n".encode(), 250, "grüße"),
        (b"250 a\x00b\x1b[2J\rc\xff\r\n", 250, "a?b?[2J?c\ufffd"),  # nothing to forge a log with
    ],
)
@pytest.mark.parametrize("size", [1 << 20, 1])
def test_replies(octets: bytes, code: int, text: str, size: int) -> None:
    """Codes and texts as RFC 5321 §4.2 has them, the text always one printable line."""
    replies, broken = parse(octets, size)
    assert [(r.code, r.text) for r in replies] == [(code, text)]
    assert not broken


@pytest.mark.parametrize(
    "octets",
    [
        b"\r\n",
        b"25\r\n",
        b"2500 x\r\n",
        b"199 x\r\n",
        b"600 x\r\n",
        b"2x0 x\r\n",
        b" 250 x\r\n",
        b"250_x\r\n",
        b"+OK\r\n",
        b"250-a\r\n251 b\r\n",
        b"250-a\r\nb\r\n",
        b"250-a\r\n250_b\r\n",
        b"\xb250 x\r\n",
    ],
)
@pytest.mark.parametrize("size", [1 << 20, 1])
def test_what_is_no_reply_breaks_the_stream(octets: bytes, size: int) -> None:
    """What came before still counts, nothing after it does."""
    replies, broken = parse(b"220 hi\r\n" + octets + b"250 ok\r\n", size)
    assert [r.code for r in replies] == [220]
    assert broken


@pytest.mark.parametrize("size", [1 << 20, 1000, 1])
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_longest_line(size: int, end: bytes) -> None:
    """A line of MAX_LINE_BYTES is read, one octet more is not, ended or not."""
    longest = b"250 " + b"x" * (MAX_LINE_BYTES - 4)
    assert parse(longest + end, size)[1] == ""
    assert parse(longest + b"x" + end, size)[1] == "a reply line too long"
    assert parse(longest + b"xx", size)[1] == "a reply line too long"


@pytest.mark.parametrize("size", [1 << 20, 1])
def test_most_lines(size: int) -> None:
    """A reply of MAX_REPLY_LINES lines is read, one more is not."""
    replies, broken = parse(b"250-x\r\n" * (MAX_REPLY_LINES - 1) + b"250 x\r\n", size)
    assert len(replies) == 1
    assert not broken
    assert parse(b"250-x\r\n" * MAX_REPLY_LINES, size) == ([], "a reply of too many lines")


def test_text_is_bounded() -> None:
    """However much a peer says, `text` stays short enough for a log and a queue row."""
    replies, _ = parse(b"250-" + b"\xc3\xa4" * 2000 + b"\r\n250 " + b"y" * 4000 + b"\r\n")
    assert len(replies[0].text) == MAX_TEXT


def test_mid_reply_tells_what_is_held() -> None:
    """Octets of an unfinished line or reply are known to be there."""
    parser = ReplyParser()
    parser.feed(b"250 ok\r\n")
    assert not held(parser)
    parser.feed(b"2")
    assert held(parser)
    parser.feed(b"50-ok\r\n")
    assert held(parser)
    assert len(parser.feed(b"250 ok\r\n")) == 1
    assert not held(parser)
