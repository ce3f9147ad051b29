"""Postfix's policy protocol: questions at every cut, bounded."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.proto.postfix_policy import (
    MAX_ATTRIBUTES,
    MAX_LINE_BYTES,
    PolicyReader,
    format_answer,
)

QUESTION = b"request=smtpd_access_policy\nprotocol_state=RCPT\nsender=\nhelo_name=a=b\n\n"
READ = {
    "request": "smtpd_access_policy",
    "protocol_state": "RCPT",
    "sender": "",
    "helo_name": "a=b",
}


def test_questions_one_after_the_other() -> None:
    """Each is a table of its own; a value may be empty or hold "="."""
    assert PolicyReader().feed(QUESTION * 2) == [READ, READ]


def test_answer() -> None:
    """One line and an empty one."""
    assert format_answer("DUNNO") == b"action=DUNNO\n\n"


@pytest.mark.parametrize(
    "octets",
    [
        b"\n",
        b"request=other\n\n",
        b"protocol_state=RCPT\n\n",
        b"request\n",
        b"x" * (MAX_LINE_BYTES + 1),
        b"request=smtpd_access_policy\n" + b"a" * MAX_LINE_BYTES + b"=\n\n",
        b"".join(b"a%d=\n" % n for n in range(MAX_ATTRIBUTES + 1)),
    ],
)
def test_what_is_no_question_ends_it(octets: bytes) -> None:
    """`broken` says why, and nothing behind it is read."""
    reader = PolicyReader()
    assert reader.feed(octets) == []
    assert reader.broken
    assert reader.feed(b"\n" + QUESTION) == []


@given(
    pieces=st.lists(
        st.one_of(st.sampled_from([QUESTION, b"\n", b"a=b\n", b"z" * 5000]), st.binary(max_size=9)),
        max_size=12,
    ),
    size=st.integers(1, 40),
)
def test_any_octets_at_any_cut(pieces: list[bytes], size: int) -> None:
    """Never an exception, the same questions for every cut, bounded memory."""
    stream = b"".join(pieces)
    whole, cut = PolicyReader(), PolicyReader()
    expected = whole.feed(stream)
    found: list[Mapping[str, str]] = []
    for start in range(0, len(stream), size):
        found += cut.feed(stream[start : start + size])
        assert len(cut._partial) <= MAX_LINE_BYTES + size
    assert found == expected
    assert cut.broken == whole.broken
