"""The client automaton where dialogues do not reach: content in pieces, order, and odd timing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.work_source import make_transaction
from posthouse.ports_relay import Transaction
from posthouse.proto.client_events import (
    Awaited,
    ContentWanted,
    Ended,
    Event,
    Greeted,
    Probed,
    Returned,
    Settled,
    TlsWanted,
)
from posthouse.proto.smtp_client import ClientSession

NAME = "mx2.example.net"
OK = b"250 ok\r\n"


def opened(*extensions: str, chunking: bool = True) -> ClientSession:
    """A session that may send mail; nothing is left to write."""
    client = ClientSession(NAME, tls="never", chunking=chunking)
    client.feed(b"220 peer.example\r\n")
    client.take_output()
    lines = ["peer.example", *extensions]
    last = len(lines) - 1
    answer = "".join(f"250{'-' if i < last else ' '}{line}\r\n" for i, line in enumerate(lines))
    [event] = client.feed(answer.encode())
    assert isinstance(event, Greeted)
    return client


def begin(client: ClientSession, transaction: Transaction, *, octets: int | None = None) -> None:
    """Hand a transaction over; without a body its content is asked for."""
    body = transaction.body
    size = octets if octets is not None else len(body or b"")
    refusal = client.begin(transaction, transaction.message, body, octets=size, head=body or b"")
    assert refusal is None


def may_begin(client: ClientSession) -> bool:
    return client.may_begin


def awaiting(client: ClientSession) -> Awaited | None:
    return client.awaiting


def written(client: ClientSession) -> bytes:
    return b"".join(client.take_output())


def unstuff(octets: bytes) -> bytes:
    """What a server makes of content (RFC 5321 §4.5.2)."""
    assert octets.endswith(b"\r\n.\r\n") or octets == b".\r\n"
    content, rest = (b"\r\n" + octets).split(b"\r\n.\r\n", 1)
    assert not rest
    return content[2:].replace(b"\r\n.", b"\r\n").removeprefix(b".") + b"\r\n" * bool(content)


content_octets = st.lists(st.sampled_from([b"\r\n", b".", b"..", b"x", b"."]), max_size=40)


@given(pieces=content_octets, cuts=st.lists(st.integers(1, 5), min_size=1))
def test_content_in_pieces_is_stuffed_as_if_it_were_whole(
    pieces: list[bytes], cuts: list[int]
) -> None:
    """However content is cut, the octets sent are those of the whole message."""
    body = b"".join(pieces)
    whole = opened("PIPELINING")
    begin(whole, make_transaction(body=body))
    written(whole)
    whole.feed(OK + OK + b"354 go\r\n")
    client = opened("PIPELINING")
    begin(client, make_transaction(body=None), octets=len(body))
    written(client)
    [wanted] = client.feed(OK + OK + b"354 go\r\n")
    assert isinstance(wanted, ContentWanted)
    rest, turn = body, 0
    while rest:
        size = cuts[turn % len(cuts)]
        client.content(rest[:size])
        rest, turn = rest[size:], turn + 1
    assert client.end_content()
    sent = written(client)
    assert sent == written(whole)
    assert unstuff(sent) == (body if body.endswith(b"\r\n") or not body else body + b"\r\n")


def test_bdat_in_pieces_is_exact() -> None:
    """With CHUNKING a large message goes untouched, after a recipient was taken."""
    client = opened("PIPELINING", "CHUNKING")
    begin(client, make_transaction(body=None), octets=9)
    assert written(client).endswith(b"RCPT TO:<user@example.com>\r\n")
    [wanted] = client.feed(OK + OK)
    assert isinstance(wanted, ContentWanted)
    client.content(b".\r\n.")
    client.content(b"\r\n...")
    assert written(client) == b"BDAT 9 LAST\r\n.\r\n.\r\n..."
    assert client.end_content()
    [settled] = client.feed(b"250 taken\r\n")
    assert isinstance(settled, Settled)
    assert settled.answers == [(250, "taken", "dot")]


@pytest.mark.parametrize("extension", ["CHUNKING", "8BITMIME"])
@pytest.mark.parametrize("pieces", [[b"12"], [b"1234"], [b"12", b"34"]])
def test_content_of_the_wrong_length_is_never_ended(extension: str, pieces: list[bytes]) -> None:
    """Content that has not the octets announced gets no end, and no octet too many is sent."""
    client = opened("PIPELINING", extension)
    begin(client, make_transaction(body=None), octets=3)
    written(client)
    client.feed(OK + OK)
    if extension != "CHUNKING":
        client.feed(b"354 go\r\n")
    written(client)
    assert all(client.content(piece) for piece in pieces) is (pieces == [b"12"])
    assert not client.end_content()
    assert written(client) in (b"", b"12", b"BDAT 3 LAST\r\n", b"BDAT 3 LAST\r\n12")
    returned, ended = client.connection_lost("damaged")
    assert isinstance(returned, Returned)
    assert not returned.after_dot
    assert isinstance(ended, Ended)


def test_nothing_begins_while_content_is_due() -> None:
    """The next envelope goes behind the whole content, never into it."""
    client = opened("PIPELINING")
    begin(client, make_transaction(body=None), octets=2)
    assert not may_begin(client)
    written(client)
    client.feed(OK + OK + b"354 go\r\n")
    client.content(b"\r\n")
    assert not may_begin(client)
    client.end_content()
    assert may_begin(client)
    begin(client, make_transaction(queue_id=2))
    assert not may_begin(client)
    assert written(client).startswith(b"\r\n.\r\nMAIL FROM:")


@pytest.mark.parametrize("reply", [b"552 5.3.4 too much\r\n", b"421 4.3.2 going down\r\n"])
def test_a_refusal_in_the_middle_of_content_is_the_outcome(reply: bytes) -> None:
    """A server that says no before the end is believed, and the session is over."""
    client = opened("PIPELINING")
    begin(client, make_transaction(body=None), octets=9)
    written(client)
    client.feed(OK + OK + b"354 go\r\n")
    client.content(b"123")
    settled, ended = client.feed(reply)
    assert isinstance(settled, Settled)
    assert settled.answers == [(int(reply[:3]), reply[4:-2].decode(), "data")]
    assert isinstance(ended, Ended)
    client.content(b"456")
    assert client.end_content()
    assert written(client) == b""


def test_a_refusal_together_with_354_is_the_outcome() -> None:
    """354 and a refusal in one segment: the content is not sent, the refusal counts."""
    client = opened("PIPELINING")
    begin(client, make_transaction())
    written(client)
    settled, ended = client.feed(OK + OK + b"354 go\r\n550 5.7.1 no\r\n")
    assert isinstance(settled, Settled)
    assert settled.answers == [(550, "5.7.1 no", "data")]
    assert isinstance(ended, Ended)
    assert written(client) == b""


def test_a_250_that_came_before_the_content_was_sent_is_no_delivery() -> None:
    """An acceptance in the segment of the 354 cannot be that of the content."""
    client = opened("PIPELINING")
    begin(client, make_transaction())
    written(client)
    returned, ended = client.feed(OK + OK + b"354 go\r\n250 taken\r\n")
    assert isinstance(returned, Returned)
    assert not returned.after_dot
    assert isinstance(ended, Ended)
    assert ended.failure == "a reply to nothing: 250 taken"
    assert written(client) == b""


def test_a_reply_to_a_command_not_yet_sent_ends_the_session() -> None:
    """In lock-step two replies to one command are out of step."""
    client = opened()
    begin(client, make_transaction())
    written(client)
    returned, ended = client.feed(OK + OK)
    assert isinstance(returned, Returned)
    assert isinstance(ended, Ended)
    assert written(client) == b""


def test_greeting_and_ehlo_reply_at_once_end_the_session() -> None:
    """A server that answers EHLO before it was sent is none."""
    client = ClientSession(NAME)
    [ended] = client.feed(b"220 hi\r\n250 peer.example\r\n")
    assert isinstance(ended, Ended)
    assert ended.stage == "ehlo"


@pytest.mark.parametrize("injected", [b"2", b"250 ok\r\n", b"\r\n", b"\x16\x03\x01"])
@pytest.mark.parametrize("apart", [False, True])
def test_octets_in_clear_behind_starttls_end_the_session(injected: bytes, apart: bool) -> None:
    """Whether in the same segment or in the next, nothing in clear is believed after 220."""
    client = ClientSession(NAME)
    client.feed(b"220 hi\r\n")
    client.take_output()
    client.feed(b"250-peer.example\r\n250 STARTTLS\r\n")
    client.take_output()
    events: list[Event] = []
    for octets in (b"220 go\r\n", injected) if apart else (b"220 go\r\n" + injected,):
        events += client.feed(octets)
    assert isinstance(events[-1], Ended)
    assert events[-1].failure == "octets in clear after the reply to STARTTLS"
    assert any(isinstance(e, TlsWanted) for e in events) is apart
    client.tls_established()
    assert written(client) == b""


def test_what_stands_behind_a_421_was_not_taken() -> None:
    """A whole message sent behind the command that got 421 comes back without a doubt."""
    client = opened("PIPELINING", "CHUNKING")
    begin(client, make_transaction(queue_id=1))
    client.feed(OK + OK)
    client.feed(OK)
    written(client)
    begin(client, make_transaction(queue_id=2))
    begin(client, make_transaction(queue_id=3))
    assert written(client).count(b"BDAT") == 2
    events = client.feed(b"250 ok\r\n250 ok\r\n550 5.7.1 spam\r\n421 4.7.0 too many errors\r\n")
    assert [type(e) for e in events] == [Settled, Returned, Ended]
    assert isinstance(events[1], Returned)
    assert not events[1].after_dot


@pytest.mark.parametrize("code", ["421", "450", "500", "250", "354"])
def test_rset_must_be_taken(code: str) -> None:
    """A server that will not reset gives no known state: the session ends, the mail comes back."""
    client = opened()
    begin(client, make_transaction())
    written(client)
    client.feed(OK)
    written(client)
    client.feed(b"550 5.1.1 no\r\n")
    begin(client, make_transaction(queue_id=2))
    assert written(client) == b"RSET\r\n"
    events = client.feed(f"{code} x\r\n".encode())
    if code == "250":
        assert written(client).startswith(b"MAIL FROM:")
    else:
        assert [type(e) for e in events] == [Returned, Ended]


def test_awaiting_tells_what_to_wait_for() -> None:
    """The driver knows at every moment which time-out holds."""
    client = ClientSession(NAME, tls="if_offered")
    seen = [client.awaiting]
    for octets in (b"220 hi\r\n", b"250-p\r\n250 STARTTLS\r\n", b"220 go\r\n"):
        client.feed(octets)
        client.take_output()
        seen.append(client.awaiting)
    assert seen == [Awaited.GREETING, Awaited.EHLO, Awaited.STARTTLS, Awaited.HANDSHAKE]
    client.tls_established()
    client.take_output()
    assert awaiting(client) is Awaited.EHLO
    client.feed(b"250 p\r\n")
    assert awaiting(client) is None
    assert not client.busy


@pytest.mark.parametrize(("reply", "taken"), [(b"250 ok\r\n", True), (b"550 5.7.1 no\r\n", False)])
def test_probe(reply: bytes, taken: bool) -> None:
    """A probe is MAIL FROM:<> and RSET, and goes on to QUIT."""
    client = opened("PIPELINING")
    client.probe()
    assert written(client) == b"MAIL FROM:<>\r\n"
    client.quit()
    [probed] = client.feed(reply)
    assert isinstance(probed, Probed)
    assert (probed.reply.code < 300) is taken
    if taken:
        assert written(client) == b"RSET\r\n"
        client.feed(OK)
    assert written(client) == b"QUIT\r\n"
    [ended] = client.feed(b"221 bye\r\n")
    assert ended == Ended()


def test_probe_for_recipients() -> None:
    """Each RCPT waits for the one before; all replies come at once; refused MAIL ends it."""
    client = opened("PIPELINING")
    client.probe(["a@example.com", "b@example.com"])
    written(client)
    assert client.feed(OK) == []
    assert written(client) == b"RCPT TO:<a@example.com>\r\n"
    assert client.feed(b"550 5.1.1 no\r\n") == []
    assert written(client) == b"RCPT TO:<b@example.com>\r\n"
    [probed] = client.feed(OK)
    assert isinstance(probed, Probed)
    assert [reply.code for reply in probed.rcpts] == [550, 250]
    assert written(client) == b"RSET\r\n"
    client.feed(OK)
    client.probe(["a@example.com"])
    [refused] = client.feed(b"550 5.7.1 no\r\n")
    assert isinstance(refused, Probed)
    assert refused.rcpts == ()


def test_quit_waits_for_what_is_under_way() -> None:
    """No more work is taken, and QUIT goes when the last answer is there."""
    client = opened("PIPELINING")
    begin(client, make_transaction())
    written(client)
    client.feed(OK + OK + b"354 go\r\n")
    client.quit()
    assert not may_begin(client)
    assert written(client).endswith(b".\r\n")
    [settled] = client.feed(OK)
    assert isinstance(settled, Settled)
    assert written(client) == b"QUIT\r\n"
    assert client.connection_lost("lost connection") == [Ended()]


def test_refused_recipients_keep_their_answer_when_the_session_is_lost() -> None:
    """All refused, then gone before DATA was answered: those refusals are the outcome."""
    client = opened("PIPELINING")
    begin(client, make_transaction("a@x.example", "b@x.example"))
    written(client)
    client.feed(OK + b"550 5.1.1 a\r\n550 5.1.1 b\r\n")
    settled, _ = client.connection_lost("lost connection")
    assert isinstance(settled, Settled)
    assert [a[0] for a in settled.answers] == [550, 550]


def test_one_accepted_recipient_gives_the_transaction_back() -> None:
    """One refused, one accepted, then gone before the dot: nothing is settled."""
    client = opened("PIPELINING")
    begin(client, make_transaction("a@x.example", "b@x.example"))
    written(client)
    client.feed(OK + b"550 5.1.1 a\r\n" + OK)
    returned, _ = client.connection_lost("lost connection")
    assert isinstance(returned, Returned)
    assert not returned.after_dot


def test_a_session_lost_before_any_mail_is_a_failure() -> None:
    """A server that hangs up on an idle session at once must not look healthy."""
    [ended] = opened("PIPELINING").connection_lost("lost connection")
    assert isinstance(ended, Ended)
    assert ended.failure == "lost connection"


def test_everything_is_harmless_after_the_end() -> None:
    """After `Ended` no call raises, says or writes anything."""
    client = opened("PIPELINING")
    client.feed(b"nonsense\r\n")
    assert client.over
    assert client.feed(OK) == []
    assert client.connection_lost("x") == []
    client.probe()
    client.quit()
    client.tls_established()
    client.content(b"x")
    assert client.end_content()
    assert not may_begin(client)
    assert awaiting(client) is None
    assert client.take_output() == []


def test_bdat_goes_at_once_only_after_one_was_answered_in_step() -> None:
    """The first message waits for its recipients' answers, the next ones need not."""
    client = opened("PIPELINING", "CHUNKING")
    begin(client, make_transaction())
    assert b"BDAT" not in written(client)
    client.feed(OK + OK)
    assert b"BDAT" in written(client)
    [settled] = client.feed(OK)
    assert isinstance(settled, Settled)
    begin(client, make_transaction(queue_id=2))
    assert b"BDAT" in written(client)


@pytest.mark.parametrize("last", [b"250 ok\r\n", b"452 4.3.1 disk full\r\n"])
def test_more_replies_than_commands_are_no_delivery(last: bytes) -> None:
    """Where one reply too many came, nobody knows which one was meant for the message."""
    client = opened("PIPELINING", "CHUNKING")
    begin(client, make_transaction())
    client.feed(OK + OK)
    client.feed(OK)
    begin(client, make_transaction(queue_id=2))
    written(client)
    events = client.feed(OK + OK + OK + OK + last)  # RSET, MAIL, RCPT, BDAT and one more
    assert [type(event) for event in events] == [Returned, Ended]
    assert isinstance(events[0], Returned)
    assert events[0].after_dot


@pytest.mark.parametrize("code", [b"221", b"200", b"354"])
def test_only_250_delivers(code: bytes) -> None:
    """Any other positive reply to the final dot ends the session without a delivery."""
    client = opened("PIPELINING")
    begin(client, make_transaction())
    client.feed(OK + OK + b"354 go\r\n")
    written(client)
    events = client.feed(code + b" odd\r\n")
    assert [type(event) for event in events] == [Returned, Ended]
