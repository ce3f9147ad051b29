"""A source that is Dovecot's user database, listed by `doveadm user '*'`.

Dovecot must run, and its userdb must be one that can be listed (passwd-file, SQL
and LDAP with an iterate query, passwd). The caller needs the right to talk to its
auth-userdb socket.
"""

from __future__ import annotations

from collections.abc import Iterator

from posthouse.domain.source_entries import EntryReader
from posthouse.domain.source_kinds import DovecotSpec, describe_source
from posthouse.ports_sources import Harvest
from posthouse.storage.program_lines import read_program_lines


class DovecotSource:
    """Every user that matches the mask; a name without a domain belongs to the one asked for."""

    def __init__(self, spec: DovecotSpec) -> None:
        self._spec = spec
        self.name = describe_source(spec)
        self.may_be_empty = spec.may_be_empty

    def get_version(self) -> str:
        """Only reading tells."""
        return ""

    def read(self, domain: str, harvest: Harvest) -> Iterator[str]:
        """Give every user of the domain. Raises SourceFailed."""
        entries = EntryReader(domain)
        config = ["-c", self._spec.config] if self._spec.config else []
        for line in read_program_lines(["doveadm", *config, "user", self._spec.mask]):
            content = entries.read(line)
            if content is not None:
                yield content
        harvest.take(entries)
