"""Reads one entry of a source: an address, a local part, a catch-all, or none of these.

Directories and databases hold more than mailboxes of one domain, and now and then
a slip. What is for another domain is counted; what is no address cannot receive
mail and is counted too, with examples: whoever builds the roster decides when
that is too much to believe the source.
"""

from __future__ import annotations

import re
from typing import Final

from posthouse.errors import AddressError
from posthouse.mail.address import MAX_LOCAL_OCTETS, normalize_domain, unquote_local_part

MAX_EXAMPLES: Final = 5
_SHOWN: Final = 60
_INVISIBLE: Final = re.compile(r"[^\S ]|[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class EntryReader:
    """Turns entries into contents of local parts of one domain, and keeps count of the rest.

    bare: an entry without a domain is a local part of this domain.
    """

    def __init__(self, domain: str, *, bare: bool = True) -> None:
        """domain: lower-case A-labels."""
        self.domain = domain
        self.skipped = 0
        self.unreadable = 0
        self.examples: list[str] = []
        self.catch_all = False
        self._bare = bare
        self._plain = re.compile(
            rf"([A-Za-z0-9_][A-Za-z0-9_.+=-]{{0,63}})@(?i:{re.escape(domain)})\Z"
        ).match

    def read(self, entry: str) -> str | None:
        """The content of the local part (unquoted, not folded); None when it is not to be listed.

        Blanks around the entry are dropped; an empty one is nothing at all.
        """
        match = self._plain(entry)
        if match is not None:
            return match[1]
        return self._read_slowly(entry.strip())

    def _read_slowly(self, entry: str) -> str | None:
        if not entry:
            return None
        local, at, domain = entry.rpartition("@")
        if not at or entry.endswith('"'):  # a quoted local part may hold an "@" itself
            local, at, domain = entry, "", self.domain
        try:
            name = domain.lower() if domain.startswith("[") else normalize_domain(domain)
            if name != self.domain or (not at and entry.lower() == self.domain):
                self.skipped += 1
                return None
            if at and not local:
                self.catch_all = True
                return None
            content = unquote_local_part(local)
        except AddressError:
            self._refuse(entry)
            return None
        if len(content.encode("utf-8", "replace")) > MAX_LOCAL_OCTETS or _INVISIBLE.search(content):
            self._refuse(entry)
            return None
        if not at and not self._bare:
            self.skipped += 1
            return None
        return content

    def _refuse(self, entry: str) -> None:
        self.unreadable += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(ascii(entry[:_SHOWN])[1:-1])
