"""Where each key of a TOML file stands.

`tomllib` gives values without positions, and a mistake without its line is a
search for the operator. This walks text that tomllib has already accepted, so
it only has to keep count, never to judge (TOML 1.0).
"""

from __future__ import annotations

import re

Path = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"[ \t]*")
_FILLER = re.compile(r"(?:[ \t\n]+|#[^\n]*)*")
_SCALAR = re.compile(r"[^,\]}\n#]*")
_BASIC = re.compile(r'"(?:[^"\\]|\\.)*"')
_LITERAL = re.compile(r"'[^']*'")
# Up to two more quotes may stand right before the closing three.
_LONG_BASIC = re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}(?!")', re.DOTALL)
_LONG_LITERAL = re.compile(r"'''.*?'{3,5}(?!')", re.DOTALL)


def locate_keys(text: str) -> dict[Path, int]:
    """Map the path of every table, key and array element to its line (from 1).

    Tables in arrays and elements are counted from 0: ("domain", 0, "name").
    `text` must be valid TOML; of anything else the answer is of no use, but it ends.
    """
    return _Walk(text.replace("\r\n", "\n")).run()


class _Walk:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.lines: dict[Path, int] = {}
        self.counts: dict[Path, int] = {}

    def run(self) -> dict[Path, int]:
        table: Path = ()
        while True:
            self.skip(_FILLER)
            if self.at >= len(self.text):
                return self.lines
            before = self.at
            if self.text[self.at] == "[":
                table = self.read_header()
            else:
                self.read_pair(table)
            if self.at == before:
                return self.lines

    def skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        self.line += match.group().count("\n")
        return match.group()

    def looks_at(self, token: str) -> bool:
        return self.text.startswith(token, self.at)

    def read_header(self) -> Path:
        line = self.line
        array = self.looks_at("[[")
        self.at += 2 if array else 1
        parts = self.read_key()
        self.at += 2 if array else 1
        path: Path = ()
        for part in parts[:-1]:
            path = (*path, part)
            self.lines.setdefault(path, line)
            if path in self.counts:
                path = (*path, self.counts[path])
        path = (*path, *parts[-1:])
        self.lines.setdefault(path, line)
        if array:
            self.counts[path] = self.counts.get(path, -1) + 1
            path = (*path, self.counts[path])
            self.lines[path] = line
        return path

    def read_key(self) -> list[str]:
        parts: list[str] = []
        while True:
            self.skip(_SPACE)
            if self.looks_at('"'):
                part = self.skip(_BASIC)[1:-1]
            elif self.looks_at("'"):
                part = self.skip(_LITERAL)[1:-1]
            else:
                part = self.skip(_BARE_KEY)
            parts.append(part)
            self.skip(_SPACE)
            if not self.looks_at("."):
                return parts
            self.at += 1

    def read_pair(self, table: Path) -> None:
        line = self.line
        path = table
        for part in self.read_key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        if self.looks_at("="):
            self.at += 1
            self.skip(_SPACE)
            self.read_value(path)

    def read_value(self, path: Path) -> None:
        if self.looks_at('"""'):
            self.skip(_LONG_BASIC)
        elif self.looks_at("'''"):
            self.skip(_LONG_LITERAL)
        elif self.looks_at('"'):
            self.skip(_BASIC)
        elif self.looks_at("'"):
            self.skip(_LITERAL)
        elif self.looks_at("["):
            self.read_elements(path)
        elif self.looks_at("{"):
            self.read_inline_table(path)
        else:
            self.skip(_SCALAR)

    def read_elements(self, path: Path) -> None:
        self.at += 1
        index = 0
        while True:
            self.skip(_FILLER)
            if self.at >= len(self.text) or self.looks_at("]"):
                self.at += 1
                return
            before = self.at
            self.lines[(*path, index)] = self.line
            self.read_value((*path, index))
            self.skip(_FILLER)
            if self.looks_at(","):
                self.at += 1
                index += 1
            elif self.at == before:
                return

    def read_inline_table(self, path: Path) -> None:
        self.at += 1
        while True:
            self.skip(_FILLER)
            if self.at >= len(self.text) or self.looks_at("}"):
                self.at += 1
                return
            before = self.at
            self.read_pair(path)
            self.skip(_FILLER)
            if self.looks_at(","):
                self.at += 1
            elif self.at == before:
                return
