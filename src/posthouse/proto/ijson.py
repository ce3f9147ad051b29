"""Strict I-JSON (RFC 7493) for every document that another party wrote.

Refused: a BOM or other than UTF-8, duplicate names, integers of 2^53 and more,
surrogates and noncharacters, nesting over 32 (the outermost value is the first
level), NaN and infinity. A number with a fraction or exponent passes as a
`float`, so that an unknown member may have one; where an integer is wanted
`decode` refuses it, as it refuses a boolean for a number and null for what is
absent. Unknown members are ignored.

msgspec's own JSON reader takes the last of duplicate names, so the standard
library parses and msgspec gives the types.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, Final, TypeVar

import msgspec

from posthouse.errors import DocumentError

MAX_NESTING: Final = 32
MAX_INTEGER: Final = (1 << 53) - 1
_MAX_INTEGER_DIGITS: Final = 17  # sign included

_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{\]}]', re.DOTALL)
# RFC 7493 §2.1: no surrogates, no noncharacters (U+FDD0..FDEF, the last two of each plane).
_FORBIDDEN: Final = re.compile(
    "[\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)

_T = TypeVar("_T")


def parse(document: bytes) -> Any:
    """Read a document as plain Python values. Raises DocumentError."""
    if document.startswith(b"\xef\xbb\xbf"):
        raise DocumentError("begins with a byte order mark")
    try:
        text = document.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8: {error.reason} at octet {error.start}") from error
    _check_nesting(document)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_make_object,
            parse_int=_read_integer,
            parse_float=_read_float,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"not JSON: {error}") from error
    if b"\\u" in document or not document.isascii():
        _check_characters(value)
    return value


def decode(document: bytes, kind: type[_T]) -> _T:
    """Read a document as `kind`, a msgspec Struct. Raises DocumentError; it names the member."""
    value = parse(document)
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise DocumentError(str(error)) from error


def encode(value: object) -> bytes:
    """Write a document: one line, UTF-8, no white space, members in the order of the Struct."""
    return msgspec.json.encode(value)


def _check_nesting(document: bytes) -> None:
    if document.count(b"[") + document.count(b"{") <= MAX_NESTING:
        return
    depth = 0
    for token in _TOKEN.finditer(document):
        octet = token[0]
        if octet in (b"[", b"{"):
            depth += 1
            if depth > MAX_NESTING:
                raise DocumentError(f"nested deeper than {MAX_NESTING}")
        elif octet in (b"]", b"}"):
            depth -= 1


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise DocumentError(f"member {name[:60]!r} stands there twice")
            seen.add(name)
    return members


def _read_integer(digits: str) -> int:
    value = int(digits) if len(digits) <= _MAX_INTEGER_DIGITS else MAX_INTEGER + 1
    if not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise DocumentError("an integer of 2^53 or more")
    return value


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise DocumentError("a number that is too large")
    return value


def _refuse_constant(name: str) -> None:
    raise DocumentError(f"{name} is no JSON")


def _check_characters(value: Any) -> None:
    waiting: list[Iterable[Any]] = [(value,)]
    while waiting:
        for item in waiting.pop():
            if isinstance(item, str):
                if _FORBIDDEN.search(item) is not None:
                    raise DocumentError("a surrogate or noncharacter in a string")
            elif isinstance(item, dict):
                waiting.append(item.keys())
                waiting.append(item.values())
            elif isinstance(item, list):
                waiting.append(item)
