"""Opens the sources of addresses of a configuration: the one place that knows all engines."""

from __future__ import annotations

from posthouse.domain.recipients import Fold
from posthouse.domain.source_kinds import (
    CsvSpec,
    DovecotSpec,
    LdapSpec,
    PasswdSpec,
    PatternsSpec,
    PostmapSpec,
    SourceSpec,
    SqlSpec,
    TextSpec,
)
from posthouse.ports_sources import AddressSource
from posthouse.storage.source_dovecot import DovecotSource
from posthouse.storage.source_files import CsvSource, PasswdSource, TextSource
from posthouse.storage.source_postfix import PatternsSource, PostmapSource
from posthouse.storage.source_sqlite import SqliteSource
from posthouse.transports.source_ldap import LdapSource
from posthouse.transports.source_sql import SqlSource


def open_source(spec: SourceSpec, how: Fold) -> AddressSource:
    """The engine for a source; nothing is read yet. how: the fold of the domain's roster."""
    match spec:
        case TextSpec():
            return TextSource(spec, how)
        case CsvSpec():
            return CsvSource(spec)
        case PostmapSpec():
            return PostmapSource(spec)
        case PatternsSpec():
            return PatternsSource(spec)
        case PasswdSpec():
            return PasswdSource(spec)
        case DovecotSpec():
            return DovecotSource(spec)
        case LdapSpec():
            return LdapSource(spec)
        case SqlSpec():
            return SqliteSource(spec) if spec.driver == "sqlite" else SqlSource(spec)
