"""Dovecot's authentication protocol, the server's side, at every cut of what a client sends."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.proto.dovecot_auth import MAX_LINE_BYTES, MAX_UNDER_WAY, Attempt, AuthServer

HELLO = b"VERSION\t1\t1\nCPID\t77\n"
PLAIN = b64encode(b"\0a-1\0one").decode()


def make_server() -> AuthServer:
    server = AuthServer(process_id=5, connection_id=9, cookie="c" * 32)
    server.take_output()
    return server


def request(text: str) -> bytes:
    """Fields in spaces, "secured" included, as Postfix sends them."""
    number, mechanism, *rest = text.split()
    fields = ["AUTH", number, mechanism, "service=smtp", "nologin", "lip=192.0.2.1"]
    return "\t".join([*fields, "rip=192.0.2.9", "secured", *rest]).encode() + b"\n"


def tell(server: AuthServer, *lines: bytes) -> list[Attempt]:
    return server.feed(HELLO + b"".join(lines))


def test_greeting_is_what_postfix_reads() -> None:
    """MECH before SPID, DONE at the end: another order is another kind of socket to Postfix."""
    server = AuthServer(process_id=5, connection_id=9, cookie="abc")
    assert server.take_output().decode().splitlines() == [
        "VERSION\t1\t2",
        "MECH\tPLAIN\tplaintext",
        "MECH\tLOGIN\tplaintext",
        "SPID\t5",
        "CUID\t9",
        "COOKIE\tabc",
        "DONE",
    ]


def test_plain_with_its_initial_response() -> None:
    """One AUTH is one attempt; OK names the user."""
    server = make_server()
    (attempt,) = tell(server, request(f"1 PLAIN resp={PLAIN}"))
    assert (attempt.user, attempt.password) == ("a-1", "one")
    assert (attempt.service, attempt.remote) == ("smtp", "192.0.2.9")
    assert "one" not in repr(attempt)
    assert server.take_output() == b""
    server.accept(1)
    server.accept(1)  # once
    assert server.take_output() == b"OK\t1\tuser=a-1\n"


def test_plain_and_login_in_steps() -> None:
    """Without resp= the mechanism asks; LOGIN may bring its user name along."""
    server = make_server()
    assert tell(server, request("1 PLAIN"), request("2 login"), request("3 LOGIN resp=YS0x")) == []
    assert server.take_output().decode().splitlines() == [
        "CONT\t1\t",
        "CONT\t2\tVXNlcm5hbWU6",
        "CONT\t3\tUGFzc3dvcmQ6",
    ]
    assert [a.password for a in server.feed(f"CONT\t1\t{PLAIN}\nCONT\t3\tdHdv\n".encode())] == [
        "one",
        "two",
    ]
    assert server.feed(b"CONT\t2\tYS0y\n") == []
    assert server.take_output() == b"CONT\t2\tUGFzc3dvcmQ6\n"
    (attempt,) = server.feed(b"CONT\t2\tdGhyZWU=\n")
    assert (attempt.user, attempt.password) == ("a-2", "three")
    server.refuse(2, "why", "pass_expired")
    server.refuse(1)
    assert server.take_output() == (
        b"FAIL\t2\tuser=a-2\treason=why\tcode=pass_expired\nFAIL\t1\tuser=a-1\n"
    )


@pytest.mark.parametrize(
    "response",
    [
        "!!!!",
        "YQ",  # no padding
        b64encode(b"a-1").decode(),
        b64encode(b"\0a-1").decode(),
        b64encode(b"\0\0one").decode(),
        b64encode(b"other\0a-1\0one").decode(),
        b64encode(b"\0a-1\0one\0two").decode(),
        b64encode(b"\0a\t1\0one").decode(),
        b64encode(b"\0a\n1\0one").decode(),
        b64encode(b"\0\xff\0one").decode(),
    ],
)
def test_odd_responses_fail(response: str) -> None:
    """No attempt, a FAIL, and nothing of theirs in it; the connection goes on."""
    server = make_server()
    assert tell(server, request(f"4 PLAIN resp={response}")) == []
    assert server.take_output() == b"FAIL\t4\treason=invalid response\n"
    assert len(server.feed(request(f"5 PLAIN resp={PLAIN}"))) == 1


def test_nothing_is_judged_in_clear() -> None:
    """Without "secured" no password is looked at."""
    server = make_server()
    clear = f"AUTH\t1\tPLAIN\tservice=smtp\tresp={PLAIN}\n".encode()
    assert tell(server, clear) == []
    assert server.take_output() == b"FAIL\t1\treason=only under TLS\n"
    assert len(server.feed(f"AUTH\t2\tPLAIN\tsecured=tls\tresp={PLAIN}\n".encode())) == 1


def test_other_mechanisms_fail() -> None:
    """Only what was offered."""
    server = make_server()
    assert tell(server, request("1 CRAM-MD5"), b"AUTH\t2\n") == []
    assert server.take_output().count(b"FAIL") == 2


def test_called_off() -> None:
    """After CANCEL an id has no answer and can be used again."""
    server = make_server()
    tell(server, request(f"1 PLAIN resp={PLAIN}"), request("2 LOGIN"), b"CANCEL\t1\nCANCEL\t2\n")
    server.take_output()
    server.accept(1)
    assert server.take_output() == b""
    assert len(server.feed(request(f"1 PLAIN resp={PLAIN}"))) == 1


@pytest.mark.parametrize(
    "octets",
    [
        b"AUTH\t1\tPLAIN\n",  # before VERSION
        b"VERSION\t2\t0\n",
        b"VERSION\n",
        HELLO + b"AUTH\n",
        HELLO + b"AUTH\tx\tPLAIN\n",
        HELLO + b"AUTH\t4294967296\tPLAIN\n",
        HELLO + b"CONT\t7\tYQ==\n",
        HELLO + request("1 LOGIN") * 2,
        HELLO + b"x" * (MAX_LINE_BYTES + 1),
        HELLO + b"".join(request(f"{n} LOGIN") for n in range(MAX_UNDER_WAY + 1)),
    ],
)
def test_who_does_not_speak_the_protocol_is_cut_off(octets: bytes) -> None:
    """`broken` says why, and nothing behind it is read."""
    server = make_server()
    server.feed(octets)
    assert server.broken
    server.feed(b"\n")
    assert server.feed(request(f"99 PLAIN resp={PLAIN}")) == []


pieces = st.lists(
    st.one_of(
        st.sampled_from(
            [
                HELLO,
                request("1 LOGIN"),
                request(f"2 PLAIN resp={PLAIN}"),
                b"CONT\t1\tYS0x\n",
                b"CONT\t1\t\n",
                b"CANCEL\t2\n",
                b"AUTH\t3\tPLAIN\tsecured\tresp=\n",
                b"x\n",
                b"\t\n",
                b"y" * 9000,
            ]
        ),
        st.binary(max_size=12),
    ),
    max_size=20,
)


@given(pieces=pieces, size=st.integers(1, 40))
def test_any_octets_at_any_cut(pieces: list[bytes], size: int) -> None:
    """Never an exception, the same attempts and answers for every cut, and bounded memory."""
    stream = HELLO + b"".join(pieces)
    whole, cut = make_server(), make_server()
    expected = whole.feed(stream)
    found: list[Attempt] = []
    for start in range(0, len(stream), size):
        found += cut.feed(stream[start : start + size])
        assert len(cut._partial) <= MAX_LINE_BYTES + size
    assert found == expected
    assert cut.broken == whole.broken
    assert cut.take_output() == whole.take_output()
