"""Trace fields."""

from __future__ import annotations

import datetime
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.mail.envelope import Client
from posthouse.mail.trace import MAX_HEADER_OCTETS, HeaderScan, format_date, format_received


def test_received_has_postfix_form() -> None:
    """The Received field names helo, reverse name, address, protocol, id, and one recipient."""
    client = Client(
        address="192.0.2.7", port=4, name="mail.example", helo="[192.0.2.7]", protocol="ESMTPS",
        tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
    )  # fmt: skip
    field = format_received(
        client, hostname="mx2.example.net", queue_id="0AB", recipient="a@example.com", date="D"
    )
    assert field == (
        b"Received: from [192.0.2.7] (mail.example [192.0.2.7])\r\n"
        b"\t(using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384)\r\n"
        b"\tby mx2.example.net (Posthouse) with ESMTPS id 0AB\r\n"
        b"\tfor <a@example.com>; D\r\n"
    )


def test_received_takes_no_orders_from_the_client() -> None:
    """A HELO argument cannot forge a second field or a comment; IPv6 is marked; several recipients are not named."""
    client = Client(address="2001:db8::1", port=4, helo="x) by evil (y;\r\nX: y")
    field = format_received(client, hostname="h", queue_id="1", recipient=None, date="D")
    assert field.count(b"\r\n") == 2
    assert field.startswith(b"Received: from x??by?evil??y???X:?y (unknown [IPv6:2001:db8::1])\r\n")
    assert b" for " not in field


@given(st.integers(0, 4_000_000_000))
def test_date_agrees_with_the_calendar(second: int) -> None:
    """Dates are those of the standard library, in RFC 5322 form and UTC."""
    moment = datetime.datetime.fromtimestamp(second, datetime.UTC)
    assert format_date(second) == moment.strftime("%a, %d %b %Y %H:%M:%S +0000 (UTC)")


HEADER = (
    b"Received: a\r\n\tfolded\r\nMESSAGE-ID:\r\n <x@y>\r\nreceived: b\r\n\r\nReceived: body\r\n"
)


@given(st.lists(st.integers(0, len(HEADER)), max_size=5))
def test_header_scan_in_any_pieces(cuts: list[int]) -> None:
    """Received lines of the header are counted and Message-ID found, however it is cut."""
    scan = HeaderScan()
    start = 0
    for cut in [*sorted(cuts), len(HEADER)]:
        scan.feed(HEADER[start:cut])
        start = cut
    scan.finish()
    assert (scan.received, scan.message_id) == (2, "<x@y>")


def test_header_scan_edges() -> None:
    """An empty header counts nothing; a message without empty line is all header."""
    for data, received in ((b"\r\nReceived: x\r\n", 0), (b"Received: x\r\n", 1), (b"", 0)):
        scan = HeaderScan()
        scan.feed(data)
        scan.finish()
        assert scan.received == received


LINES = [
    b"Received: x", b"received \t: y", b"Received", b"Message-ID: <a@b>", b"Message-Id:",
    b" <c@d>", b"\tfolded", b"X: " + b"z" * 90, b" Received: folded", b"Message-ID-X: <n@o>",
    b"X: " + b"z" * 58 + b"Received: x",
]  # fmt: skip


@given(
    st.lists(st.sampled_from(LINES), max_size=12),
    st.lists(st.integers(0, 900), max_size=8),
    st.booleans(),
)
def test_header_scan_is_the_same_for_every_split(
    lines: list[bytes], cuts: list[int], octets: bool
) -> None:
    """What is found depends on the header alone, and only the header is looked at."""
    header = b"".join(line + b"\r\n" for line in lines)
    whole = header + b"\r\nReceived: body\r\nMessage-ID: <body@x>\r\n"
    places = range(len(whole)) if octets else sorted(cuts)
    scan = HeaderScan()
    start = 0
    for cut in [*places, len(whole)]:
        scan.feed(whole[start:cut])
        start = max(cut, start)
    scan.finish()
    assert scan.received == len(re.findall(rb"(?im)^received[ \t]*:", header))
    found = re.search(rb"(?im)^message-id:(?:\r\n[ \t]|[ \t])*(\S*)", header)
    assert scan.message_id == (found.group(1).decode() if found else "")


def test_header_scan_is_bounded() -> None:
    """A header without end is looked at as far as its limit, and next to nothing of it is held."""
    scan = HeaderScan()
    for _ in range(MAX_HEADER_OCTETS // 16 - 1):
        scan.feed(b"a" * 16)
        assert len(scan._line) < 128
    scan.feed(b"\r\nReceived: x\r\nReceived: y\r\n")
    assert scan.done
    assert scan.received == 1


@pytest.mark.parametrize(
    ("recipient", "protocol", "named"),
    [
        ("a" * 180 + "@example.com", "ESMTP", True),
        ("a" * 190 + "@example.com", "ESMTP", False),
        ("jos\u00e9@example.com", "UTF8SMTPS", True),
        ("jos\u00e9@example.com", "ESMTP", False),
        ("a\u0085b@example.com", "UTF8SMTP", False),
    ],
)
def test_received_names_plain_recipients_only(recipient: str, protocol: str, named: bool) -> None:
    """The `for` clause is left out when it is long, has controls, or needs an absent SMTPUTF8."""
    client = Client(address="192.0.2.7", port=4, helo="h", protocol=protocol)
    field = format_received(client, hostname="h", queue_id="1", recipient=recipient, date="D")
    assert (f"for <{recipient}>".encode() in field) is named
