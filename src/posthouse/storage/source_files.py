"""Sources that are files: recipients text, CSV, system accounts with aliases(5).

Each is read as a stream. A file that changes while it is read is in doubt: that raises.
"""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterator
from typing import Final

from posthouse.domain.recipients import MAX_LINE_LENGTH, Fold, RecipientFile
from posthouse.domain.source_entries import EntryReader
from posthouse.domain.source_kinds import CsvSpec, PasswdSpec, TextSpec, describe_source
from posthouse.errors import SourceFailed
from posthouse.ports_sources import Harvest
from posthouse.storage.recipient_lists import split_lines

MAX_FILE_BYTES: Final = 8 << 30


class TextSource:
    """A recipients text file (docs/configuration.md), strict to the last line."""

    def __init__(self, spec: TextSpec, how: Fold) -> None:
        """how: the fold of the roster; options of the file that say otherwise are a mistake."""
        self._spec = spec
        self._how = how
        self.name = describe_source(spec)
        self.may_be_empty = spec.may_be_empty

    def get_version(self) -> str:
        """The state of the file."""
        return look_at_files(self._spec.path)

    def read(self, domain: str, harvest: Harvest) -> Iterator[str]:
        """Give what the file lists. Raises SourceFailed with every mistake in it."""
        reading = RecipientFile(domain, folded=False)
        yield from reading.read_lines(read_file_lines(self._spec.path))
        if reading.has_options and reading.fold != self._how:
            reading.report("its % options differ from `fold` of the domain", line=0)
        if reading.mistake_count:
            raise SourceFailed("; ".join(reading.describe_mistakes(self._spec.path)))
        harvest.skipped += reading.skipped
        harvest.catch_all |= reading.catch_all


class CsvSource:
    """A CSV file, one person a line, addresses in one or more columns."""

    def __init__(self, spec: CsvSpec) -> None:
        self._spec = spec
        self.name = describe_source(spec)
        self.may_be_empty = spec.may_be_empty

    def get_version(self) -> str:
        """The state of the file."""
        return look_at_files(self._spec.path)

    def read(self, domain: str, harvest: Harvest) -> Iterator[str]:
        """Give every cell of the columns that holds something. Raises SourceFailed."""
        entries = EntryReader(domain)
        lines = read_file_lines(self._spec.path)
        rows = csv.reader(lines, delimiter=self._spec.delimiter, strict=True)
        try:
            columns = self._find_columns(rows)
            last = max(columns, default=0)
            for row in rows:
                if not row:
                    continue
                if len(row) <= last:
                    raise SourceFailed(
                        f"{self._spec.path}:{rows.line_num}: {len(row)} columns, not {last + 1}"
                    )
                for column in columns:
                    content = entries.read(row[column])
                    if content is not None:
                        yield content
        except csv.Error as error:
            raise SourceFailed(f"{self._spec.path}:{rows.line_num}: {error}") from error
        harvest.take(entries)

    def _find_columns(self, rows: Iterator[list[str]]) -> list[int]:
        wanted = self._spec.columns or ("1",)
        if all(name.isdigit() for name in wanted):
            return [int(name) - 1 for name in wanted]
        header = [cell.strip().removeprefix("\ufeff") for cell in next(rows, [])]
        missing = [name for name in wanted if name not in header]
        if missing:
            raise SourceFailed(f"{self._spec.path}:1: no column {missing[0]!r}")
        return [header.index(name) for name in wanted]


class PasswdSource:
    """Accounts of a passwd(5) file within a range of uids, and names of an aliases(5) file."""

    def __init__(self, spec: PasswdSpec) -> None:
        self._spec = spec
        self.name = describe_source(spec)
        self.may_be_empty = spec.may_be_empty

    def get_version(self) -> str:
        """The state of both files."""
        return look_at_files(self._spec.path, self._spec.aliases)

    def read(self, domain: str, harvest: Harvest) -> Iterator[str]:
        """Give account names and alias names. Raises SourceFailed."""
        entries = EntryReader(domain)
        spec = self._spec
        for number, line in enumerate(read_file_lines(spec.path), start=1):
            if not line or line.startswith(("#", "+", "-")):  # NIS lines name nobody here
                continue
            fields = line.split(":")
            if len(fields) != 7 or not fields[2].isdigit():
                raise SourceFailed(f"{spec.path}:{number}: no passwd(5) line")
            if spec.first_uid <= int(fields[2]) <= spec.last_uid:
                content = entries.read(fields[0])
                if content is not None:
                    yield content
        if spec.aliases and (spec.aliases_must_exist or os.path.exists(spec.aliases)):
            for name in read_alias_names(spec.aliases):
                content = entries.read(name)
                if content is not None:
                    yield content
        harvest.take(entries)


def read_alias_names(path: str) -> Iterator[str]:
    """Names on the left side of an aliases(5) file; what they stand for is not read.

    Raises SourceFailed for a line without a name.
    """
    for number, line in enumerate(read_file_lines(path), start=1):
        bare = line.strip()
        if not bare or bare.startswith("#") or line[0] in " \t":
            continue
        if bare.startswith('"'):
            end = bare.find('"', 1)
            name, rest = bare[: end + 1], bare[end + 1 :].lstrip()
            colon = rest[:1] if end > 0 else ""
        else:
            name, colon, _ = bare.partition(":")
        if not colon or not name.strip():
            raise SourceFailed(f"{path}:{number}: no aliases(5) line")
        yield name.strip()


def look_at_files(*paths: str) -> str:
    """The state of some files, none of which needs to exist."""
    states = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            states.append(f"{error.errno}")
        else:
            states.append(
                f"{status.st_size}.{status.st_mtime_ns}.{status.st_ctime_ns}.{status.st_ino}"
            )
    return " ".join(states)


def read_file_lines(path: str) -> Iterator[str]:
    """The lines of a regular file that stays as it is. Raises SourceFailed.

    Without LF, and without CR before it; octets that are not UTF-8 as surrogates.
    """
    try:
        # Not to be kept waiting by a named pipe that nobody writes to.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SourceFailed(f"{path}: {error.strerror}") from error
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise SourceFailed(f"{path}: not a regular file")
        if before.st_size > MAX_FILE_BYTES:
            raise SourceFailed(f"{path}: larger than {MAX_FILE_BYTES >> 30} GiB")
        for line in split_lines(descriptor):
            if len(line) > 4 * MAX_LINE_LENGTH:
                raise SourceFailed(f"{path}: a line longer than {4 * MAX_LINE_LENGTH} characters")
            yield line.removesuffix("\r")
        after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise SourceFailed(f"{path}: changed while it was read")
    except OSError as error:
        raise SourceFailed(f"{path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
