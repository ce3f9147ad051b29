"""Text forms of octets and instants."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.mail.wire_text import (
    MAX_TIME,
    decode_base64url,
    encode_base64url,
    format_time,
    parse_time,
)


@given(st.binary(max_size=70))
def test_octets_come_back(octets: bytes) -> None:
    """What was written is read again, and has one spelling."""
    assert decode_base64url(encode_base64url(octets), len(octets)) == octets


@pytest.mark.parametrize("text", ["QQ==", "QR", "Q", "Q+", "Q/", "QQ\n", " QQ", "QUI=", "é"])
def test_other_spellings_are_refused(text: str) -> None:
    """Padding, other alphabets, blanks and unused bits that are set are refused."""
    with pytest.raises(ValueError):
        decode_base64url(text)


def test_length_is_checked() -> None:
    """A value of another length than asked for is refused."""
    with pytest.raises(ValueError):
        decode_base64url("QQ", 2)


@given(st.integers(0, MAX_TIME))
def test_instants_come_back(seconds: int) -> None:
    """Every second from 1970 to 9999 is written and read again."""
    assert parse_time(format_time(seconds)) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-09 08:00:00Z",
        "2026-11-09T08:00:00",
        "2026-11-09T08:00:00z",
        "2026-11-09T08:00:00+00:00",
        "2026-11-09T08:00:00.0Z",
        "2026-11-09T24:00:00Z",
        "2026-12-31T23:59:60Z",
        "2026-02-29T08:00:00Z",
        "2026-11-09T08:00:00Z\n",
        "1969-12-31T23:59:59Z",
        "٢٠٢٦-11-09T08:00:00Z",
        "",
    ],
)
def test_other_times_are_refused(text: str) -> None:
    """Any other spelling, and what the calendar does not have, is refused."""
    with pytest.raises(ValueError):
        parse_time(text)
