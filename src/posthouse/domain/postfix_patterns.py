"""Postfix's regexp_table(5) and pcre_table(5) as rules of a roster, where that is possible.

In Postfix a pattern is searched in the whole address, without regard to case; a
rule of a roster is matched against the whole local part. So the part behind the
last "@" must be the domain and nothing else, and both halves must make sense by
themselves::

    /^sales-[0-9]+@example\\.com$/  OK      →  (?i)(?s)(?:sales-[0-9]+)
    /@example\\.com$/  OK                   →  catch-all
    /^sales-/  OK                          →  (?i)(?s)(?:sales-).*, in whatever domain

What cannot be turned into such a rule is a mistake with its line: a pattern that
was left out would have mail for existing people refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

# REJECT of access(5) says that there is nobody; so does a code.
_REFUSED: Final = re.compile(r"(?:REJECT|5[0-9]{2})(?:\s|\Z)", re.IGNORECASE)
_DEFERRED: Final = re.compile(r"(?:DEFER|DEFER_IF_PERMIT|4[0-9]{2})(?:\s|\Z)", re.IGNORECASE)
_UNDECIDED: Final = re.compile(r"(?:DUNNO|DEFER_IF_REJECT|WARN|INFO|FILTER|HOLD)(?:\s|\Z)")
_FLAGS: Final = {"regexp": "imx", "pcre": "imsxAEUX"}

# Tells whether RE2 takes a pattern, and whether it matches the whole of a text.
Matcher = Callable[[str], Callable[[str], bool]]


class PatternError(ValueError):
    """A line that is no rule. line: from 1."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line
        self.what = what


class PatternRule(msgspec.Struct, frozen=True, kw_only=True):
    """A line as a rule. match: "" for a catch-all; action: as in a roster."""

    line: int
    match: str
    action: str


def read_patterns(
    lines: Iterable[str], kind: str, domain: str, compile_pattern: Matcher
) -> Iterator[PatternRule | None]:
    """Turn a table into rules, in its order; None for a line about another domain.

    kind: "regexp" or "pcre". compile_pattern: raises ValueError for what RE2 does not
    take. Raises PatternError.
    """
    for number, line in _join_lines(lines):
        body, flags, result = _take_apart(number, line)
        if _UNDECIDED.match(result):
            raise PatternError(number, f"{result.split()[0]} says neither yes nor no")
        for flag in flags:
            if flag not in _FLAGS[kind] or flag in "xAEUX":
                raise PatternError(number, f"flag {flag} cannot be turned into a rule")
        prefix = "" if "i" in flags else "(?i)"  # the flag toggles the default
        if _REFUSED.match(result):
            action = "reject"
        elif _DEFERRED.match(result):
            action = "defer"
        else:
            action = "accept"
        if kind == "regexp":
            _check_posix(number, body)
        yield _make_rule(number, body, prefix, action, domain, compile_pattern)


def _join_lines(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Logical lines with the number of their first: blanks at the start continue the line above."""
    current, first = "", 0
    for number, raw in enumerate(lines, start=1):
        line = raw.rstrip("\r\n \t")
        if not line or line.lstrip().startswith("#"):
            continue
        if line[0] in " \t":
            if not current:
                raise PatternError(number, "continues a line that is not there")
            current += " " + line.strip()
            continue
        if current:
            yield first, current
        current, first = line, number
    if current:
        yield first, current


def _take_apart(number: int, line: str) -> tuple[str, str, str]:
    """Pattern, flags and result of one line."""
    if re.match(r"(?:if|endif)\b", line, re.IGNORECASE):
        raise PatternError(number, "if and endif cannot be turned into a rule")
    if line.startswith("!"):
        raise PatternError(number, "a negated pattern cannot be turned into a rule")
    delimiter = line[0]
    if delimiter.isalnum() or delimiter == "\\":
        raise PatternError(number, "does not begin with a pattern between slashes")
    at = 1
    while at < len(line) and line[at] != delimiter:
        at += 2 if line[at] == "\\" else 1
    if at >= len(line):
        raise PatternError(number, f"no closing {delimiter}")
    flags, _, result = line[at + 1 :].partition(" ")
    if "\t" in flags:
        flags, _, result = line[at + 1 :].partition("\t")
    return line[1:at].replace("\\" + delimiter, delimiter), flags, result.strip()


def _make_rule(
    number: int,
    body: str,
    prefix: str,
    action: str,
    domain: str,
    compile_pattern: Matcher,
) -> PatternRule | None:
    at, alternatives = _find_at(number, body)
    if alternatives:
        raise PatternError(number, "alternatives without parentheses: write one line for each")
    local, behind = (body, "") if at is None else (body[:at], body[at + 1 :])
    if at is not None:
        if not behind.endswith("$") or behind.endswith("\\$"):
            behind += ".*"
        behind = behind.removesuffix("$")
        try:
            if not compile_pattern(f"{prefix}(?:{behind})")(domain):
                return None
        except ValueError as error:
            raise PatternError(number, f"behind the @: {error}") from error
        tail = ""
    elif local.endswith("$") and not local.endswith("\\$"):
        local, tail = local[:-1], ""
    else:
        tail = ".*"
    head = "" if local.startswith("^") else ".*"
    local = local.removeprefix("^")
    if re.search(r"(?<!\\)\$", local) or re.search(r"(?<![\\\[])\^", local):
        raise PatternError(number, "an anchor within the pattern")
    if at is None and head and compile_pattern(f"{prefix}.*(?:{local}){tail}")("@" + domain):
        local = ""  # the domain alone matches, so everybody does
        tail = ""
    if not local and head:
        if action == "accept" and not tail:
            return PatternRule(line=number, match="", action=action)
        match = f"{prefix}.*"
    else:
        match = f"{prefix}{head}(?:{local}){tail}"
    try:
        compile_pattern(match)
    except ValueError as error:
        raise PatternError(number, f"RE2 does not take it: {error}") from error
    return PatternRule(line=number, match=match, action=action)


def _find_at(number: int, body: str) -> tuple[int | None, bool]:
    """Where the last "@" stands, outside all parentheses; whether a "|" stands there too."""
    depth, at, found, alternatives, hidden = 0, 0, None, False, False
    while at < len(body):
        character = body[at]
        if character == "\\":
            at += 1
            if body[at : at + 1] == "@" and depth == 0:
                raise PatternError(number, "write @ without a backslash")
        elif character == "[":
            end = _class_end(body, at)
            hidden = hidden or ("@" in body[at:end] and body[at + 1 : at + 2] != "^")
            at = end
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
        elif character == "@":
            if depth:
                hidden = True
            else:
                found = at
        elif character == "|" and depth == 0:
            alternatives = True
        at += 1
    if depth:
        raise PatternError(number, "parentheses that do not match")
    if hidden:
        raise PatternError(number, "the @ must stand outside of parentheses and brackets")
    return found, alternatives


def _check_posix(number: int, body: str) -> None:
    """Refuse what POSIX (as glibc has it) and RE2 both take, in different senses."""
    at = 0
    while at < len(body):
        if body[at] == "\\":
            following = body[at + 1 : at + 2]
            if following in "<>`'" or (following.isalpha() and following not in "wWsSbB"):
                raise PatternError(
                    number, f"\\{following} means something else in a rule: write it otherwise"
                )
            at += 1
        elif body[at] == "[":
            end = _class_end(body, at)
            inside = body[at + 1 : end]
            if "\\" in inside:
                raise PatternError(number, "a backslash in brackets stands for itself: remove it")
            if "[=" in inside or "[." in inside:
                raise PatternError(number, "collating elements cannot be turned into a rule")
            at = end
        at += 1


def _class_end(body: str, start: int) -> int:
    """Where a bracket expression ends: its closing bracket, or the end of the text."""
    at = start + 1
    if body[at : at + 1] == "^":
        at += 1
    if body[at : at + 1] == "]":
        at += 1
    while at < len(body) and body[at] != "]":
        if body[at : at + 2] == "[:":
            end = body.find(":]", at)
            at = end + 1 if end > 0 else at
        elif body[at] == "\\":
            at += 1
        at += 1
    return at
