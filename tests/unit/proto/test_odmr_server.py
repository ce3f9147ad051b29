"""The automaton of on-demand mail relay (RFC 2645)."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.mail.reply import Reply
from posthouse.proto.odmr_server import (
    MAX_ERRORS,
    Closing,
    CramLogin,
    Etrn,
    Event,
    OdmrServer,
    PlainLogin,
    StartTls,
    Turn,
)

CHALLENGE = "<1.2@mx2.example.net>"


def server(*, tls: bool = True) -> OdmrServer:
    made = OdmrServer("mx2.example.net", offer_starttls=tls, challenge=lambda: CHALLENGE)
    made.greet()
    assert made.take_output() == b"220 mx2.example.net ESMTP Posthouse on-demand relay\r\n"
    return made


def say(made: OdmrServer, line: str) -> tuple[str, Event | None]:
    made.receive(line.encode() + b"\r\n")
    event = made.next_event()
    return made.take_output().decode(), event


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def log_in(made: OdmrServer) -> None:
    say(made, "EHLO c")
    assert say(made, "AUTH CRAM-MD5") == (f"334 {b64(CHALLENGE)}\r\n", None)
    said, event = say(made, b64("ada 0123456789abcdef"))
    assert (said, event) == ("", CramLogin("ada", CHALLENGE.encode(), "0123456789abcdef"))
    made.answer_login(good=True, user="ada")
    assert made.take_output() == b"235 2.7.0 Authentication successful\r\n"


def test_a_turn() -> None:
    """EHLO, AUTH, ATRN: after 250 the connection is turned and nothing more is read here."""
    made = server()
    said, _ = say(made, "EHLO c")
    assert "250-AUTH CRAM-MD5\r\n" in said
    assert "250-ATRN\r\n" in said
    assert "250 STARTTLS\r\n" in said
    log_in(made)
    assert say(made, "ATRN Example.com, example.ORG,example.com") == (
        "",
        Turn(("example.com", "example.org")),
    )
    made.answer_turn(Reply(250, "2.0.0", "OK now reversing the connection"))
    assert made.take_output() == b"250 2.0.0 OK now reversing the connection\r\n"
    assert made.turned
    made.receive(b"220 primary.example ESMTP\r\n")
    assert made.next_event() is None
    assert made.take_rest() == b"220 primary.example ESMTP\r\n"


def test_a_refused_turn_goes_on() -> None:
    """After 450 or 453 the session is what it was."""
    made = server()
    log_in(made)
    assert say(made, "ATRN")[1] == Turn(())
    made.answer_turn(Reply(453, "4.0.0", "You have no mail"))
    assert not made.turned
    assert say(made, "NOOP")[0].startswith("453 4.0.0 You have no mail\r\n250")


def test_talking_out_of_turn() -> None:
    """Who speaks before it has heard the answer to ATRN is not handed the connection."""
    made = server()
    log_in(made)
    say(made, "ATRN")
    made.receive(b"220 too early\r\n")
    closing = made.answer_turn(Reply(250, "2.0.0", "OK now reversing the connection"))
    assert isinstance(closing, Closing)
    assert not made.turned
    assert made.take_output().startswith(b"421")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("ATRN", "530"),
        ("ETRN example.com", "530"),
        ("AUTH PLAIN", "538"),
        ("AUTH LOGIN", "504"),
        ("AUTH CRAM-MD5 =", "501"),
        ("MAIL FROM:<a@b>", "502"),
        ("TURN", "502"),
        ("RUBBISH", "500"),
        ("EHLO", "501"),
        ("STARTTLS now", "501"),
        ("QUIT", "221"),
    ],
)
def test_before_the_login(line: str, code: str) -> None:
    """Nothing is given to strangers, and each mistake has its code."""
    made = server()
    say(made, "EHLO c")
    assert say(made, line)[0].startswith(code)


@pytest.mark.parametrize(
    ("response", "code"), [("*", "501 5.7.0"), ("no base64!", "501 5.5.2"), ("/w==", "501 5.5.2")]
)
def test_bad_responses(response: str, code: str) -> None:
    """A cancelled or unreadable response ends the login, not the session."""
    made = server()
    say(made, "EHLO c")
    say(made, "AUTH CRAM-MD5")
    assert say(made, response)[0].startswith(code)
    log_in(made)


def test_plain_under_tls() -> None:
    """STARTTLS drops what was known and what came in clear behind it; then PLAIN is offered."""
    made = server()
    say(made, "EHLO c")
    made.receive(b"STARTTLS\r\nEHLO injected\r\n")
    assert isinstance(made.next_event(), StartTls)
    assert made.take_output().startswith(b"220")
    made.tls_started("TLSv1.3")
    assert made.next_event() is None
    assert say(made, "AUTH PLAIN")[0].startswith("503")
    assert "AUTH CRAM-MD5 PLAIN" in say(made, "EHLO c")[0]
    assert say(made, "STARTTLS")[0].startswith("503")
    assert say(made, f"AUTH PLAIN {b64(chr(0) + 'ada' + chr(0) + 'secret')}")[1] == PlainLogin(
        "ada", "secret"
    )
    made.answer_login(good=None, user="ada")
    assert made.take_output().startswith(b"454")
    assert say(made, f"AUTH PLAIN {b64('eve' + chr(0) + 'ada' + chr(0) + 'x')}")[0][:3] == "535"
    assert say(made, f"AUTH PLAIN {b64('x')}")[0].startswith("501")


def test_bounds() -> None:
    """Three failed logins, twenty mistakes, or a line without end close the session."""
    made = server()
    say(made, "EHLO c")
    for left in (2, 1, 0):
        say(made, "AUTH CRAM-MD5")
        assert isinstance(say(made, b64("ada x"))[1], CramLogin)
        assert isinstance(made.answer_login(good=False, user="ada"), Closing) is (left == 0)
    made = server()
    for left in range(MAX_ERRORS - 1, -1, -1):
        assert isinstance(say(made, "RUBBISH")[1], Closing) is (left == 0)
    made = server()
    made.receive(b"x" * 5000)
    assert isinstance(made.next_event(), Closing)
    made = server()
    log_in(made)
    assert say(made, "ATRN " + ",".join(f"d{n}.example" for n in range(101)))[0].startswith("501")
    assert say(made, "ATRN exa mple")[0].startswith("501")
    assert say(made, "ETRN example.com")[1] == Etrn("example.com")


@given(st.lists(st.sampled_from([b"EHLO c\r\n", b"AUTH CRAM-MD5\r\n", b"*\r\n", b"ATRN\r\n"]) | st.binary(max_size=50), max_size=40))  # fmt: skip
def test_any_input(pieces: list[bytes]) -> None:
    """Nothing a stranger sends raises, turns the connection or proves somebody."""
    made = server()
    for piece in pieces:
        made.receive(piece)
        while (event := made.next_event()) is not None and not isinstance(event, Closing):
            if isinstance(event, CramLogin | PlainLogin):
                made.answer_login(good=False, user=event.user)
            elif isinstance(event, StartTls):
                made.tls_started("TLS")
            else:
                raise AssertionError(event)
        made.take_output()
    assert made.user == ""
    assert not made.turned
