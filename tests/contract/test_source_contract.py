"""What every AddressSource promises, seen with the real programs and databases behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import apsw
import pytest
import trustme

from fakes.source import ListSource
from peers.databases import MariaDB, PostgreSQL, Slapd
from peers.dovecot import Dovecot
from peers.postfix_maps import Maps
from posthouse.domain.recipients import Fold
from posthouse.domain.source_specs import parse_source
from posthouse.errors import SourceFailed
from posthouse.node_sources import open_source
from posthouse.ports_sources import AddressSource, Harvest

pytestmark = pytest.mark.peers

ADDRESSES: Final = (
    "alice@example.com",
    "bob.old@example.com",
    "sales+eu@example.com",
    "carol@example.net",
    "alice@example.com.example.net",
)
CONTENTS: Final = {"alice", "bob.old", "sales+eu"}


class Bench(NamedTuple):
    """A source with ADDRESSES in it, and a way to break what it reads."""

    source: AddressSource
    break_it: Callable[[], object]


def open_written(written: object) -> AddressSource:
    return open_source(parse_source(written), Fold())


# --------------------------------------------------------------------------- one maker each


def make_list(_root: Path) -> Bench:
    source = ListSource(ADDRESSES)

    def fail() -> None:
        source.failing = True

    return Bench(source, fail)


def make_text(root: Path) -> Bench:
    file = root / "users.txt"
    file.write_text("".join(f"{address} OK\n" for address in ADDRESSES))
    return Bench(open_written(f"file:{file}"), file.unlink)


def make_csv(root: Path) -> Bench:
    file = root / "people.csv"
    rows = "".join(f'"{address}";"one, two"\r\n' for address in ADDRESSES)
    file.write_text(f'mail;"note"\r\n{rows}', newline="")
    return Bench(open_written(f"csv:{file}?column=mail&delimiter=;"), file.unlink)


def make_postmap(table: str) -> Callable[[Path], Bench]:
    def make(root: Path) -> Bench:
        maps = Maps(root)
        lines = "".join(f"{address}\t{address}, other\n" for address in ADDRESSES)
        file = maps.put("virtual", lines)
        if table != "texthash":
            maps.index(table, file)
        source = open_written(f"postfix:{table}:{file}?config={root}")

        def break_it() -> None:
            for path in root.glob("virtual*"):
                path.unlink()

        return Bench(source, break_it)

    return make


def make_sqlite(root: Path) -> Bench:
    file = root / "mail.db"
    connection = apsw.Connection(str(file))
    connection.execute("CREATE TABLE alias (address TEXT, active INT)")
    for address in (*ADDRESSES, None, ""):
        connection.execute("INSERT INTO alias VALUES (?, 1)", (address,))
    connection.execute("INSERT INTO alias VALUES ('former@example.com', 0)")
    connection.close()
    source = open_written(f"sql:sqlite:{file} SELECT address FROM alias WHERE active = 1")
    return Bench(source, file.unlink)


FILES: Final = {
    "list": make_list,
    "text": make_text,
    "csv": make_csv,
    "hash": make_postmap("hash"),
    "btree": make_postmap("btree"),
    "lmdb": make_postmap("lmdb"),
    "texthash": make_postmap("texthash"),
    "sqlite": make_sqlite,
}

TABLE: Final = (
    "CREATE TABLE person (name VARCHAR(200), domain VARCHAR(200));\n"
    + "".join(
        "INSERT INTO person VALUES ('{}', '{}');\n".format(*address.split("@"))
        for address in ADDRESSES
    )
    + "INSERT INTO person VALUES (NULL, 'example.com')"
)
QUERY: Final = "SELECT name, domain FROM person WHERE domain LIKE '%' AND domain >= {domain}"


@pytest.fixture
def dovecot() -> Iterator[Bench]:
    with Dovecot(ADDRESSES) as instance:
        yield Bench(open_written(f"dovecot:{instance.config}"), instance.close)


@pytest.fixture
def slapd(tmp_path: Path) -> Iterator[Bench]:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "password").write_text(Slapd.PASSWORD + "\n")
    people = "".join(
        f"dn: cn=p{number},dc=example,dc=com\nobjectClass: inetOrgPerson\n"
        f"objectClass: exchangePerson\nsn: x\nproxyAddresses: SMTP:{address}\n"
        "proxyAddresses: X500:/o=Example/cn=p\nproxyAddresses: sip:p@example.com\n\n"
        for number, address in enumerate(ADDRESSES)
    )
    chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
    # The limit shows that pages are asked for: without them only two would come.
    with Slapd(people, chain=chain, key=issued.private_key_pem.bytes()) as instance:
        source = open_written(
            {
                "ldap": f"ldaps://localhost:{instance.ldaps_port}/dc=example,dc=com?proxyAddresses",
                "bind_dn": Slapd.READER,
                "password_file": str(tmp_path / "password"),
                "ca_file": str(tmp_path / "ca.pem"),
                "page_size": 2,
            }
        )
        yield Bench(source, instance.close)


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "password").write_text(PostgreSQL.PASSWORD + "\n")
    with PostgreSQL(f"{TABLE}; GRANT SELECT ON person TO mail") as instance:
        source = open_written(
            {
                "sql": f"postgresql://mail@127.0.0.1:{instance.port}/mail",
                "query": QUERY,
                "password_file": str(tmp_path / "password"),
            }
        )
        yield Bench(source, lambda: instance.run("DROP TABLE person"))


@pytest.fixture
def mariadb(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "password").write_text(MariaDB.PASSWORD + "\n")
    with MariaDB(TABLE) as instance:
        source = open_written(
            {
                "sql": f"mysql://mail@127.0.0.1:{instance.port}/mail",
                "query": QUERY,
                "password_file": str(tmp_path / "password"),
            }
        )
        yield Bench(source, instance.close)


@pytest.fixture(params=[*FILES, "dovecot", "slapd", "postgresql", "mariadb"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    if request.param in FILES:
        return FILES[request.param](tmp_path)
    made: Bench = request.getfixturevalue(request.param)
    return made


# --------------------------------------------------------------------------- the contract


def test_a_source_keeps_its_promises(bench: Bench) -> None:
    """It gives the addresses of the domain, counts the others, and fails rather than give half."""
    source = bench.source
    version = source.get_version()
    for domain, contents, skipped in (
        ("example.com", CONTENTS, 2),
        ("example.net", {"carol"}, 4),
    ):
        harvest = Harvest()
        assert set(source.read(domain, harvest)) == contents
        if source.name.startswith("sql:"):  # its query leaves out what sorts before the domain
            assert harvest.skipped <= skipped
        else:
            assert harvest.skipped == skipped
        assert (harvest.unreadable, harvest.catch_all, harvest.rules) == (0, False, [])
    assert source.get_version() == version
    assert "reader's" not in source.name

    reading = source.read("example.com", Harvest())
    next(reading)
    reading.close()  # type: ignore[attr-defined]

    bench.break_it()
    with pytest.raises(SourceFailed):
        list(source.read("example.com", Harvest()))
    assert source.get_version() != version or version == ""
