"""Trace fields."""

from __future__ import annotations

import datetime

from hypothesis import given
from hypothesis import strategies as st

from posthouse.mail.envelope import Client
from posthouse.mail.trace import HeaderScan, format_date, format_received


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
