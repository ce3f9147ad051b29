"""Throw-away databases with addresses in them: OpenLDAP's slapd, PostgreSQL, MariaDB.

Each has a directory and a port of its own on 127.0.0.1 and ends with its test.
The two SQL servers refuse to run as root and run as `nobody`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from peers.processes import PeerFailed, Running, find_program, free_port, wait_until

_NOBODY: Final = "nobody"
POSTGRESQL_BIN: Final = Path("/usr/lib/postgresql/15/bin")


class _Instance:
    """A directory and a program that end together."""

    def __init__(self, name: str) -> None:
        self.root = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        self.root.chmod(0o755)
        self.port = free_port()
        self._running: Running | None = None

    def _start(self, arguments: Sequence[str]) -> None:
        self._running = Running(arguments, output=self.root / "output", cwd=self.root)
        self._running.wait_answering(self.port)

    def close(self) -> None:
        """Stop it and remove its files."""
        if self._running is not None:
            self._running.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _run(arguments: Sequence[str], *, given: str = "", cwd: Path | None = None) -> None:
    done = subprocess.run(
        arguments, input=given, capture_output=True, text=True, timeout=60, cwd=cwd
    )
    if done.returncode:
        raise PeerFailed(f"{arguments[0]}: {done.stdout[-500:]} {done.stderr[-1500:]}")


def _as_nobody(arguments: Sequence[str]) -> list[str]:
    """`arguments` to be run as nobody where we are root."""
    if os.geteuid() != 0:
        return list(arguments)
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *arguments]


def _give_to_nobody(path: Path) -> None:
    if os.geteuid() == 0:
        entry = pwd.getpwnam(_NOBODY)
        os.chown(path, entry.pw_uid, entry.pw_gid)


_SLAPD: Final = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
attributetype ( 1.2.840.113556.1.2.210 NAME 'proxyAddresses'
  EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
objectclass ( 1.1.1.1 NAME 'exchangePerson' SUP top AUXILIARY MAY proxyAddresses )
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile {root}/slapd.pid
TLSCertificateFile {root}/chain.pem
TLSCertificateKeyFile {root}/key.pem
sizelimit 10
database mdb
suffix "dc=example,dc=com"
directory {root}/data
limits dn.exact="cn=reader,dc=example,dc=com" size.prtotal=unlimited
limits dn.exact="cn=limited,dc=example,dc=com" size.prtotal=10
access to attrs=userPassword by anonymous auth
access to * by dn.exact="cn=reader,dc=example,dc=com" read
  by dn.exact="cn=limited,dc=example,dc=com" read
"""


class Slapd(_Instance):
    """OpenLDAP with ldap: (StartTLS) and ldaps:, which only two readers may search.

    Without pages they get 10 entries; LIMITED gets no more with pages.
    """

    READER: Final = "cn=reader,dc=example,dc=com"
    LIMITED: Final = "cn=limited,dc=example,dc=com"
    PASSWORD: Final = "the reader's"

    def __init__(self, ldif: str, *, chain: bytes, key: bytes) -> None:
        """ldif: entries below dc=example,dc=com."""
        super().__init__("slapd")
        self.ldaps_port = free_port()
        (self.root / "data").mkdir()
        (self.root / "chain.pem").write_bytes(chain)
        (self.root / "key.pem").write_bytes(key)
        config = self.root / "slapd.conf"
        config.write_text(_SLAPD.format(root=self.root))
        base = "dn: dc=example,dc=com\nobjectClass: domain\ndc: example\n\n" + "".join(
            f"dn: {name}\nobjectClass: person\nsn: x\nuserPassword: {self.PASSWORD}\n\n"
            for name in (self.READER, self.LIMITED)
        )
        try:
            slapadd = find_program("slapadd", "slapd")
            _run([slapadd, "-q", "-f", str(config)], given=base + ldif)
            self._start(
                [
                    *(find_program("slapd", "slapd"), "-d", "0", "-f", str(config)),
                    *("-h", f"ldap://127.0.0.1:{self.port} ldaps://127.0.0.1:{self.ldaps_port}"),
                ]
            )
        except PeerFailed:
            self.close()
            raise


class PostgreSQL(_Instance):
    """A cluster with one database `mail`; its user `mail` has a password."""

    PASSWORD: Final = "the reader's"

    def __init__(self, sql: str) -> None:
        """sql: run in the database `mail` as its superuser."""
        super().__init__("postgresql")
        for needed in ("initdb", "postgres", "psql"):
            find_program(str(POSTGRESQL_BIN / needed), "postgresql")
        _give_to_nobody(self.root)
        data = self.root / "data"
        password = self.root / "superuser"
        password.write_text("super")
        _give_to_nobody(password)
        program = str(POSTGRESQL_BIN / "postgres")
        try:
            _run(
                _as_nobody(
                    [
                        *(str(POSTGRESQL_BIN / "initdb"), "-D", str(data), "-U", "super"),
                        *("-A", "scram-sha-256", "--pwfile", str(password), "--no-sync"),
                        *("--no-locale", "--encoding=UTF8"),
                    ]
                ),
                cwd=self.root,
            )
            self._start(
                _as_nobody(
                    [
                        *(program, "-D", str(data), "-p", str(self.port)),
                        *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
                        *("-c", f"unix_socket_directories={self.root}"),
                        *("-c", "shared_buffers=2MB", "-c", "max_connections=10"),
                    ]
                )
            )
            wait_until(self._ready, what="PostgreSQL takes connections")
            self.run("CREATE DATABASE mail", database="postgres")
            self.run(
                f"CREATE ROLE mail LOGIN PASSWORD '{self.PASSWORD.replace(chr(39), chr(39) * 2)}'; {sql}"
            )
        except PeerFailed:
            self.close()
            raise

    def _psql(self, database: str, sql: str) -> list[str]:
        url = f"postgresql://super:super@127.0.0.1:{self.port}/{database}"
        return [
            *(str(POSTGRESQL_BIN / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1"),
            *("-d", url, "-c", sql),
        ]

    def _ready(self) -> bool:
        return (
            subprocess.run(self._psql("postgres", "SELECT 1"), capture_output=True).returncode == 0
        )

    def run(self, sql: str, *, database: str = "mail") -> None:
        """Run statements as the superuser. Raises PeerFailed."""
        _run(self._psql(database, sql))


class MariaDB(_Instance):
    """A server with one database `mail`; its user `mail` has a password."""

    PASSWORD: Final = "the reader's"

    def __init__(self, sql: str) -> None:
        """sql: run in the database `mail` as root, one statement a line."""
        super().__init__("mariadb")
        program = find_program("mariadbd", "mariadb-server")
        _give_to_nobody(self.root)
        data = self.root / "data"
        data.mkdir()
        _give_to_nobody(data)
        self.socket = self.root / "socket"
        password = self.PASSWORD.replace("'", "''")
        # The bootstrap needs only the tables of rights, which is far faster than the whole set.
        setup = (
            "SET NAMES utf8mb4;\nCREATE DATABASE mysql;\nUSE mysql;\n"
            + Path("/usr/share/mysql/mysql_system_tables.sql").read_text()
            + "\nFLUSH PRIVILEGES;\nCREATE DATABASE mail;\n"
            + f"CREATE USER mail@'%' IDENTIFIED BY '{password}';\n"
            + f"GRANT SELECT ON mail.* TO mail@'%';\nUSE mail;\n{sql};\n"
        )
        options = [
            *("--no-defaults", f"--datadir={data}", f"--socket={self.socket}"),
            *("--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=8M"),
            *("--innodb-log-file-size=4M", "--skip-log-bin", "--performance-schema=off"),
            *("--innodb-fast-shutdown=2", "--innodb-doublewrite=0"),
            "--character-set-server=utf8mb4",
        ]
        try:
            _run(
                _as_nobody([program, *options, "--bootstrap", "--silent-startup"]),
                given=setup,
                cwd=self.root,
            )
            self._start(
                _as_nobody(
                    [
                        *(program, *options, f"--port={self.port}", "--bind-address=127.0.0.1"),
                        f"--pid-file={self.root}/pid",
                    ]
                )
            )
        except PeerFailed:
            self.close()
            raise
