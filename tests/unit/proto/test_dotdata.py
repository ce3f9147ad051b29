"""Dot data and BDAT content: where a message ends, and what may be in it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.proto.dotdata import ChunkDecoder, DotDecoder, has_bare_newline, normalize_newlines

# input after 354, content, octets left over (None: no end yet), bare newline met
ROWS = [
    (b".\r\n", b"", b"", False),
    (b".\r\nQUIT\r\n", b"", b"QUIT\r\n", False),
    (b"a\r\n.\r\n", b"a\r\n", b"", False),
    (b"..\r\n.\r\n", b".\r\n", b"", False),  # a stuffed dot alone on its line is no end
    (b".a\r\n.\r\n", b"a\r\n", b"", False),  # RFC 5321 4.5.2: a leading dot is removed
    (b"\r\n.\r\n", b"\r\n", b"", False),
    (b"a\r\n...\r\n.\r\n", b"a\r\n..\r\n", b"", False),
    (b"a\r\n.\r\n.\r\n", b"a\r\n", b".\r\n", False),  # the second dot is no longer content
    (b"a\n.\n", b"a\n.\n", None, True),
    (b"a\r\n.\n", b"a\r\n\n", None, True),
    (b"a\r.\r\n", b"a\r.", None, True),  # the last CR LF is held back
    (b"a\r\n.\r", b"a", None, False),
    (b"a", b"a", None, False),
    (b"\n.\r\n", b"\n.", None, True),
    (b"a\r\r\n.\r\n", b"a\r\r\n", b"", True),
    (b"a\r\n\r.\r\n.\r\n", b"a\r\n\r.\r\n", b"", True),
]


@pytest.mark.parametrize(("data", "content", "rest", "bare"), ROWS)
def test_dot_decoder(data: bytes, content: bytes, rest: bytes | None, bare: bool) -> None:
    """Only CR LF . CR LF ends the message; dots are unstuffed; bare newlines are noticed."""
    decoder = DotDecoder()
    assert decoder.feed(data) == (content, rest)
    assert decoder.bare is bare


_octets = st.lists(
    st.sampled_from([b"\r", b"\n", b".", b"a", b"\r\n", b"\r\n.", b"\r\n.\r\n"])
).map(b"".join)


@given(_octets, st.data())
def test_any_split_gives_the_same(data: bytes, draw: st.DataObject) -> None:
    """How the network cuts the octets changes neither content nor end nor verdict."""
    whole = DotDecoder()
    expected, rest = whole.feed(data)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=6)))
    decoder = DotDecoder()
    got, left = b"", None
    start = 0
    for cut in [*cuts, len(data)]:
        piece, start = data[start:cut], cut
        if left is not None:
            left += piece
            continue
        content, left = decoder.feed(piece)
        assert whole.bare or not content.endswith(b"\r")  # no pair is ever split
        got += content
    assert left == rest
    if rest is not None:
        assert got == expected
        assert decoder.bare == whole.bare
    else:
        assert got == expected


@given(_octets)
def test_nothing_bare_gets_out_normalised(data: bytes) -> None:
    """With normalize no bare CR or LF is left, and no end appears that was not there."""
    decoder = DotDecoder(normalize=True)
    content, _ = decoder.feed(data)
    assert not has_bare_newline(content)


@given(st.lists(st.binary(max_size=8) | st.sampled_from([b"\r", b"\n", b"\r\n"])))
def test_chunks_keep_their_octets(pieces: list[bytes]) -> None:
    """BDAT content comes out as it went in, and bare newlines over chunk edges are noticed."""
    decoder = ChunkDecoder()
    got = b"".join(decoder.feed(piece) for piece in pieces) + decoder.finish()
    whole = b"".join(pieces)
    assert got == whole
    assert decoder.bare == has_bare_newline(whole)


@given(_octets)
def test_every_line_end_becomes_one(data: bytes) -> None:
    """Normalising adds what is missing of each CR LF and changes nothing else."""
    assert normalize_newlines(data) == re.sub(rb"\r(?!\n)|(?<!\r)\n", b"\r\n", data)


@given(_octets | st.binary(max_size=40))
def test_bare_newlines_are_those_that_stand_alone(data: bytes) -> None:
    """The quick look agrees with counting: every CR before an LF, every LF behind a CR."""
    pairs = data.count(b"\r\n")
    alone = data.count(b"\r") != pairs or data.count(b"\n") != pairs
    assert has_bare_newline(data) is alone
