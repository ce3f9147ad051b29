"""Finding lines that begin with a dot: the fast way and the plain one agree."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from posthouse.proto.dotdata import find_dotted

_words = st.lists(
    st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"\x00", b"\xff", b"word"])
)


@given(st.integers(0, 6000), _words, st.integers(0, 3000))
def test_both_ways_agree(before: int, words: list[bytes], after: int) -> None:
    """Whatever the octets and however many, the first dotted line is where bytes.find has it."""
    data = b"x" * before + b"".join(words) + b"y" * after
    assert find_dotted(data) == data.find(b"\r\n.")
