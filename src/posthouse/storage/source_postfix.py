"""Sources that are Postfix's lookup tables.

Indexed tables are listed by `postmap -s`, which reads the index that Postfix
itself reads; tables of patterns have no list and become rules.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from posthouse.domain.postfix_patterns import PatternError, read_patterns
from posthouse.domain.roster_rules import compile_rules
from posthouse.domain.source_entries import EntryReader
from posthouse.domain.source_kinds import PatternsSpec, PostmapSpec, describe_source
from posthouse.errors import RosterRefused, SourceFailed
from posthouse.mail.roster import RosterRule
from posthouse.ports_sources import Harvest
from posthouse.storage.program_lines import read_program_lines
from posthouse.storage.source_files import look_at_files, read_file_lines

_SUFFIXES: Final = {
    "hash": (".db",),
    "btree": (".db",),
    "lmdb": (".lmdb",),
    "cdb": (".cdb",),
    "dbm": (".dir", ".pag"),
    "sdbm": (".dir", ".pag"),
    "texthash": ("",),
}


class PostmapSource:
    """The keys of an indexed table. Values are not read; `@domain` is a catch-all."""

    def __init__(self, spec: PostmapSpec) -> None:
        self._spec = spec
        self.name = describe_source(spec)
        self.may_be_empty = spec.may_be_empty

    def get_version(self) -> str:
        """The state of the index, or of the text where that is the table."""
        return look_at_files(*(self._spec.path + end for end in _SUFFIXES[self._spec.table]))

    def read(self, domain: str, harvest: Harvest) -> Iterator[str]:
        """Give every key for the domain. Raises SourceFailed."""
        entries = EntryReader(domain)
        spec = self._spec
        config = ["-c", spec.config] if spec.config else []
        before = self.get_version()
        for line in read_program_lines(
            ["postmap", *config, "-s", f"{spec.table}:{os.path.abspath(spec.path)}"]
        ):
            content = entries.read(line.partition("\t")[0])
            if content is not None:
                yield content
        if self.get_version() != before:
            raise SourceFailed(f"{spec.path}: changed while it was read")
        harvest.take(entries)


class PatternsSource:
    """A regexp or pcre table: no addresses, but rules in the order of the table."""

    def __init__(self, spec: PatternsSpec) -> None:
        self._spec = spec
        self.name = describe_source(spec)
        self.may_be_empty = spec.may_be_empty

    def get_version(self) -> str:
        """The state of the file."""
        return look_at_files(self._spec.path)

    def read(self, domain: str, harvest: Harvest) -> Iterator[str]:
        """Put the rules into the harvest; gives nobody. Raises SourceFailed with the line."""
        path = self._spec.path
        lines = read_file_lines(path)
        try:
            for rule in read_patterns(lines, self._spec.table, domain, _compile):
                if rule is None:
                    harvest.skipped += 1
                elif not rule.match:
                    harvest.catch_all = True
                else:
                    harvest.rules.append(
                        msgspec.convert(
                            {
                                "match": rule.match,
                                "action": rule.action,
                                "note": f"{os.path.basename(path)}:{rule.line}",
                            },
                            RosterRule,
                        )
                    )
        except PatternError as error:
            raise SourceFailed(f"{path}:{error.line}: {error.what}") from error
        yield from ()


def _compile(pattern: str) -> Callable[[str], bool]:
    """Raises ValueError for what RE2 does not take."""
    try:
        find = compile_rules([RosterRule(match=pattern, action="accept")])
    except RosterRefused as error:
        raise ValueError(error.detail) from error
    return lambda text: find(text) is not None
