from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.config_locator import Path, locate_keys

TEXT = """\
# a comment with [brackets] and = signs
top = "a # no comment"     # a comment with "quotes
'lit.eral' = 'x'

[smtp]
listen = [
  "0.0.0.0:25",   # fine, ] not the end

  "[::]:25",
]
text = \"\"\"
[not.a.table]
key = "no key"
\\\"\"\" still inside
\"\"\"
after = '''
'' [[domain]]
'''
a.b = { x = 1, y = [1, 2], "z" = {} }

[[domain]]
name = "one"
[[domain]]

name = "two"
[domain.more]
k = 1979-05-27 07:32:00
[[ "quoted" ]]
v = 1
"""

LINES = {
    ("top",): 2,
    ("lit.eral",): 3,
    ("smtp",): 5,
    ("smtp", "listen"): 6,
    ("smtp", "listen", 0): 7,
    ("smtp", "listen", 1): 9,
    ("smtp", "text"): 11,
    ("smtp", "after"): 16,
    ("smtp", "a"): 19,
    ("smtp", "a", "b"): 19,
    ("smtp", "a", "b", "y", 1): 19,
    ("domain", 0): 21,
    ("domain", 0, "name"): 22,
    ("domain", 1): 23,
    ("domain", 1, "name"): 25,
    ("domain", 1, "more", "k"): 27,
    ("quoted", 0, "v"): 29,
}


@pytest.mark.parametrize(("path", "line"), LINES.items())
def test_every_key_is_found_on_its_line(path: Path, line: int) -> None:
    """Headers, keys and elements are found past comments, strings and nested values."""
    tomllib.loads(TEXT)
    assert locate_keys(TEXT)[path] == line


def test_windows_line_ends_count_once() -> None:
    """CR LF ends one line."""
    assert locate_keys("a = 1\r\n\r\nb = 2\r\n")[("b",)] == 3


def _paths(value: Any, path: Path = ()) -> list[Path]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += _paths(inner, (*path, index))
    return found


_SCRAPS = st.sampled_from(
    ["a", "b", "[a]", "[[t]]", "[a.b]", "=", " ", "\n", "1", '"x"', "'y'", "[1, 2]", "{c = 1}",
     '"""', "'''", "#", ",", ".", "\\", '"', "[", "]", "{", "}", "1979-05-27"]
)  # fmt: skip


@given(st.lists(_SCRAPS, max_size=40).map("".join))
def test_any_text_ends_and_valid_toml_is_located_whole(text: str) -> None:
    """No text keeps the locator busy for ever, and every key tomllib sees has a line."""
    lines = locate_keys(text)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert [path for path in _paths(table) if path not in lines] == []
