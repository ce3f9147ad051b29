"""A source that is a query to PostgreSQL or MySQL/MariaDB. The one owner of pymysql here.

Rows come in pieces through a cursor of the server, in a transaction that only
reads. TLS is the driver's: `?sslmode=verify-full` and `?ssl_ca=FILE` in the URL.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from posthouse.domain.source_entries import EntryReader
from posthouse.domain.source_kinds import SqlSpec, describe_source
from posthouse.domain.source_rows import bind_domain, read_row
from posthouse.errors import SourceFailed
from posthouse.ports_sources import Harvest
from posthouse.transports.source_secrets import read_password

CONNECT_SECONDS: Final = 10
QUERY_SECONDS: Final = 900
_ROWS: Final = 5000
_MYSQL_OPTIONS: Final = ("unix_socket", "ssl_ca", "ssl_cert", "ssl_key", "charset")


class SqlSource:
    """The rows of one query: an address, or a local part and a domain."""

    def __init__(self, spec: SqlSpec) -> None:
        self._spec = spec
        self.name = describe_source(spec)
        self.may_be_empty = spec.may_be_empty

    def get_version(self) -> str:
        """Only reading tells."""
        return ""

    def read(self, domain: str, harvest: Harvest) -> Iterator[str]:
        """Give what every row names. Raises SourceFailed."""
        entries = EntryReader(domain)
        spec = self._spec
        query, values = bind_domain(spec.query, domain, "%s")
        password = read_password(spec.password_file) if spec.password_file else ""
        ask = _ask_postgresql if spec.driver == "postgresql" else _ask_mysql
        with contextlib.closing(ask(spec.url, password, query, values, self.name)) as rows:
            for row in rows:
                try:
                    content = read_row(row, entries)
                except ValueError as error:
                    raise SourceFailed(f"{self.name}: {error}") from error
                if content is not None:
                    yield content
        harvest.take(entries)


def _ask_postgresql(
    url: str, password: str, query: str, values: Sequence[str], name: str
) -> Generator[Sequence[object], None, None]:
    try:
        import psycopg
        from psycopg.conninfo import make_conninfo
    except ImportError as error:
        raise SourceFailed(f"{name}: needs psycopg: pip install posthouse[pg]") from error
    try:
        with psycopg.connect(
            make_conninfo(url, **({"password": password} if password else {})),
            connect_timeout=CONNECT_SECONDS,
            options=f"-c statement_timeout={QUERY_SECONDS}s",
            application_name="posthouse",
        ) as connection:
            connection.read_only = True
            with connection.cursor("posthouse") as cursor:
                cursor.itersize = _ROWS
                cursor.execute(query.encode(), values or None)
                yield from cursor
    except psycopg.Error as error:
        raise SourceFailed(f"{name}: {_say(error)}") from error


def _ask_mysql(
    url: str, password: str, query: str, values: Sequence[str], name: str
) -> Generator[Sequence[object], None, None]:
    try:
        import pymysql
        from pymysql.cursors import SSCursor
    except ImportError as error:
        raise SourceFailed(f"{name}: needs pymysql: pip install posthouse[mysql]") from error
    try:
        connection = pymysql.connect(**_mysql_arguments(url), password=password)
        try:
            with connection.cursor(SSCursor) as cursor:
                cursor.execute("SET SESSION TRANSACTION READ ONLY")
                cursor.execute(query, values or None)
                while rows := cursor.fetchmany(_ROWS):
                    yield from rows
        finally:
            connection.close()
    except (pymysql.Error, OSError) as error:
        raise SourceFailed(f"{name}: {_say(error)}") from error


def _mysql_arguments(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    for option in options:
        if option not in _MYSQL_OPTIONS:
            raise SourceFailed(f"{option} is not known; there are {', '.join(_MYSQL_OPTIONS)}")
    tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
    return {
        "host": parts.hostname or "localhost",
        "port": parts.port or 3306,
        "user": unquote(parts.username or ""),
        "database": unquote(parts.path.removeprefix("/")) or None,
        "unix_socket": options.get("unix_socket"),
        "charset": options.get("charset", "utf8mb4"),
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": QUERY_SECONDS,
        **tls,
        **({"ssl_verify_cert": True, "ssl_verify_identity": True} if "ssl_ca" in tls else {}),
    }


def _say(error: Exception) -> str:
    text = " ".join(str(argument) for argument in error.args) or type(error).__name__
    return " ".join("".join(c if c.isprintable() else " " for c in text[:300]).split())
