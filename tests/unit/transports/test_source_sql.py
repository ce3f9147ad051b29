"""SQL databases as sources: one or two columns, rights, drivers that are missing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from peers.databases import MariaDB, PostgreSQL
from posthouse.domain.recipients import Fold
from posthouse.domain.source_specs import parse_source
from posthouse.errors import SourceFailed
from posthouse.node_sources import open_source
from posthouse.ports_sources import Harvest

pytestmark = pytest.mark.peers

SQL: Final = (
    "CREATE TABLE alias (address VARCHAR(200), target VARCHAR(200), active INT);\n"
    "INSERT INTO alias VALUES ('alice@example.com', 'x', 1);\n"
    "INSERT INTO alias VALUES ('Zoë@example.com', 'x', 1);\n"
    "INSERT INTO alias VALUES ('@example.com', 'x', 2);\n"
    "INSERT INTO alias VALUES ('not an address', 'x', 3)"
)


class Database(NamedTuple):
    url: str
    place: Path

    def read(self, query: str, **options: str) -> tuple[set[str], Harvest]:
        harvest = Harvest()
        written = {
            "sql": self.url,
            "query": query,
            "password_file": str(self.place / "password"),
            **options,
        }
        source = open_source(parse_source(written), Fold())
        return set(source.read("example.com", harvest)), harvest


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    place = tmp_path_factory.mktemp("sql")
    (place / "password").write_text(PostgreSQL.PASSWORD)
    (place / "wrong").write_text("not it")
    start: Callable[[], PostgreSQL | MariaDB] = (
        (lambda: PostgreSQL(f"{SQL}; GRANT SELECT ON alias TO mail"))
        if request.param == "postgresql"
        else (lambda: MariaDB(SQL))
    )
    scheme = "postgresql" if request.param == "postgresql" else "mysql"
    with start() as instance:
        yield Database(f"{scheme}://mail@127.0.0.1:{instance.port}/mail", place)


def test_rows_become_entries(database: Database) -> None:
    """Addresses, catch-alls and slips are told apart; other scripts survive the way."""
    found, harvest = database.read("SELECT address FROM alias WHERE address LIKE '%'")
    assert found == {"alice", "Zoë"}
    assert harvest.catch_all
    assert (harvest.unreadable, harvest.examples) == (1, ["not an address"])


def test_the_domain_can_be_asked_for(database: Database) -> None:
    """{domain} stands for the domain in question; the per cent signs of LIKE stay."""
    found, _ = database.read("SELECT address FROM alias WHERE address LIKE 'a%' AND {domain} > 'a'")
    assert found == {"alice"}
    found, _ = database.read("SELECT 'bob', {domain}")
    assert found == {"bob"}


@pytest.mark.parametrize(
    ("query", "options", "said"),
    [
        ("SELECT address, target, active FROM alias", {}, "3 columns"),
        ("SELECT address FROM nowhere", {}, "nowhere"),
        ("SELECT address FROM alias", {"password_file": "wrong"}, "password|denied"),
        ("DELETE FROM alias", {}, "syntax|DELETE|read-only|denied|READ ONLY"),
    ],
)
def test_refusals_are_failures(
    database: Database, query: str, options: dict[str, str], said: str
) -> None:
    """A wrong query or password gives no list, and nothing can be written."""
    files = {name: str(database.place / value) for name, value in options.items()}
    with pytest.raises(SourceFailed, match=said) as caught:
        database.read(query, **files)
    assert "reader's" not in caught.value.detail


def test_a_missing_driver_names_the_cure(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its driver the error says what to install."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(SourceFailed, match=r"pip install posthouse\[(pg|mysql)\]"):
        database.read("SELECT address FROM alias")
