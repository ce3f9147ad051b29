"""Whatever octets come as a roster, delta or document: taken, or refused with a reason."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from fakes.vectors import DELTA, ROSTER
from posthouse.errors import DocumentError, RosterRefused
from posthouse.proto import ijson
from posthouse.proto.roster_delta import apply_changes, parse_delta_head
from posthouse.proto.roster_file import BodyCheck, parse_head

JSON_LIKE = st.text(alphabet='{}[]":,0123456789.eE+-truefalsn\\ud \t\n\r\x00é\ud7ff', max_size=60)
EDITS = st.lists(
    st.tuples(st.integers(0, 1200), st.integers(0, 3), st.binary(max_size=4)),
    min_size=1,
    max_size=4,
)


def edit(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for at, gone, new in edits:
        data = data[:at] + new + data[at + gone :]
    return data


@given(st.one_of(st.binary(max_size=200), JSON_LIKE.map(str.encode)))
def test_documents(data: bytes) -> None:
    """Reading a document gives plain values or DocumentError; what it gave is written and read."""
    with contextlib.suppress(DocumentError):
        value = ijson.parse(data)
        assert ijson.parse(ijson.encode(value)) == value


@given(EDITS)
def test_rosters(edits: list[tuple[int, int, bytes]]) -> None:
    """An edited file is refused, or it is one whose header and body fit each other."""
    data = edit(ROSTER, edits)
    with contextlib.suppress(RosterRefused):
        head = parse_head(data)
        assert head.octets == data[: head.body_offset]
        check = BodyCheck(head.header)
        check.feed(data[head.body_offset :])
        check.finish()
        assert data[head.body_offset :] == ROSTER[parse_head(ROSTER).body_offset :]


@given(EDITS)
def test_deltas(edits: list[tuple[int, int, bytes]]) -> None:
    """An edited delta is refused, or what it gives is in order."""
    data = edit(DELTA, edits)
    body = ROSTER[parse_head(ROSTER).body_offset :]
    with contextlib.suppress(RosterRefused):
        delta = parse_delta_head(data)
        width = delta.new.header.digest.length
        middle = delta.digests_offset + delta.removed * width
        pieces = apply_changes(body, data[delta.digests_offset : middle], data[middle:], width)
        result = b"".join(pieces)
        if width == 16:
            digests = [result[at : at + width] for at in range(0, len(result), width)]
            assert digests == sorted(set(digests))
