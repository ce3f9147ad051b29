"""The kinds of sources of addresses, as values: what an operator said of one, read and checked.

`source_specs` reads them from the configuration, the engines in `storage` and
`transports` open them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec

LDAP_ATTRIBUTES: Final = ("mail", "proxyAddresses", "mailAlternateAddress")


class TextSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A recipients text file."""

    path: str
    may_be_empty: bool = False


class CsvSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A CSV file. columns: names in its first line, or numbers from 1 (then all lines count)."""

    path: str
    columns: tuple[str, ...] = ()
    delimiter: str = ","
    may_be_empty: bool = False


class PostmapSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A Postfix table that `postmap -s` can list. config: directory of main.cf, "" is Postfix's."""

    table: str
    path: str
    config: str = ""
    may_be_empty: bool = False


class PatternsSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A Postfix regexp_table(5) or pcre_table(5) that lists recipients."""

    table: Literal["regexp", "pcre"]
    path: str
    may_be_empty: bool = False


class PasswdSpec(msgspec.Struct, frozen=True, kw_only=True):
    """System accounts by uid (both ends belong to it), and the names of an aliases(5) file.

    aliases: "" for none. aliases_must_exist: it was named by the operator.
    """

    path: str = "/etc/passwd"
    aliases: str = "/etc/aliases"
    aliases_must_exist: bool = False
    first_uid: int = 1000
    last_uid: int = 59_999
    may_be_empty: bool = False


class DovecotSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What `doveadm user MASK` lists. config: "" is Dovecot's own."""

    config: str = ""
    mask: str = "*"
    may_be_empty: bool = False


class LdapSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A search (RFC 4516). tls: "auto" takes StartTLS unless ldaps: or on this host."""

    host: str
    port: int
    ldaps: bool
    base: str
    attributes: tuple[str, ...] = LDAP_ATTRIBUTES
    scope: Literal["base", "one", "sub"] = "sub"
    filter: str = ""
    bind_dn: str = ""
    password_file: str = ""
    tls: Literal["auto", "starttls", "none"] = "auto"
    ca_file: str = ""
    page_size: int = 500
    may_be_empty: bool = False

    @property
    def url(self) -> str:
        """For people."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'ldaps' if self.ldaps else 'ldap'}://{host}:{self.port}/{self.base}"


class SqlSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A query. url: without a password; one column of addresses, or local part and domain."""

    driver: Literal["sqlite", "postgresql", "mysql"]
    url: str
    query: str
    password_file: str = ""
    may_be_empty: bool = False


SourceSpec = (
    TextSpec | CsvSpec | PostmapSpec | PatternsSpec | PasswdSpec | DovecotSpec | LdapSpec | SqlSpec
)

_PATHS: Final = ("path", "config", "aliases", "password_file", "ca_file")


def resolve_paths(spec: SourceSpec, absolute: Callable[[str], str]) -> SourceSpec:
    """The same source with every file's path made absolute."""
    changes = {name: absolute(value) for name in _PATHS if (value := getattr(spec, name, ""))}
    if isinstance(spec, SqlSpec) and spec.driver == "sqlite":
        changes["url"] = "sqlite:" + absolute(sqlite_path(spec.url))
    return msgspec.structs.replace(spec, **changes)


def sqlite_path(url: str) -> str:
    """The file of a sqlite: URL; sqlite:///var/x, sqlite:/var/x and sqlite:x are understood."""
    rest = url.partition(":")[2]
    return rest[2:] if rest.startswith("//") else rest


def describe_source(spec: SourceSpec) -> str:
    """Name a source for people, without secrets."""
    match spec:
        case TextSpec():
            return f"file:{spec.path}"
        case CsvSpec():
            return f"csv:{spec.path}"
        case PostmapSpec() | PatternsSpec():
            return f"postfix:{spec.table}:{spec.path}"
        case PasswdSpec():
            return f"passwd:{spec.path}"
        case DovecotSpec():
            return f"dovecot:{spec.config}"
        case LdapSpec():
            return spec.url
        case SqlSpec():
            return f"sql:{spec.url}"
