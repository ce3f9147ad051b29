"""A recipient directory as a plain set."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from typing import Protocol

from posthouse.domain.finding import Answer, Finding
from posthouse.domain.recipients import Fold, fold_both
from posthouse.ports_recipients import RecipientDirectory

ANSWERS = {finding: Answer(finding=finding) for finding in Finding}


def finding_of(directory: RecipientDirectory, local_part: str) -> Finding:
    """What a directory that answers at once knows."""
    answer = directory.find(local_part)
    assert isinstance(answer, Answer)
    return answer.finding


class Directories(Protocol):
    """Directories of several domains."""

    def find(self, domain: str, local_part: str, /) -> Answer | Awaitable[Answer]: ...


def finding_in(directories: Directories, domain: str, local_part: str) -> Finding:
    """What directories that answer at once know."""
    answer = directories.find(domain, local_part)
    assert isinstance(answer, Answer)
    return answer.finding


class SetDirectory:
    """Knows what it was given. unknown: behaves like a domain whose list is not loaded."""

    def __init__(
        self,
        contents: Iterable[str] = (),
        *,
        catch_all: bool = False,
        unknown: bool = False,
        how: Fold | None = None,
    ) -> None:
        self._how = how or Fold()
        self._texts = {fold_both(content, self._how)[0] for content in contents} - {""}
        self._otherwise = Finding.CATCH_ALL if catch_all else Finding.ABSENT
        self._unknown = unknown

    def find(self, local_part: str, network: str = "") -> Answer:
        if self._unknown:
            return ANSWERS[Finding.UNKNOWN]
        if self._texts.isdisjoint(fold_both(local_part, self._how)):
            return ANSWERS[self._otherwise]
        return ANSWERS[Finding.VOUCHED]

    def describe(self) -> Mapping[str, str | int | bool]:
        return {
            "source": "a set",
            "entries": len(self._texts),
            "loaded_at": "2026-01-01T00:00:00Z",
            "problem": "",
        }


class SetDirectories:
    """Directories of several domains; a domain that is not among them is UNKNOWN."""

    def __init__(self, directories: Mapping[str, SetDirectory]) -> None:
        self._directories = dict(directories)

    def find(self, domain: str, local_part: str, network: str = "") -> Answer:
        directory = self._directories.get(domain)
        return ANSWERS[Finding.UNKNOWN] if directory is None else directory.find(local_part)
