"""How a TOML file becomes tables, and tables become values: common to all our files.

A table of `Key`s for each section drives the reading and the nearest-key hints.
Promise: nothing is thrown at the first mistake that does not make the rest
unreadable; each becomes a finding with its line.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from posthouse.config_checks import Findings, open_regular
from posthouse.config_locator import Path as KeyPath
from posthouse.config_values import Read, Wrong, say
from posthouse.errors import ConfigError

# A configuration with 100,000 domains has about 10 MB.
MAX_FILE_BYTES: Final = 64 * 1024 * 1024

_BARE_WORD = re.compile(r"""=\s*[^\s"'\[{\d#]""")


class Absent:
    """Defaults that are no value: the key must be given, or may be left out."""

    def __init__(self, name: str) -> None:
        self.name = name


REQUIRED: Final = Absent("required")
NONE: Final = Absent("none")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key. default: as written in the file, or REQUIRED or NONE; why: for the manual."""

    name: str
    read: Read
    default: Any
    why: str


def make_key(name: str, read: Read, default: Any, why: str) -> Key:
    """A Key, for tables of many."""
    return Key(name=name, read=read, default=default, why=why)


def read_text_file(path: Path) -> str:
    try:
        with open_regular(path) as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            [f"{path}: cannot be read: {error.strerror}; name another file with --config"]
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError([f"{path}: larger than {MAX_FILE_BYTES} octets; is it the right file?"])
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: not UTF-8; save the file as UTF-8"]) from error


def parse_toml(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        match = re.search(r" \(at line (\d+), column (\d+)\)$", message)
        source = text.split("\n")
        line = int(match[1]) if match else len(source)
        what = message[: match.start()] if match else message
        content = source[line - 1] if line <= len(source) else ""
        if "overwrite" in what or "twice" in what:
            remedy = "the same key or table stands twice: remove one"
        elif _BARE_WORD.search(content) or (match and "=" not in content and "[" not in content):
            remedy = 'write key = value, and texts in quotes: key = "text"'
        else:
            remedy = "see toml.io for how to write it"
        raise ConfigError([f"{path}:{line}: syntax: {what}; {remedy}"]) from error
    except RecursionError as error:
        raise ConfigError(
            [f"{path}: syntax: nested too deeply; nothing here needs more than two levels"]
        ) from error
    except ValueError as error:  # of a number with thousands of digits
        raise ConfigError(
            [f"{path}: syntax: a number with thousands of digits; write a smaller one"]
        ) from error


# --------------------------------------------------------------------------- sections


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The sections of one kind of file: "" is what stands above all tables.

    arrays: those that are written in two pairs of brackets and may stand several times.
    manual: where all keys are listed.
    """

    sections: Mapping[str, tuple[Key, ...]]
    arrays: tuple[str, ...]
    manual: str

    def show(self, section: str) -> str:
        """The header of a section as the file has it."""
        return f"[[{section}]]" if section in self.arrays else f"[{section}]"

    def check_top(self, table: dict[str, Any], findings: Findings) -> None:
        """Report what is neither a key at the top nor a section."""
        names = (*(key.name for key in self.sections[""]), *filter(None, self.sections))
        self._check_names((), table, names, findings)

    def read_top(self, table: dict[str, Any], findings: Findings) -> dict[str, Any]:
        """Read the keys above all tables."""
        return self._read_section((), "", table, findings)

    def read_table(self, name: str, table: dict[str, Any], findings: Findings) -> dict[str, Any]:
        """Read the section [name]; one that is not there has its defaults."""
        return self._read_section((name,), name, _as_table(name, table, findings), findings)

    def read_tables(
        self, name: str, table: dict[str, Any], findings: Findings, *, required: bool
    ) -> list[dict[str, Any]]:
        """Read every [[name]]. required: one at least, each of them with its `name`."""
        value = table.get(name)
        elements: list[dict[str, Any]] = []
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            elements = value
        elif value is not None and value != []:
            findings.wrong((name,), "is not a list of tables", f"write [[{name}]], twice bracketed")
        elif required:
            findings.wrong((), f"no {name}", f"add [[{name}]] with its name")
        return [
            self._read_section((name, index), name, element, findings)
            for index, element in enumerate(elements)
        ]

    def _read_section(
        self, path: KeyPath, section: str, table: dict[str, Any], findings: Findings
    ) -> dict[str, Any]:
        """Read every key; what is wrong or missing becomes None and a finding."""
        keys = self.sections[section]
        if section:
            self._check_names(path, table, tuple(key.name for key in keys), findings)
        return {key.name: _read_key((*path, key.name), key, table, findings) for key in keys}

    def _check_names(
        self, path: KeyPath, table: dict[str, Any], known: tuple[str, ...], findings: Findings
    ) -> None:
        for name in table:
            if name not in known:
                value = table[name]
                first = value[0] if isinstance(value, list) and value else value
                kind = "unknown table" if isinstance(first, dict) else "unknown key"
                findings.wrong((*path, name), kind, self._nearest(name, known))

    def _nearest(self, name: str, known: tuple[str, ...]) -> str:
        folded = name.lower().replace("-", "_")
        for section, keys in self.sections.items():
            if section and folded not in known and any(key.name == folded for key in keys):
                return f"it belongs below {self.show(section)}"
        for near in difflib.get_close_matches(folded, known, n=1, cutoff=0.7):
            return f"did you mean {near}?"
        for section, keys in self.sections.items():
            names = [key.name for key in keys]
            for near in difflib.get_close_matches(folded, names, n=1, cutoff=0.75):
                if not section:
                    return f"did you mean {near}, above all tables?"
                return f"did you mean {near}, below {self.show(section)}?"
        return f"remove it ({self.manual} lists all keys)"


def _as_table(name: str, table: dict[str, Any], findings: Findings) -> dict[str, Any]:
    value = table.get(name, {})
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and isinstance(value[0], dict):
        findings.wrong((name,), "stands in two pairs of brackets", f"write [{name}]")
    else:
        findings.wrong((name,), f"{say(value)} is not a table", f"write [{name}], keys below")
    return {}


def _read_key(path: KeyPath, key: Key, table: dict[str, Any], findings: Findings) -> Any:
    if key.name not in table:
        if key.default is REQUIRED:
            findings.wrong(path, "is missing", f"add {key.name} = …")
        if key.default is REQUIRED or key.default is NONE:
            return None
        return key.read(key.default)
    try:
        return key.read(table[key.name])
    except Wrong as wrong:
        for below, what, remedy in wrong.findings:
            findings.wrong((*path, *below), what, remedy)
        return None
