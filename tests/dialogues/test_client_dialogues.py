"""Golden sessions of the SMTP client: each whole, one octet at a time, and over a socket.

`client/*.txt`::

    # why this session is here
    % mail from=a@x.example to=b@y.example,c@y.example     one transaction; options 8bitmime,
                                                           smtputf8, size=N, ret=, envid=,
                                                           notify=, orcpt=, body=<escaped text>,
                                                           auth=<agreement>:<password>@<forwarder>
    % tls never|if_offered|must      % chunking off
    S: 250 what the server sends     C: what the client must have written by then, no more
    ! handshake | quit | lost        TLS is established; we quit; the connection breaks
    > 1.0 250 dot 2.0.0 taken        outcome of recipient 0 of mail 1
    > 2 returned, 2 returned after dot
    > auth a-1 235 the last word to AUTH
    > end good | end STAGE CODE WHY

Consecutive S: lines are one burst. Lines end with CRLF.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fakes.raw_peer import raw_peer
from fakes.work_source import ListSource, make_transaction
from posthouse.errors import NextHopFailure
from posthouse.mail.credentials import Credentials
from posthouse.ports_relay import RecipientResult, Target, Transaction
from posthouse.ports_spool import Body, QueuedRecipient
from posthouse.proto.client_events import AuthAnswered, Ended, Event, Returned, Settled
from posthouse.proto.client_opening import TlsWish
from posthouse.proto.smtp_client import ClientSession
from posthouse.transports.smtp_out import OutSettings, SmtpConnector
from posthouse.transports.tls import TlsMode

FOLDER = Path(__file__).parent / "client"
HELO = "mx2.example.net"
MODES: dict[TlsWish, TlsMode] = {
    "never": "none",
    "if_offered": "opportunistic",
    "must": "required",
}


@dataclass
class Dialogue:
    """One file: what to do, and what must come of it."""

    tls: TlsWish = "never"
    chunking: bool = True
    mails: list[Transaction] = field(default_factory=list)
    steps: list[tuple[str, bytes]] = field(default_factory=list)  # ("S"|"C"|"!", octets)
    outcome: list[str] = field(default_factory=list)


def parse_dialogue(path: Path) -> Dialogue:
    """Read one file."""
    dialogue = Dialogue()
    for line in path.read_text("utf-8").splitlines():
        kind, rest = line[:2], line[2:].strip()
        if kind in ("S:", "C:"):
            octets = line[3:].encode() + b"\r\n"
            if dialogue.steps and dialogue.steps[-1][0] == kind[0]:
                octets = dialogue.steps.pop()[1] + octets
            dialogue.steps.append((kind[0], octets))
        elif kind == "! ":
            dialogue.steps.append(("!", rest.encode()))
        elif kind == "> ":
            dialogue.outcome.append(rest)
        elif kind == "% ":
            _parse_directive(dialogue, rest)
        else:
            assert not line or line.startswith("#"), line
    return dialogue


def _parse_directive(dialogue: Dialogue, text: str) -> None:
    word, _, rest = text.partition(" ")
    if word == "tls":
        assert rest in MODES
        dialogue.tls = rest
    elif word == "chunking":
        dialogue.chunking = rest != "off"
    else:
        assert word == "mail", text
        values = dict(re.findall(r"(\w+)=(\S*)", rest))
        body = values.get("body", r"Subject:x\r\n\r\nhi\r\n").encode().decode("unicode_escape")
        rows = [
            QueuedRecipient(
                seq=seq,
                address=address,
                domain="y.example",
                notify=values.get("notify", ""),
                orcpt=values.get("orcpt", ""),
            )
            for seq, address in enumerate(values["to"].split(","))
        ]
        dialogue.mails.append(
            make_transaction(
                *rows,
                sender=values["from"],
                body=body.encode(),
                queue_id=len(dialogue.mails) + 1,
                size_bytes=int(values.get("size", "0")) or None,
                body_type="8BITMIME" if "8bitmime" in rest else "",
                smtputf8="smtputf8" in rest,
                ret=values.get("ret", ""),
                envid=values.get("envid", ""),
                credentials=_parse_credentials(values.get("auth", "")),
            )
        )


def _parse_credentials(text: str) -> Credentials | None:
    if not text:
        return None
    agreement_id, _, rest = text.partition(":")
    password, _, forwarder_id = rest.partition("@")
    return Credentials(agreement_id=agreement_id, password=password, forwarder_id=forwarder_id)


def describe_end(failure: str | None, stage: str, code: int) -> str:
    """The last outcome line."""
    return "end good" if failure is None else f"end {stage} {code} {failure}"


class Driver:
    """What a transport does with the automaton, without one."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.client = ClientSession(HELO, tls=dialogue.tls, chunking=dialogue.chunking)
        self.waiting = list(dialogue.mails)
        self.outcome: list[str] = []
        self.written = b""

    def take(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Settled):
                self.settled(event.token, event.answers)
            elif isinstance(event, Returned):
                mail = event.token
                assert isinstance(mail, Transaction)
                after = " after dot" if event.after_dot else ""
                self.outcome.append(f"{mail.message.queue_id} returned{after}")
            elif isinstance(event, AuthAnswered):
                said = f"{event.credentials.agreement_id} {event.reply.code} {event.reply.text}"
                assert event.accepted == (event.reply.code == 235)
                self.outcome.append(f"auth {said}")
            elif isinstance(event, Ended):
                self.outcome.append(describe_end(event.failure, event.stage, event.reply_code))
        self.pump()

    def settled(self, token: object, answers: list[tuple[int, str, str]]) -> None:
        assert isinstance(token, Transaction)
        for seq, (code, text, stage) in enumerate(answers):
            self.outcome.append(f"{token.message.queue_id}.{seq} {code} {stage} {text}")

    def pump(self) -> None:
        while self.waiting and self.client.may_begin:
            mail = self.waiting.pop(0)
            assert mail.body is not None
            refusal = self.client.begin(
                mail,
                mail.message,
                mail.body,
                octets=len(mail.body),
                head=mail.body,
                credentials=mail.credentials,
            )
            if refusal is not None:
                answer = (refusal.code, refusal.text, "local")
                self.settled(mail, [answer] * len(mail.message.recipients))
        self.written += b"".join(self.client.take_output())

    def act(self, what: bytes) -> None:
        match what:
            case b"handshake":
                self.client.tls_established()
            case b"quit":
                self.client.quit()
            case b"lost":
                self.take(self.client.connection_lost("lost connection"))
            case _:
                raise AssertionError(what)
        self.pump()


def cut(octets: bytes, size: int) -> Iterator[bytes]:
    """The octets in pieces of `size`."""
    return (octets[i : i + size] for i in range(0, len(octets), size))


def files() -> list[Path]:
    found = sorted(FOLDER.glob("*.txt"))
    assert found
    return found


@pytest.mark.parametrize("size", [1 << 16, 1], ids=["whole", "octets"])
@pytest.mark.parametrize("path", files(), ids=lambda p: p.stem)
def test_dialogue(path: Path, size: int) -> None:
    """The automaton writes what the file says, when it says so, for every cut."""
    dialogue = parse_dialogue(path)
    driver = Driver(dialogue)
    for kind, octets in dialogue.steps:
        if kind == "C":
            assert driver.written == octets
            driver.written = b""
            continue
        assert driver.written == b""
        if kind == "!":
            driver.act(octets)
            continue
        for piece in cut(octets, size):
            driver.take(driver.client.feed(piece))
    assert driver.written == b""
    assert driver.outcome == dialogue.outcome
    assert not driver.waiting


async def _no_body(queue_id: int) -> Body:
    raise KeyError(queue_id)


@pytest.mark.parametrize(
    "path",
    [p for p in files() if ("!", b"handshake") not in parse_dialogue(p).steps],
    ids=lambda p: p.stem,
)
async def test_dialogue_over_a_socket(path: Path) -> None:
    """The transport writes the same octets and tells its source the same outcomes."""
    dialogue = parse_dialogue(path)
    source = ListSource(dialogue.mails)
    quits = asyncio.Event()
    wrong: list[str] = []

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for kind, octets in dialogue.steps:
            if kind == "S":
                writer.write(octets)
            elif kind == "C":
                came = await asyncio.wait_for(reader.readexactly(len(octets)), 20)
                if came != octets:
                    wrong.append(f"{came!r} instead of {octets!r}")
            elif octets == b"quit":
                quits.set()
            elif octets == b"lost":
                return
        if rest := await asyncio.wait_for(reader.read(), 20):
            wrong.append(f"{rest!r} at the end")

    settings = OutSettings(helo_name=HELO, tls=MODES[dialogue.tls], chunking=dialogue.chunking)
    connector = SmtpConnector(settings, _no_body)
    async with raw_peer(play) as port:
        try:
            session = await connector.connect(Target("peer.example", "127.0.0.1", port), source)
        except NextHopFailure as failure:
            why = failure.detail.partition(f":{port}: ")[2]
            end = describe_end(why, failure.stage, failure.reply_code)
        else:
            if ("!", b"quit") in dialogue.steps:
                await quits.wait()
                session.quit()
            ended = await session.wait_end()
            end = describe_end(ended.failure, ended.stage, ended.reply_code)
    assert not wrong
    assert sorted([*outcomes(source), end]) == sorted(dialogue.outcome)


def outcomes(source: ListSource) -> Iterator[str]:
    """What a source was told, as outcome lines."""
    results: list[RecipientResult]
    for queue_id, results in ((k, list(v)) for k, v in source.finished_with.items()):
        for result in results:
            yield f"{queue_id}.{result.seq} {result.code} {result.stage} {result.text}"
    for queue_id, (_, after_dot) in source.returned_with.items():
        yield f"{queue_id} returned{' after dot' if after_dot else ''}"
