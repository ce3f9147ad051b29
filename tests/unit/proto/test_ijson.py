"""Strict I-JSON."""

from __future__ import annotations

from typing import Literal

import msgspec
import pytest
from msgspec import UNSET, UnsetType

from posthouse.errors import DocumentError
from posthouse.proto import ijson


class Shape(msgspec.Struct, kw_only=True):
    """A document for these tests."""

    name: str
    number: int = 0
    kind: Literal["a", "b"] = "a"
    maybe: str | UnsetType = UNSET


def nested(depth: int) -> bytes:
    return b'{"name": "x", "deep": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b'\xef\xbb\xbf{"name": "x"}', "a byte order mark"),
        ('{"name": "x"}'.encode("utf-16"), "UTF-16"),
        (b'{"name": "\xff"}', "not UTF-8"),
        (b'{"name": "\xed\xa0\x80"}', "a surrogate in UTF-8"),
        (b'{"name": "\\ud800"}', "a lone surrogate escaped"),
        (b'{"name": "\\uffff"}', "a noncharacter"),
        ('{"name": "\ufdd0"}'.encode(), "a noncharacter, not escaped"),
        (b'{"name": "x", "o\\ud800": 1}', "a lone surrogate in a name"),
        (b'{"name": "x", "name": "x"}', "a duplicate name"),
        (b'{"name": "x", "n\\u0061me": "y"}', "a duplicate name in disguise"),
        (b'{"name": "x", "other": {"a": 1, "a": 1}}', "a duplicate in an ignored member"),
        (b'{"name": "x", "number": 9007199254740992}', "2^53"),
        (b'{"name": "x", "number": -9007199254740992}', "-2^53"),
        (b'{"name": "x", "other": 1' + b"0" * 5000 + b"}", "an integer of 5,001 digits"),
        (b'{"name": "x", "number": 1.0}', "a fraction"),
        (b'{"name": "x", "number": 1e3}', "an exponent"),
        (b'{"name": "x", "number": true}', "a boolean for a number"),
        (b'{"name": "x", "number": "1"}', "a string for a number"),
        (b'{"name": "x", "number": NaN}', "NaN"),
        (b'{"name": "x", "other": 1e999}', "infinity by size"),
        (b'{"name": null}', "null for a string"),
        (b'{"name": "x", "maybe": null}', "null for what may be absent"),
        (b'{"number": 1}', "a required member missing"),
        (b'{"name": "x", "kind": "c"}', "an unknown value of an enumerated member"),
        (b'{"Name": "x"}', "names count by case"),
        (b"[]", "an array for an object"),
        (b'{"name": "x"} {}', "something behind it"),
        (b'{"name": "x",}', "a comma too many"),
        (b'{"name": "a\nb"}', "a bare control character"),
        (b"{'name': 'x'}", "apostrophes"),
        (b"", "nothing"),
        (nested(33), "33 levels"),
        (b"[" * 100_000, "very deep and never closed"),
    ],
)
def test_refused(document: bytes, why: str) -> None:
    """What is not strict I-JSON of the shape asked for is refused, with a reason."""
    with pytest.raises(DocumentError):
        ijson.decode(document, Shape)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b'{"name": "x"}', "plain"),
        (b' \r\n\t{ "name" : "x" } ', "white space around it"),
        (b'{"name": "x", "unknown": {"a": [null, 0.5, 1e3, true]}}', "an unknown member"),
        (b'{"name": "x", "number": 9007199254740991}', "2^53 - 1"),
        (b'{"name": "\\ud83d\\ude00"}', "a pair of surrogates is a character"),
        (b'{"name": "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\"[["}', "brackets in a string"),
        (nested(32), "32 levels"),
    ],
)
def test_taken(document: bytes, why: str) -> None:
    """What I-JSON allows is taken."""
    assert ijson.decode(document, Shape).name


def test_encode_is_one_line_and_leaves_out_what_is_absent() -> None:
    """A document is one line without white space, without the members that are absent."""
    assert ijson.encode(Shape(name="zoë")) == '{"name":"zoë","number":0,"kind":"a"}'.encode()
