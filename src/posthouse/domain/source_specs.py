"""How an operator names a source of addresses, and what it comes to.

A source is one text, ``KIND:WHERE``, files with options behind a question mark::

    file:users.txt
    csv:people.csv?column=mail&delimiter=;
    postfix:hash:/etc/postfix/virtual         hash, btree, lmdb, cdb, dbm, texthash: postmap -s
    postfix:regexp:/etc/postfix/recipients    regexp, pcre: becomes rules
    passwd:                                   /etc/passwd?uid=1000-59999&aliases=/etc/aliases
    dovecot:                                  doveadm user '*'; dovecot:/etc/dovecot/dovecot.conf
    ldaps://ldap.example.com/dc=example,dc=com?mail,proxyAddresses?sub?(objectClass=person)
    sql:postgresql://mail@db.example.com/mail SELECT address FROM mailbox WHERE active

or a table with the same names, ``{ sql = "mysql://…", query = "…", password_file = "…" }``,
where options stand that do not belong into a text, above all `password_file`.
Parsing only: nothing is opened. Relative paths stay relative until
`source_kinds.resolve_paths`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from posthouse.domain.source_kinds import (
    LDAP_ATTRIBUTES,
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

TABLE_TYPES: Final = ("hash", "btree", "lmdb", "cdb", "dbm", "sdbm", "texthash")
PATTERN_TYPES: Final = ("regexp", "pcre")
KINDS: Final = ("file", "csv", "postfix", "passwd", "dovecot", "ldap", "sql")


class SpecError(ValueError):
    """What is wrong with a source as written, and what to write instead."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy


def parse_source(value: object) -> SourceSpec:
    """Read one source of the configuration, a text or a table. Raises SpecError."""
    if isinstance(value, str):
        kind, where, options = _split_text(value.strip())
    elif isinstance(value, Mapping):
        kind, where, options = _split_table(value)
    else:
        raise SpecError("is no source", _EXAMPLES)
    given = _Options(kind, options)
    spec = _READERS[kind](where, given)
    given.check_all_used()
    return spec


_EXAMPLES: Final = 'write it like "file:users.txt" or "postfix:hash:/etc/postfix/virtual"'
_QUERIED: Final = ("ldap", "sql")


def _split_text(text: str) -> tuple[str, str, dict[str, str]]:
    if text.startswith(("ldap://", "ldaps://", "ldapi://")):
        return "ldap", text, {}
    kind, colon, where = text.partition(":")
    if kind not in KINDS or not colon:
        if "/" in kind or "." in kind:
            raise SpecError(f"{text!r} does not say what it is", f'write "file:{text}"')
        raise SpecError(f"{kind!r} is not a kind of source", f"there are {', '.join(KINDS)}")
    if kind == "sql":
        url, _, query = where.strip().partition(" ")
        return kind, url, {"query": query.strip()} if query.strip() else {}
    if kind in _QUERIED:
        return kind, where, {}
    where, mark, query = where.partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise SpecError(f"cannot read {mark}{query}", "write options as name=value&…") from None
    return kind, where, _unique(pairs)


def _unique(pairs: list[tuple[str, str]]) -> dict[str, str]:
    if len(dict(pairs)) != len(pairs):
        raise SpecError("an option stands twice", "remove one")
    return dict(pairs)


def _split_table(table: Mapping[object, object]) -> tuple[str, str, dict[str, str]]:
    kinds = [kind for kind in KINDS if kind in table]
    if len(kinds) != 1:
        raise SpecError(
            "the table does not name one source", 'write { sql = "URL", query = "SELECT …" }'
        )
    options: dict[str, str] = {}
    for name, value in table.items():
        if isinstance(value, bool):
            options[str(name)] = "yes" if value else "no"
        elif isinstance(value, (str, int)):
            options[str(name)] = str(value)
        elif isinstance(value, list) and all(isinstance(one, str) for one in value):
            options[str(name)] = ",".join(value)
        else:
            raise SpecError(f"{name} is neither a text nor a number", "write it in quotes")
    where = options.pop(kinds[0])
    return kinds[0], where, options


class _Options:
    """Named options, each taken once; what nobody took is a mistake."""

    def __init__(self, kind: str, given: dict[str, str]) -> None:
        self._kind = kind
        self._given = given
        self._known: list[str] = []

    def text(self, name: str, default: str = "") -> str:
        self._known.append(name)
        return self._given.pop(name, default)

    def has(self, name: str) -> bool:
        return name in self._given

    def flag(self, name: str) -> bool:
        value = self.text(name, "no").lower()
        if value not in ("yes", "no", "true", "false"):
            raise SpecError(f"{name} is neither yes nor no", f"write {name}=yes")
        return value in ("yes", "true")

    def number(self, name: str, default: int, low: int, high: int) -> int:
        value = self.text(name, str(default))
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise SpecError(f"{name} is out of range", f"write a number from {low} to {high}")
        return int(value)

    def choice(self, name: str, *choices: str) -> str:
        value = self.text(name, choices[0])
        if value not in choices:
            raise SpecError(f"{name} is {value!r}", f"there are {', '.join(choices)}")
        return value

    def empty(self) -> bool:
        """Whether the source may name nobody."""
        return self.flag("may_be_empty")

    def check_all_used(self) -> None:
        for name in self._given:
            raise SpecError(
                f"{name} is not an option of {self._kind}",
                f"there are {', '.join(sorted(self._known))}",
            )


# --------------------------------------------------------------------------- one kind each


def _path(where: str, example: str) -> str:
    if not where or "\0" in where:
        raise SpecError("no file is named", f'write "{example}"')
    return where


def _read_text_file(where: str, given: _Options) -> TextSpec:
    return TextSpec(path=_path(where, "file:users.txt"), may_be_empty=given.empty())


def _read_csv(where: str, given: _Options) -> CsvSpec:
    columns = tuple(filter(None, given.text("column").split(",")))
    delimiter = {"tab": "\t", "\\t": "\t"}.get(*[given.text("delimiter", ",")] * 2)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise SpecError("delimiter is not one character", "write delimiter=; or delimiter=tab")
    numbers = [column.isdigit() for column in columns]
    if any(numbers) and (not all(numbers) or "0" in columns):
        raise SpecError("column mixes names and numbers", "numbers count from 1")
    return CsvSpec(
        path=_path(where, "csv:people.csv?column=mail"),
        columns=columns,
        delimiter=delimiter,
        may_be_empty=given.empty(),
    )


def _read_postfix(where: str, given: _Options) -> SourceSpec:
    table, colon, path = where.partition(":")
    if not colon or (table not in TABLE_TYPES and table not in PATTERN_TYPES):
        raise SpecError(
            f"{table!r} is not a table that can be listed",
            f"there are {', '.join((*TABLE_TYPES, *PATTERN_TYPES))}; "
            "for LDAP and SQL use the sources of these names",
        )
    path = _path(path, f"postfix:{table}:/etc/postfix/virtual")
    if table in PATTERN_TYPES:
        kind: Literal["regexp", "pcre"] = "pcre" if table == "pcre" else "regexp"
        return PatternsSpec(table=kind, path=path, may_be_empty=given.empty())
    return PostmapSpec(
        table=table, path=path, config=given.text("config"), may_be_empty=given.empty()
    )


def _read_passwd(where: str, given: _Options) -> PasswdSpec:
    uids = given.text("uid", "1000-59999")
    match = re.fullmatch(r"([0-9]{1,10})-([0-9]{1,10})", uids)
    if match is None or int(match[1]) > int(match[2]):
        raise SpecError(f"uid={uids} is not a range", "write uid=1000-59999")
    named = given.has("aliases")
    return PasswdSpec(
        path=where or "/etc/passwd",
        aliases=given.text("aliases", "/etc/aliases"),
        aliases_must_exist=named,
        first_uid=int(match[1]),
        last_uid=int(match[2]),
        may_be_empty=given.empty(),
    )


def _read_dovecot(where: str, given: _Options) -> DovecotSpec:
    mask = given.text("mask", "*")
    if not mask or mask.startswith("-"):
        raise SpecError("mask is no user mask", "write mask=*@example.com")
    return DovecotSpec(config=where, mask=mask, may_be_empty=given.empty())


_SCOPES: Final[dict[str, Literal["base", "one", "sub"]]] = {
    "base": "base",
    "one": "one",
    "sub": "sub",
}


def _read_ldap(where: str, given: _Options) -> LdapSpec:
    """RFC 4516 §2: ldap://host:port/dn?attributes?scope?filter."""
    remedy = 'write it like "ldaps://host/dc=example,dc=com?mail?sub?(objectClass=person)"'
    head, *parts = where.split("?")
    try:
        url = urlsplit(head)
        port = url.port
    except ValueError:
        raise SpecError(f"{where!r} is no LDAP URL", remedy) from None
    if url.scheme not in ("ldap", "ldaps") or not url.hostname or len(parts) > 3:
        raise SpecError(f"{where!r} is no LDAP URL", remedy)
    if "@" in url.netloc:
        raise SpecError(
            "a name or password in the URL", "use bind_dn and password_file, in a table"
        )
    attributes, scope, condition = (*map(unquote, parts), "", "", "")[:3]
    if (scope or "sub") not in _SCOPES:
        raise SpecError(f"{scope!r} is no scope", "there are base, one and sub")
    if condition and not (condition.startswith("(") and condition.endswith(")")):
        raise SpecError(f"{condition!r} is no filter", "write it in parentheses (RFC 4515)")
    names = tuple(filter(None, attributes.split(","))) or LDAP_ATTRIBUTES
    for name in names:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9.;-]{0,99}", name):
            raise SpecError(f"{name!r} is no attribute", "write names like mail,proxyAddresses")
    tls = given.choice("tls", "auto", "starttls", "none")
    spec = LdapSpec(
        host=url.hostname,
        port=port or (636 if url.scheme == "ldaps" else 389),
        ldaps=url.scheme == "ldaps",
        base=unquote(url.path.removeprefix("/")),
        attributes=names,
        scope=_SCOPES[scope or "sub"],
        filter=condition,
        bind_dn=given.text("bind_dn"),
        password_file=given.text("password_file"),
        tls="auto" if tls == "auto" else "starttls" if tls == "starttls" else "none",
        ca_file=given.text("ca_file"),
        page_size=given.number("page_size", 500, 1, 100_000),
        may_be_empty=given.empty(),
    )
    if bool(spec.bind_dn) != bool(spec.password_file):
        raise SpecError("bind_dn and password_file belong together", "give both or neither")
    if spec.ldaps and spec.tls == "starttls":
        raise SpecError("starttls over ldaps", "use ldap:// with starttls, or ldaps:// alone")
    return spec


_DRIVERS: Final[dict[str, Literal["sqlite", "postgresql", "mysql"]]] = {
    "sqlite": "sqlite",
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "mysql": "mysql",
    "mariadb": "mysql",
}


def _read_sql(where: str, given: _Options) -> SqlSpec:
    remedy = 'write "sql:postgresql://user@host/database SELECT address FROM mailbox"'
    scheme, colon, rest = where.partition(":")
    driver = _DRIVERS.get(scheme)
    if driver is None or not colon or not rest:
        raise SpecError(f"{scheme!r} is no SQL database", f"there are {', '.join(_DRIVERS)}")
    if driver != "sqlite":
        try:
            url = urlsplit(where)
            _ = url.port
        except ValueError:
            raise SpecError("is no URL", remedy) from None
        if url.password is not None or "password" in dict(parse_qsl(url.query)):
            raise SpecError("a password in the URL", "use password_file, in a table")
        if not rest.startswith("//"):
            raise SpecError("is no URL", remedy)
    query = given.text("query")
    if not query.strip():
        raise SpecError("no query", remedy)
    return SqlSpec(
        driver=driver,
        url=where,
        query=query.strip().removesuffix(";"),
        password_file=given.text("password_file"),
        may_be_empty=given.empty(),
    )


_READERS: Final[dict[str, Callable[[str, _Options], SourceSpec]]] = {
    "file": _read_text_file,
    "csv": _read_csv,
    "postfix": _read_postfix,
    "passwd": _read_passwd,
    "dovecot": _read_dovecot,
    "ldap": _read_ldap,
    "sql": _read_sql,
}
