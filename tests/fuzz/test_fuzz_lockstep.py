"""The lock-step client and anything a primary may say."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from posthouse.proto.lockstep_client import (
    Answered,
    Broken,
    HandshakeWanted,
    LockstepClient,
    Opened,
)

REPLIES = st.sampled_from(
    [
        b"220 peer\r\n",
        b"250-peer\r\n250-STARTTLS\r\n250 SMTPUTF8\r\n",
        b"250 ok\r\n",
        b"354 go\r\n",
        b"421 bye\r\n",
        b"550 5.1.1 no\r\n",
        b"250-",
        b"\r\n",
        b"999 what\r\n",
    ]
)


@given(st.lists(REPLIES | st.binary(max_size=60), max_size=30), st.booleans())
def test_anything_a_primary_says(pieces: list[bytes], must: bool) -> None:
    """No octets raise; each command gets at most one answer; after the end nothing comes."""
    client = LockstepClient("mx2.example.net", tls="must" if must else "if_offered")
    opened = over = False
    answers = commands = 0
    for piece in pieces:
        if opened and not over and not client.waiting:
            client.say("NOOP")
            commands += 1
        events = client.feed(piece)
        assert not (over and events)
        for event in events:
            match event:
                case Opened():
                    assert not opened
                    opened = True
                case Answered():
                    answers += 1
                case HandshakeWanted():
                    events += client.secured()
                case Broken():
                    over = True
        assert answers <= commands
        assert over is client.over
    client.take_output()
    assert bool(client.lost("gone")) is not over


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_content_is_stuffed_for_any_cut(content: bytes, cuts: list[int]) -> None:
    """However content is cut, what goes on the wire is the same, and unstuffs to it."""
    whole = LockstepClient("x", tls="never")
    whole.begin_content()
    expected = whole.content(content)
    pieces = LockstepClient("x", tls="never")
    pieces.begin_content()
    points = sorted({0, len(content), *(c for c in cuts if c <= len(content))})
    got = b"".join(pieces.content(content[a:b]) for a, b in itertools.pairwise(points))
    assert got == expected
    lines = expected.split(b"\r\n")
    assert b"\r\n".join(line[1:] if line[:1] == b"." else line for line in lines) == content
    assert b"\r\n.\r\n" not in b"\r\n" + expected
