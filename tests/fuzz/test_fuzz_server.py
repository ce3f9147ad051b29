"""The server automaton on hostile input: it never raises, never grows, never answers out of turn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fakes.server_owner import QUEUED, Owner
from posthouse.proto.server_events import ServerLimits

LIMITS = ServerLimits(
    hostname="mx2.example.net", max_message_bytes=200, max_recipients=3, max_line=100, max_errors=50
)
WORDS = [
    b"EHLO x\r\n", b"HELO x\r\n", b"MAIL FROM:<a@b.example>\r\n", b"MAIL FROM:<> SMTPUTF8\r\n",
    b"RCPT TO:<alice@example.com>\r\n", b"RCPT TO:<nobody@example.com>\r\n", b"DATA\r\n",
    b"BDAT 5\r\n", b"BDAT 3 LAST\r\n", b"BDAT 0 LAST\r\n", b"abc\r\n", b".\r\n", b"..\r\n", b"\n.\n",
    b"\r", b"\n", b"RSET\r\n", b"NOOP\r\n", b"VRFY x\r\n", b"QUIT\r\n", b"STARTTLS\r\n",
    b"\x00\xff", b"x" * 120, b"RCPT TO:<@a:b@example.com>\r\n", b"MAIL FROM:<a@b> SIZE=999\r\n",
]  # fmt: skip
_streams = st.lists(st.sampled_from(WORDS) | st.binary(max_size=20), max_size=30).map(b"".join)


@given(_streams, st.integers(1, 9))
def test_session_survives_anything(data: bytes, step: int) -> None:
    """Octets in any order and any pieces give the same replies, and nothing bare is ever stored."""
    whole = Owner(LIMITS)
    whole.feed(data)
    pieces = Owner(LIMITS)
    for start in range(0, len(data), step):
        pieces.feed(data[start : start + step])
    assert QUEUED.sub(b"", pieces.output) == QUEUED.sub(b"", whole.output)
    assert pieces.messages == whole.messages
    for message in whole.messages:
        assert len(message) <= LIMITS.max_message_bytes
        assert message.count(b"\n") == message.count(b"\r") == message.count(b"\r\n")
    for line in whole.output.split(b"\r\n")[:-1]:
        assert line[:3].isdigit()
        assert line[3:4] in (b" ", b"-")
