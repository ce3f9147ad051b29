"""From the operator's text file to the index in force (`ports_recipients.RecipientLists`).

The text is read as a stream: ten million addresses need 160 MB while the index
is built and nothing afterwards. What cannot be read without a doubt changes
nothing: the index of before stays where it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from posthouse.domain.recipients import MAX_LINE_LENGTH, RecipientFile
from posthouse.errors import ConfigError, StorageBroken
from posthouse.ports_recipients import Fingerprint, RecipientListFacts
from posthouse.storage.recipient_index import IndexBuilder, IndexDirectory
from posthouse.storage.whole_files import (
    domain_file_name,
    look_at,
    make_fingerprint,
    storage_errors,
)

MAX_FILE_BYTES: Final = 2 << 30
MAX_PROBLEM: Final = 4000  # characters of what is wrong with a file that `status` shows
MAX_RECIPIENTS: Final = 50_000_000  # what a roster may hold
_READ_BYTES: Final = 1 << 20


class RecipientIndexes:
    """The indexes of all domains, `<domain>.idx` in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prepare(self) -> None:
        """Make the directory and clear what an interrupted `publish` left. Raises StorageError.

        For the process that publishes, before it does.
        """
        with storage_errors(self._directory):
            self._directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            for leftover in self._directory.glob(".new-*"):
                leftover.unlink(missing_ok=True)

    def open(self, domain: str) -> IndexDirectory | None:
        """The list in force; None when there is none or it is damaged."""
        try:
            directory = IndexDirectory(self._path(domain))
        except (OSError, StorageBroken):
            return None
        return directory if directory.facts.domain == domain else None

    def get_version(self, domain: str) -> Fingerprint | None:
        """Changes with every `publish` of the domain."""
        return look_at(self._path(domain))

    def get_directory_version(self) -> Fingerprint | None:
        """Changes with every `publish`, unless two fall into one tick of the file clock."""
        return look_at(self._directory)

    def get_source_version(self, source: str) -> Fingerprint | None:
        """Changes with the text file; a symbolic link is followed."""
        return look_at(source)

    def ends_with_line(self, source: str) -> bool:
        """Tell whether the text file ends with LF; True for what is empty or cannot be read."""
        try:
            descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return True
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or not status.st_size:
                return True
            return os.pread(descriptor, 1, status.st_size - 1) in (b"\n", b"")
        except OSError:
            return True
        finally:
            os.close(descriptor)

    def verified_facts(self, domain: str) -> RecipientListFacts | None:
        """Facts of the list in force, checked to the last octet. Blocks."""
        directory = self.open(domain)
        return directory.facts if directory is not None and directory.verify() else None

    def publish(
        self, domain: str, source: str, *, now_us: int, refuse_empty: bool
    ) -> RecipientListFacts | None:
        """Read a text file and put its list in force, whole. Blocks, about 2 s a million addresses.

        Returns None when the file was written to meanwhile. Raises ConfigError, StorageError.
        """
        builder = IndexBuilder()
        reading, before = _read(domain, source, builder, refuse_empty=refuse_empty)
        if look_at(source) != before:
            return None
        facts = RecipientListFacts(
            domain=domain,
            entries=reading.entries,
            skipped=reading.skipped,
            catch_all=reading.catch_all,
            source=source,
            source_version=before,
            built_us=now_us,
        )
        return builder.write(self._path(domain), facts, reading.fold)

    def keep_only(self, domains: Collection[str]) -> None:
        """Take every other domain's list out of force. Raises StorageError."""
        with storage_errors(self._directory):
            names = set(map(domain_file_name, domains))
            for suffix in (".idx", ".problem"):
                for path in self._directory.glob(f"*{suffix}"):
                    if path.name.removesuffix(suffix) not in names:
                        path.unlink(missing_ok=True)

    def set_problem(self, domain: str, problem: str) -> None:
        """Leave word for `status`; it is no loss when a full disk forgets it."""
        path = self._problem_path(domain)
        try:
            if not problem:
                path.unlink(missing_ok=True)
            else:
                path.write_text(problem[:MAX_PROBLEM], "utf-8", "replace")
        except OSError:
            pass

    def get_problem(self, domain: str) -> str:
        """What is wrong with the domain's text file now."""
        try:
            return self._problem_path(domain).read_text("utf-8", "replace")
        except OSError:
            return ""

    def _problem_path(self, domain: str) -> Path:
        return self._directory / f"{domain_file_name(domain)}.problem"

    def _path(self, domain: str) -> Path:
        return self._directory / f"{domain_file_name(domain)}.idx"


def check_recipients(domain: str, source: str) -> RecipientFile:
    """Read a text file as `publish` would, and change nothing. Raises ConfigError."""
    reading, _ = _read(domain, source, IndexBuilder(), refuse_empty=False)
    return reading


def _read(
    domain: str, source: str, builder: IndexBuilder, *, refuse_empty: bool
) -> tuple[RecipientFile, Fingerprint]:
    """Read all of a text file. Raises ConfigError with everything that is wrong with it."""
    reading = RecipientFile(domain)
    try:
        # Not to be kept waiting by a named pipe that nobody writes to.
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                reading.report("not a regular file", line=0)
            elif status.st_size > MAX_FILE_BYTES:
                reading.report(f"larger than {MAX_FILE_BYTES >> 30} GiB", line=0)
            elif refuse_empty and not status.st_size:
                reading.report("empty (0 octets), perhaps just being written", line=0)
            elif not builder.add_all(reading.read_lines(split_lines(descriptor)), MAX_RECIPIENTS):
                reading.report(f"more than {MAX_RECIPIENTS:,} recipients", line=0)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError([f"{source}: {error.strerror or error}"]) from error
    if reading.mistake_count:
        raise ConfigError(reading.describe_mistakes(source))
    return reading, make_fingerprint(status)


def split_lines(descriptor: int) -> Iterator[str]:
    """The lines of a file without their LF; octets that are not UTF-8 become lone surrogates.

    Of a line that does not end, only as much is kept as shows that it is too long.
    """
    tail = b""
    while chunk := os.read(descriptor, _READ_BYTES):
        head, line_feed, rest = chunk.rpartition(b"\n")
        if line_feed:
            yield from (tail + head).decode("utf-8", "surrogateescape").split("\n")
            tail = rest
        elif len(tail) <= 4 * MAX_LINE_LENGTH:
            tail += rest
    if tail:
        yield tail.decode("utf-8", "surrogateescape")
