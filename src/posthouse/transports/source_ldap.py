"""A source that is an LDAP directory.

The password goes to the server only under TLS, or on this host, unless the
operator says `tls = "none"`. Every value of the attributes is an address, but
those of proxyAddresses (Exchange, Entra) only with `smtp:` before them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Final

from posthouse.domain.source_entries import EntryReader
from posthouse.domain.source_kinds import LdapSpec, describe_source
from posthouse.errors import SourceFailed
from posthouse.ports_sources import Harvest
from posthouse.transports.source_secrets import read_password

_PREFIX: Final = re.compile(r"([A-Za-z0-9-]+):(.*)", re.DOTALL)


class LdapSource:
    """What one search finds."""

    def __init__(self, spec: LdapSpec) -> None:
        self._spec = spec
        self.name = describe_source(spec)
        self.may_be_empty = spec.may_be_empty

    def get_version(self) -> str:
        """Only reading tells."""
        return ""

    def read(self, domain: str, harvest: Harvest) -> Iterator[str]:
        """Give what the search finds. Raises SourceFailed."""
        try:
            from posthouse.transports.ldap_search import search
        except ImportError as error:
            raise SourceFailed(f"{self.name}: needs ldap3: pip install posthouse[ldap]") from error
        password = read_password(self._spec.password_file) if self._spec.bind_dn else ""
        entries = EntryReader(domain)
        try:
            with contextlib.closing(search(self._spec, domain, password)) as found:
                for name, value in found:
                    content = entries.read(_find_address(name, value))
                    if content is not None:
                        yield content
        except SourceFailed as error:
            raise SourceFailed(f"{self.name}: {error.detail}") from error
        harvest.take(entries)


def _find_address(name: str, value: bytes) -> str:
    """The address in a value, "" when it holds one of another kind."""
    text = value.decode("utf-8", "surrogateescape")
    if name.lower() != "proxyaddresses":
        return text
    prefixed = _PREFIX.fullmatch(text)
    if prefixed is None:
        return text
    return prefixed[2] if prefixed[1].lower() == "smtp" else ""  # else X500:, SIP:, EUM: …
