"""Who exists: the directory of one domain, and the published lists of all of them.

Every engine *and every fake* passes the contract suite of its port (`tests/contract`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping
from typing import Protocol

import msgspec

from posthouse.domain.finding import Answer


class RecipientDirectory(Protocol):
    """Who exists in one backed-up domain. Look-ups take microseconds and never block."""

    def find(self, local_part: str, network: str = "") -> Answer | Awaitable[Answer]:
        """Look up the *content* of a local part (unquoted). Total: never raises.

        At once; awaitable only where a digest is slow, and then bounded in number. network: of
        the client, whose wrong guesses at slow digests are counted; "" counts none.
        """

    def describe(self) -> Mapping[str, str | int | bool]:
        """For `status`: source, entries, loaded_at, problem."""


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """Tells one state of a file from another. Instants are nanoseconds since 1970."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class RecipientListFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one published list.

    entries: distinct recipients; skipped: lines for other domains; source, source_version:
    the text file and its state as it was read.
    """

    domain: str
    entries: int
    skipped: int
    catch_all: bool
    source: str
    source_version: Fingerprint
    built_us: int


class RecipientLists(Protocol):
    """The lists of all domains: `publish` is for one process, the rest for any.

    Versions are None for what does not exist; they cost one stat each.
    """

    def open(self, domain: str) -> RecipientDirectory | None:
        """The list in force; None when there is none or it is damaged. Does not block for long."""

    def get_version(self, domain: str) -> Fingerprint | None:
        """Changes with every `publish` of the domain."""

    def get_directory_version(self) -> Fingerprint | None:
        """Changes with every `publish`, unless two fall into one tick of the file clock."""

    def get_source_version(self, source: str) -> Fingerprint | None:
        """Changes with the text file."""

    def ends_with_line(self, source: str) -> bool:
        """Tell whether the text file ends with LF; True for what is empty or cannot be read."""

    def verified_facts(self, domain: str) -> RecipientListFacts | None:
        """Facts of the list in force, checked to the last octet. Blocks: call it in a thread."""

    def publish(
        self, domain: str, source: str, *, now_us: int, refuse_empty: bool
    ) -> RecipientListFacts | None:
        """Read a text file and put its list in force, whole. Blocks: call it in a thread.

        Returns None when the file was written to meanwhile: ask again later.
        refuse_empty: a file of 0 octets is a mistake.
        Raises ConfigError with all mistakes of the file, StorageError. Unless it
        returns facts, what was in force stays in force.
        """

    def keep_only(self, domains: Collection[str]) -> None:
        """Take every other domain's list out of force. Raises StorageError."""

    def set_problem(self, domain: str, problem: str) -> None:
        """Leave word of what is wrong with the domain's text file; "" = nothing. Never raises."""

    def get_problem(self, domain: str) -> str:
        """What `set_problem` said last, "" when nothing is wrong. Never raises."""
