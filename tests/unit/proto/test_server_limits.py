"""Limits of the server automaton that a dialogue file would be too long for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fakes.server_owner import Owner
from posthouse.mail.reply import Reply
from posthouse.proto.server_events import Content, DataRequest, Pause, ServerLimits
from posthouse.proto.smtp_server import ServerSession

TAKEN = Reply(250, "2.0.0", "Taken")
OPENING = b"EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<alice@example.com>\r\n"


def test_recipients_over_the_limit_end_in_421() -> None:
    """The first thousand over the limit only hear 452; a client that goes on is cut."""
    owner = Owner(ServerLimits(hostname="mx2.example.net", max_recipients=1, max_errors=3))
    owner.feed(OPENING)
    before = len(owner.output)
    for _ in range(1000):
        owner.feed(b"RCPT TO:<alice@example.com>\r\n")
    assert b"421 " not in owner.output
    assert owner.session.errors == 0
    owner.feed(b"RCPT TO:<alice@example.com>\r\n" * 10)
    assert owner.closed
    said = owner.output[before:]
    assert said.count(b"452 4.5.3 ") == 1003
    assert said.endswith(b"421 4.7.0 mx2.example.net Error: too many errors\r\n")


def test_a_recipient_over_the_limit_is_not_parsed() -> None:
    """Over the limit 452 comes before any look at the address."""
    owner = Owner(ServerLimits(hostname="mx2.example.net", max_recipients=1))
    owner.feed(OPENING)
    before = len(owner.output)
    owner.feed(b"RCPT TO:<not an address>\r\n")
    assert owner.output[before:] == b"452 4.5.3 Too many recipients\r\n"


@given(st.integers(0, 5), st.booleans(), st.integers(0, 4))
def test_large_content_comes_in_slices(extra: int, chunked: bool, behind: int) -> None:
    """A large read is decoded in pieces with a pause after each, and nothing is lost or doubled."""
    session = ServerSession(ServerLimits(hostname="mx2.example.net", bare_newlines="normalize"))
    body = b"\n" * ((1 << 17) - extra) + b"x" + b"\r\n" * extra
    tail = b"NOOP\r\n" * behind
    if chunked:
        content = b"BDAT %d LAST\r\n%b" % (len(body), body)
    else:
        content = b"DATA\r\n" + body + b"\r\n.\r\n"
    session.receive(OPENING + content + tail)
    got, events = b"", []
    while (event := session.next_event()) is not None:
        events.append(type(event))
        if isinstance(event, Content):
            assert len(event.data) <= 1 << 18
            got += event.data
        elif isinstance(event, DataRequest):
            session.open_data()
        elif not isinstance(event, Pause):
            session.answer(TAKEN)
    wanted = b"\r\n" * ((1 << 17) - extra) + b"x" + b"\r\n" * extra
    assert got == (wanted if chunked else wanted + b"\r\n")
    assert events.count(Pause) == 2
    output = session.take_output()
    assert output.count(b"250 2.0.0 Ok\r\n") == behind


def test_a_command_line_counts_with_its_line_end() -> None:
    """At the limit it is obeyed, one octet over it is refused, however the octets come."""
    for cut in (1, 39, 40, 41):
        for spare, reply in ((0, b"250 "), (1, b"500 5.5.2 Line too long")):
            owner = Owner(ServerLimits(hostname="mx2.example.net", max_line=40))
            line = b"NOOP " + b"x" * (33 + spare) + b"\r\n"
            before = len(owner.output)
            owner.feed(line[:cut])
            owner.feed(line[cut:])
            assert owner.output[before:].startswith(reply)
            owner.feed(b"NOOP\r\n")
            assert owner.output.endswith(b"250 2.0.0 Ok\r\n")
