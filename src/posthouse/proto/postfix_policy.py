"""Postfix's policy delegation protocol (SMTPD_POLICY_README): octets to questions, and answers.

A question is lines `name=value` and an empty line; the answer is
`action=…` and an empty line. A connection carries many, one after the other;
who sends the next before the answer is read all the same.

Failure: nothing raises; what cannot be a question makes the reader `broken`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MAX_LINE_BYTES: Final = 8192  # Postfix: line_length_limit 2048, certificates' names may be longer
MAX_ATTRIBUTES: Final = 200  # Postfix 3.9 sends 36

_REQUEST: Final = "smtpd_access_policy"
_TOO_LONG: Final = "a line is too long"


class PolicyReader:
    """Reads one connection. broken: why nothing more is read, "" while all is well."""

    def __init__(self) -> None:
        self.broken = ""
        self._partial = b""
        self._attributes: dict[str, str] = {}

    def feed(self, data: bytes) -> list[Mapping[str, str]]:
        """Take octets; returns the questions that they complete, the same for every cut."""
        questions: list[Mapping[str, str]] = []
        if self.broken:
            return questions
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            problem = self._read_line(line, questions)
            if problem:
                break
        else:
            problem = _TOO_LONG if len(self._partial) > MAX_LINE_BYTES else ""
        self.broken = problem
        return questions

    def _read_line(self, line: bytes, questions: list[Mapping[str, str]]) -> str:
        """Take one line; returns what is wrong with it, "" for nothing."""
        attributes = self._attributes
        if len(line) > MAX_LINE_BYTES:
            return _TOO_LONG
        if not line:
            if attributes.get("request") != _REQUEST:
                return f"no request={_REQUEST}"
            questions.append(attributes)
            self._attributes = {}
            return ""
        name, equals, value = line.decode("utf-8", "replace").partition("=")
        if not equals:
            return "a line without ="
        if len(attributes) >= MAX_ATTRIBUTES:
            return "too many attributes"
        attributes[name] = value
        return ""


def format_answer(action: str) -> bytes:
    """Write the answer. action: as in access(5), one line."""
    return f"action={action}\n\n".encode()
