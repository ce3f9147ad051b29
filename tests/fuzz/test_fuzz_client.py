"""The SMTP client against servers that say anything, cut anyhow.

The oracle is the automaton's docstring: it never raises, it does not grow, it
tells each transaction one outcome, and nothing is delivered but by a 2xx to
its own end of data.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fakes.work_source import make_transaction
from posthouse.mail.credentials import Credentials
from posthouse.ports_relay import Transaction
from posthouse.proto.client_events import (
    AuthAnswered,
    ContentWanted,
    Ended,
    Event,
    Returned,
    Settled,
    TlsWanted,
)
from posthouse.proto.client_opening import TlsWish
from posthouse.proto.replies_in import MAX_LINE_BYTES, MAX_REPLY_LINES, ReplyParser
from posthouse.proto.smtp_client import MAX_IN_FLIGHT, ClientSession

LINES = [
    b"220 hi\r\n", b"250 ok\r\n", b"250-p.example\r\n", b"250-PIPELINING\r\n", b"250-CHUNKING\r\n",
    b"250-STARTTLS\r\n", b"250 SIZE 1000\r\n", b"250-DSN\r\n", b"354 go\r\n", b"421 down\r\n",
    b"450 4.2.0 x\r\n", b"550 5.1.1 x\r\n", b"221 bye\r\n", b"500 what\r\n", b"250\n", b"354-x\r\n",
    b"250-AUTH PLAIN\r\n", b"250 AUTH LOGIN\r\n", b"235 ok\r\n", b"334 \r\n", b"535 no\r\n",
    b"354 x\r\n", b"2", b"\r", b"\n", b"\xff\x00", b"nonsense\r\n", b"x" * 3000,
]  # fmt: skip

CREDENTIALS = [
    None,
    *(
        Credentials(agreement_id=f"a-{n}", password="secret word", forwarder_id="mx2.example.net")
        for n in (1, 2)
    ),
]
SECRETS = (b"AGEtMQBzZWNyZXQgd29yZA==", b"AGEtMgBzZWNyZXQgd29yZA==", b"c2VjcmV0IHdvcmQ=")

octets = st.lists(st.one_of(st.sampled_from(LINES), st.binary(max_size=8)), max_size=60)


class Bench:
    """Drives one automaton as a transport does, and keeps its promises under watch."""

    def __init__(self, tls: TlsWish, mails: int) -> None:
        self.client = ClientSession("mx2.example.net", tls=tls)
        self.waiting = [
            make_transaction(
                *(f"u{i}@x.example" for i in range(1 + number % 3)),
                queue_id=number,
                body=None if number % 4 == 3 else b".body\r\n",
                credentials=CREDENTIALS[number % 3],
            )
            for number in range(mails)
        ]
        self.begun: list[Transaction] = []
        self.outcomes: dict[int, Event] = {}
        self.ended = 0
        self.trace: list[str] = []
        self.written = b""
        self.secure = False
        self.auths = 0

    def feed(self, data: bytes) -> None:
        self.take(self.client.feed(data))
        self.pump()

    def take(self, events: list[Event]) -> None:
        for event in events:
            assert not self.ended
            if isinstance(event, Settled | Returned):
                self.settle(event)
            elif isinstance(event, Ended):
                self.ended += 1
                self.trace.append(f"end {event.failure} {event.stage} {event.reply_code}")
            elif isinstance(event, TlsWanted):
                assert not self.auths
                self.secure = True
                self.client.tls_established()
            elif isinstance(event, AuthAnswered):
                self.auths += 1
                assert self.auths == 1
                assert self.secure
                self.trace.append(f"auth {event.credentials} {event.accepted} {event.reply}")
            elif isinstance(event, ContentWanted):
                assert self.client.content(b".body")
                assert self.client.content(b"\r\n")
                assert self.client.end_content()
        under_way = len(self.begun) - len(self.outcomes)
        assert under_way <= MAX_IN_FLIGHT
        assert not (self.ended and under_way)

    def settle(self, event: Settled | Returned) -> None:
        mail = event.token
        assert isinstance(mail, Transaction)
        assert mail in self.begun
        queue_id = mail.message.queue_id
        assert queue_id not in self.outcomes
        self.outcomes[queue_id] = event
        if isinstance(event, Settled):
            assert len(event.answers) == len(mail.message.recipients)
            for code, text, stage in event.answers:
                assert code == 250 if stage == "dot" and code < 300 else 400 <= code < 600
                assert text.isprintable()
            self.trace.append(f"{queue_id} {event.answers}")
        else:
            self.trace.append(f"{queue_id} returned {event.after_dot}")

    def pump(self) -> None:
        while self.waiting and self.client.may_begin:
            mail = self.waiting.pop(0)
            refusal = self.client.begin(
                mail,
                mail.message,
                mail.body,
                octets=7,
                head=mail.body or b".bod",
                credentials=mail.credentials,
            )
            assert refusal is None
            self.begun.append(mail)
        output = b"".join(self.client.take_output())
        self.written += output
        assert self.secure or not any(secret in output for secret in SECRETS)


wishes = st.sampled_from(["never", "if_offered", "must"])


@given(pieces=octets, tls=wishes, opening=st.booleans(), under_tls=st.booleans())
def test_anything_a_server_says_is_survived(
    pieces: list[bytes], tls: TlsWish, opening: bool, under_tls: bool
) -> None:
    """No exception, one outcome for each transaction, one end; no password in clear."""
    bench = Bench(tls, 12)
    if opening:
        bench.feed(b"220 hi\r\n")
        if under_tls and tls != "never":
            bench.feed(b"250-p\r\n250 STARTTLS\r\n")
            bench.feed(b"220 go\r\n")
        bench.feed(b"250-p\r\n250-AUTH PLAIN\r\n250-PIPELINING\r\n250 SIZE\r\n")
    for piece in pieces:
        bench.feed(piece)
    bench.take(bench.client.connection_lost("lost connection"))
    assert bench.ended == 1
    assert len(bench.outcomes) == len(bench.begun)


OWN_ANSWERS = {
    b"DATA": [b"354 go\r\n", b"354 go\r\n", b"451 4.3.0 x\r\n"],
    b"AUTH": [b"235 ok\r\n", b"535 no\r\n", b"454 later\r\n", b"334 \r\n", b"250 what\r\n"],
    b"*": [b"501 off\r\n", b"334 \r\n"],
}


def sane_server(choices: st.DataObject, extensions: list[bytes], rounds: int) -> list[bytes]:
    """What a server says that answers every command once and then: a burst for each burst."""
    reply = st.sampled_from(
        [b"250 ok\r\n"] * 6
        + [
            b"550 5.1.1 no\r\n",
            b"450 4.2.0 later\r\n",
            b"250-a\r\n250 b\r\n",
            b"550-5.1.1 x\r\n550 y\r\n",
        ]
    )
    bench = Bench("if_offered", 12)
    bursts = [
        b"220 hi\r\n",
        *([b"250-p\r\n250 STARTTLS\r\n", b"220 go\r\n"] if b"AUTH PLAIN" in extensions else []),
        b"".join(b"250-%b\r\n" % e for e in [b"p", *extensions]) + b"250 DSN\r\n",
    ]
    for burst in bursts:
        bench.written = b""
        bench.feed(burst)
    for _ in range(rounds):
        wanted = replies_wanted(bench.written)
        bench.written = b""
        if not wanted:
            break
        burst = b"".join(
            choices.draw(st.sampled_from(OWN_ANSWERS[verb]))
            if verb in OWN_ANSWERS
            else (b"250 ok\r\n" if verb == b"RSET" else choices.draw(reply))
            for verb in wanted
        )
        bursts.append(burst)
        bench.feed(burst)
    return bursts


def replies_wanted(written: bytes) -> list[bytes]:
    """The commands among the octets a client wrote."""
    verbs = (b"MAIL", b"RCPT", b"DATA", b"RSET", b"BDAT", b"QUIT", b"AUTH")
    return [
        line if line in (b".", b"*") else line[:4]
        for line in written.split(b"\r\n")
        if line in (b".", b"*") or line[:4] in verbs
    ]


@given(
    choices=st.data(),
    extensions=st.lists(
        st.sampled_from([b"PIPELINING", b"CHUNKING", b"SIZE", b"AUTH PLAIN"]), unique=True
    ),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    lost=st.booleans(),
)
def test_every_cut_of_a_servers_octets_gives_the_same_events(
    choices: st.DataObject, extensions: list[bytes], cuts: list[int], lost: bool
) -> None:
    """Replies that come as they are due mean the same in one segment or in many."""
    bursts = sane_server(choices, extensions, rounds=12)
    whole, pieces = Bench("if_offered", 12), Bench("if_offered", 12)
    turn = 0
    for burst in bursts:
        whole.feed(burst)
        while burst:
            size = cuts[turn % len(cuts)]
            pieces.take(pieces.client.feed(burst[:size]))
            burst, turn = burst[size:], turn + 1
        pieces.pump()
    for bench in (whole, pieces):
        if lost:
            bench.take(bench.client.connection_lost("lost connection"))
    assert whole.trace == pieces.trace
    assert whole.written == pieces.written


@given(data=st.lists(octets, max_size=4), cuts=st.lists(st.integers(1, 5000), min_size=1))
def test_parser_reads_every_cut_alike_and_stays_small(
    data: list[list[bytes]], cuts: list[int]
) -> None:
    """The same replies and the same verdict for every cut, and never more held than the bounds."""
    stream = b"".join(b"".join(piece) for piece in data)
    whole, pieces = ReplyParser(), ReplyParser()
    expected = whole.feed(stream)
    found = []
    rest, turn = stream, 0
    while rest:
        size = cuts[turn % len(cuts)]
        found += pieces.feed(rest[:size])
        rest, turn = rest[size:], turn + 1
        assert len(pieces._partial) <= MAX_LINE_BYTES + 1
        assert len(pieces._lines) < MAX_REPLY_LINES
    assert found == expected
    assert pieces.broken == whole.broken
    assert pieces.mid_reply == whole.mid_reply
