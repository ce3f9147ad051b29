"""The rules of a roster: patterns that another organisation wrote. The one owner of google-re2.

RE2 answers in time linear in the text and compiles within bounded memory, so a
hostile pattern costs nothing but its refusal. Never `re`: it backtracks.
Limits (docs/protocol.md): 256 rules, 1,024 octets and 1 MiB of memory each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import re2

from posthouse.errors import RosterRefused
from posthouse.mail.roster import MAX_RULES, RosterRule

MAX_PATTERN_OCTETS: Final = 1024
MAX_PATTERN_MEMORY: Final = 1 << 20


def compile_rules(rules: Sequence[RosterRule]) -> Callable[[str], RosterRule | None]:
    """Make the function that gives the first rule which matches the whole of a text, or None.

    The text is the content of a local part after the case step of the fold. Never
    raises once made. Raises RosterRefused("rules") for what RE2 does not take.
    """
    if len(rules) > MAX_RULES:
        raise RosterRefused("rules", f"{len(rules)} rules, more than {MAX_RULES}")
    if not rules:
        return _find_none
    compiled = [(_compile(number, rule.match), rule) for number, rule in enumerate(rules, start=1)]

    def find(text: str) -> RosterRule | None:
        octets = text.encode("utf-8", "replace")
        for matches, rule in compiled:
            if matches(octets) is not None:
                return rule
        return None

    return find


def _find_none(_text: str) -> RosterRule | None:
    return None


def _compile(number: int, pattern: str) -> Callable[[bytes], object]:
    octets = pattern.encode("utf-8")
    if len(octets) > MAX_PATTERN_OCTETS:
        raise RosterRefused("rules", f"rule {number}: over {MAX_PATTERN_OCTETS} octets")
    options = re2.Options()
    options.max_mem = MAX_PATTERN_MEMORY
    options.never_nl = True
    options.never_capture = True  # only whether it matches counts
    options.log_errors = False
    try:
        compiled = re2.compile(octets, options)
    except re2.error as error:
        reason = error.args[0] if error.args else "not RE2"
        shown = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise RosterRefused("rules", f"rule {number}: {shown[:200]}") from error
    fullmatch: Callable[[bytes], object] = compiled.fullmatch
    return fullmatch
