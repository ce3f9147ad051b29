"""`posthouse agreements` on either side, without a running process."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import click
import msgspec
import pytest

from fakes.pairs import write_pairs
from posthouse.cli.main import posthouse_command
from posthouse.domain.agreement import End, EndedBy, Standing, State
from posthouse.domain.recipients import Fold
from posthouse.errors import ConfigError
from posthouse.node_agreements_office import NoBook
from posthouse.ports_agreements import ForwarderEntry, Grant, GrantState
from posthouse.storage.forwarder_book import SqliteForwarderBook
from posthouse.storage.granter_book import SqliteGranterBook

BACKUP_TOML = """
hostname = "mx2.example.net"
data_dir = "data"
[[domain]]
name = "example.com"
recipients = { primary = "example.com" }
[[primary]]
pairing = "pairs/example.com.json"
own = "pairs/mx2.example.net.json"
"""
PRIMARY_TOML = """
party = "example.com"
base_url = "https://mail.example.com:8447/"
data_dir = "data"
[[domain]]
name = "example.com"
sources = ["file:users.txt"]
fold = { case = "lower", delimiters = "-", dots = "drop" }
policy = { blocking = "forbidden", when_stale = "defer" }
[[backup]]
pairing = "pairs/mx2.example.net.json"
own = "pairs/example.com.json"
domains = ["example.com"]
"""
SECRETS = ("SECRET-KEY", "SECRET-PASSWORD")


def entry(canonical: str, state: State, **members: object) -> ForwarderEntry:
    made = ForwarderEntry(
        canonical=canonical,
        domain="example.com",
        address=canonical,
        standing=Standing(state),
        granter="example.com",
        forwarder_id="mx2.example.net",
        recipe_id=f"r-{canonical.partition('@')[0].replace('+', '-')}",
        recipe_key="SECRET-KEY",
        seen_us=1_795_000_000_000_000,
        messages=3,
    )
    return msgspec.structs.replace(made, **members)


def grant(number: int, mailbox: str, state: GrantState, **members: object) -> Grant:
    made = Grant(
        forwarder_id="mx2.example.net",
        recipe_id=f"r-{number}",
        recipe_key="SECRET-KEY",
        domain="example.com",
        mailbox=mailbox,
        address=mailbox,
        name="Backup MX",
        policy_url="https://127.0.0.1:1/v1/policy",
        agreement_id=f"a-{number}",
        state=state,
        password=b"SECRET-PASSWORD",
    )
    return msgspec.structs.replace(made, **members)


class Site:
    """One side's directory."""

    def __init__(self, folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.file = folder / "posthouse.toml"
        self.file.write_text(text)
        (folder / "users.txt").write_text("alice\n")
        write_pairs(
            folder / "pairs",
            "example.com",
            "mx2.example.net",
            primary_url="https://127.0.0.1:1/",
            backup_url="https://127.0.0.1:1/",
        )
        self._capsys = capsys

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code and what it said. Raises click.ClickException and the house's own."""
        self._capsys.readouterr()
        code = posthouse_command.main(
            ["agreements", *arguments, "-c", str(self.file)], standalone_mode=False
        )
        out, err = self._capsys.readouterr()
        for secret in SECRETS:
            assert secret not in out + err
        return code or 0, out, err

    def documents(self, *arguments: str) -> list[dict[str, object]]:
        code, out, _ = self.run(*arguments, "--json")
        assert code == 0
        return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def backup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    """A backup with four agreements."""
    site = Site(tmp_path, BACKUP_TOML, capsys)
    entries = {
        one.canonical: one
        for one in (
            entry(
                "alice@example.com", State.AGREED, agreement_id="a-1", password="SECRET-PASSWORD"
            ),
            entry("bob+x@example.com", State.SEEN, messages=1, note="odd \x1b[31m note"),
            entry("carol@example.com", State.REFUSED),
            entry("dora@example.com", State.ENDED, end=End(EndedBy.ROSTER, 5_000_000, 7)),
        )
    }

    async def fill() -> None:
        book = await SqliteForwarderBook.open(tmp_path / "data" / "agreements")
        await book.change(list(entries), lambda key, _old: entries[key])
        await book.set_folds({"example.com": Fold()})
        await book.publish()
        await book.close()

    asyncio.run(fill())
    return site


@pytest.fixture
def primary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    """A primary with four grants, none of whose backups can be reached."""
    site = Site(tmp_path, PRIMARY_TOML, capsys)
    grants = [
        grant(1, "alicesmith@example.com", GrantState.AGREED),
        grant(2, "bob@example.com", GrantState.PENDING),
        grant(3, "carol@example.com", GrantState.PENDING),
        grant(4, "dora@example.com", GrantState.ENDED),
    ]

    async def fill() -> None:
        book = await SqliteGranterBook.open(tmp_path / "data" / "agreements")
        for one in grants:
            await book.settle(one.forwarder_id, [one.recipe_id], lambda _i, _o, one=one: one)  # type: ignore[misc]
        await book.close()

    asyncio.run(fill())
    return site


def test_what_a_backup_holds(backup: Site) -> None:
    """Listed by address, filtered by state and domain; control characters do not get through."""
    code, out, _ = backup.run("list")
    assert code == 0
    assert out.splitlines()[0].startswith("alice@example.com  agreed  example.com  3 messages")
    assert out.splitlines()[-1] == "4 agreements"
    assert "\x1b" not in out
    assert [one["address"] for one in backup.documents("list", "--state", "refused")] == [
        "carol@example.com"
    ]
    assert backup.run("list", "--domain", "example.org")[0] == 1
    with pytest.raises(click.UsageError, match="no agreement here is ever pending"):
        backup.run("list", "--state", "pending")


def test_found_by_any_spelling(backup: Site) -> None:
    """As the primary reads it: case and subaddress mean nothing."""
    for wanted in ("Alice+news@Example.COM", "a-1", "alice@example.com"):
        (shown,) = backup.documents("show", wanted)
        assert shown["address"] == "alice@example.com"
        assert shown["agreement_id"] == "a-1"
    assert backup.documents("show", "bob+x@example.com")[0]["state"] == "seen"
    code, out, _ = backup.run("show", "dora@example.com")
    assert code == 0
    assert "ended by      a roster" in out
    code, _, err = backup.run("show", "nobody@example.com")
    assert (code, err) == (1, "There is no agreement for nobody@example.com.\n")
    with pytest.raises(ConfigError, match="not an address"):
        backup.run("show", "a b@example.com")


def test_blocked_by_the_operator_of_the_backup(backup: Site) -> None:
    """There, and back; what has ended cannot be blocked."""
    assert backup.run("block", "alice@example.com")[:2] == (0, "alice@example.com: blocked\n")
    assert backup.documents("show", "a-1")[0]["former_state"] == "agreed"
    assert backup.run("block", "alice@example.com")[0] == 1
    assert backup.run("unblock", "alice@example.com")[:2] == (0, "alice@example.com: agreed\n")
    code, _, err = backup.run("block", "dora@example.com")
    assert (code, err) == (1, "dora@example.com: is ended\n")
    assert backup.run("block", "alice@example.com", "--backup", "mx9.example.org")[0] == 1


def test_a_backup_cannot_end_by_itself(backup: Site) -> None:
    """It asks the granter, which cannot be reached here; without a password there is no asking."""
    code, _, err = backup.run("end", "alice@example.com")
    assert code == 69
    assert "127.0.0.1" in err
    assert backup.run("end", "carol@example.com")[0] == 1
    assert backup.documents("show", "a-1")[0]["state"] == "agreed"
    assert "only the granter" in backup.run("reset", "alice@example.com")[2]


def test_servers_of_a_backup(backup: Site) -> None:
    """Itself, since nobody stands behind it."""
    (holder,) = backup.documents("servers", "alice@example.com")
    assert (holder["party"], holder["messages"]) == ("mx2.example.net", 3)
    code, out, _ = backup.run("servers", "nobody@example.com")
    assert (code, out) == (1, "No backup stores nobody@example.com.\n")


def test_what_a_primary_granted(primary: Site) -> None:
    """Listed by agreement-ID; addresses are read as its own fold says."""
    assert [one["agreement_id"] for one in primary.documents("list")] == [
        "a-1",
        "a-2",
        "a-3",
        "a-4",
    ]
    assert [one["address"] for one in primary.documents("list", "--state", "pending")] == [
        "bob@example.com",
        "carol@example.com",
    ]
    (shown,) = primary.documents("show", "Alice.Smith-news@example.com")
    assert shown["agreement_id"] == "a-1"
    assert "state         agreed" in primary.run("show", "a-1")[1]


def test_a_person_decides(primary: Site) -> None:
    """Yes to one, no to the rest; what is not pending stays as it is."""
    assert primary.run("grant", "bob@example.com")[:2] == (
        0,
        "bob@example.com at mx2.example.net: granted\n",
    )
    assert primary.run("refuse", "--all")[0] == 0
    states = {one["agreement_id"]: one["state"] for one in primary.documents("list")}
    assert states == {"a-1": "agreed", "a-2": "granted", "a-3": "refused", "a-4": "ended"}
    code, _, err = primary.run("grant", "a-1", "a-9")
    assert code == 1
    assert "a-9: there is no agreement" in err
    assert "is agreed, not pending" in err
    assert primary.run("grant", "--all")[:2] == (0, "Nothing is pending.\n")
    with pytest.raises(click.UsageError):
        primary.run("grant")


def test_a_backup_that_cannot_be_reached(primary: Site) -> None:
    """Says so; an end is written down and told later."""
    code, _, err = primary.run("unblock", "alicesmith@example.com")
    assert code == 69
    assert "mx2.example.net" in err
    code, _, err = primary.run("block", "alicesmith@example.com")
    assert code == 1
    assert "forbids blocking" in err
    (holder,) = primary.documents("servers", "alicesmith@example.com")
    assert holder == {"party": "mx2.example.net", "error": "connect"}
    code, out, _ = primary.run("end", "a-1")
    assert code == 0
    assert "told later" in out
    assert primary.documents("show", "a-1")[0]["state"] == "ending"
    assert primary.run("reset", "a-4")[0] == 1


def test_before_anything_was_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a book there is nothing to look into, and none is made."""
    site = Site(tmp_path, BACKUP_TOML, capsys)
    with pytest.raises(NoBook):
        site.run("list")
    assert not (tmp_path / "data").exists()


def test_the_book_stays_its_owners(backup: Site) -> None:
    """A command leaves no file behind that others could read."""
    backup.run("list")
    for path in (backup.folder / "data" / "agreements").iterdir():
        assert os.stat(path).st_mode & 0o077 == 0, path
