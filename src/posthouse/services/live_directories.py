"""Puts live verification behind the lists: asked only where those leave a question open.

The order of DESIGN.md: a list or a fresh roster decides; where it is stale and
does not vouch, or there is none, the primary is asked while it is up; else the
domain's `when_unknown` decides.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, Protocol

import msgspec

from posthouse.domain.finding import Answer, Finding
from posthouse.domain.live_check import LiveFinding

_EXISTS: Final = Answer(finding=Finding.VOUCHED)
_ABSENT: Final = Answer(finding=Finding.ABSENT)


class Lists(Protocol):
    """The directories in force (`services.recipients.Directories`)."""

    def find(
        self, domain: str, local_part: str, network: str = ""
    ) -> Answer | Awaitable[Answer]: ...


class Checks(Protocol):
    """Who asks the primary (`services.live_check.LiveChecks`)."""

    def covers(self, domain: str) -> bool: ...
    def find(
        self, domain: str, local: str, network: str
    ) -> LiveFinding | Awaitable[LiveFinding]: ...


class LiveDirectories:
    """Answers as `lists` does, and where that says nothing as the primary does."""

    def __init__(self, lists: Lists, checks: Checks) -> None:
        self._lists = lists
        self._checks = checks

    def find(self, domain: str, local_part: str, network: str = "") -> Answer | Awaitable[Answer]:
        """See `services.reception.Directories`."""
        answer = self._lists.find(domain, local_part, network)
        if not isinstance(answer, Answer):
            return self._find_later(answer, domain, local_part, network)
        if not _is_open(answer) or not self._checks.covers(domain):
            return answer
        found = self._checks.find(domain, local_part, network)
        if isinstance(found, LiveFinding):
            return _tell(answer, found)
        return self._tell_later(answer, found)

    async def _find_later(
        self, listed: Awaitable[Answer], domain: str, local_part: str, network: str
    ) -> Answer:
        answer = await listed
        if not _is_open(answer) or not self._checks.covers(domain):
            return answer
        found = self._checks.find(domain, local_part, network)
        return _tell(answer, found if isinstance(found, LiveFinding) else await found)

    async def _tell_later(self, answer: Answer, found: Awaitable[LiveFinding]) -> Answer:
        return _tell(answer, await found)


def _is_open(answer: Answer) -> bool:
    """A list left it undecided; one that was not looked at is not: the client guesses too much."""
    if answer.withheld:
        return False
    finding = answer.finding
    return finding is Finding.UNKNOWN or (finding is Finding.ABSENT and answer.stale)


def _tell(answer: Answer, found: LiveFinding) -> Answer:
    match found:
        case LiveFinding.EXISTS:
            return _EXISTS
        case LiveFinding.ABSENT:
            return _ABSENT
        case LiveFinding.GUESSED:
            return msgspec.structs.replace(answer, finding=Finding.UNKNOWN, withheld="guessed")
        case LiveFinding.BUSY:
            return msgspec.structs.replace(answer, finding=Finding.UNKNOWN, withheld="busy")
        case LiveFinding.UNDECIDED:
            return answer
