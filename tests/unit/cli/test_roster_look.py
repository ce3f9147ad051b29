"""`posthouse roster inspect` and `test`, on files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fakes.pairs import ROSTER_KEY, SIGNING_KEY, write_pairs
from fakes.rosters import make_roster, rule
from fakes.vectors import DELTA, ROSTER
from posthouse.cli.main import posthouse_command
from posthouse.domain.digests import roster_key_id
from posthouse.mail.roster import HmacDigest, RosterPublisher
from posthouse.mail.wire_text import format_time
from posthouse.proto import signing

DOMAIN = "example.com"


@pytest.fixture
def pairing(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs", DOMAIN, "mx2.example.net")[0]


def make(path: Path, *users: str, lasts: int = 3600, **members: Any) -> Path:
    now = int(time.time())
    key_id = signing.key_id(signing.derive_public_key(SIGNING_KEY))
    defaults: dict[str, Any] = {
        "domain": DOMAIN,
        "serial": 7,
        "issued_at": format_time(now - 100),
        "expires_at": format_time(now + lasts),
        "publisher": RosterPublisher(party=DOMAIN, key_id=key_id),
        "digest": HmacDigest(length=16, key_id=roster_key_id(ROSTER_KEY)),
    }
    path.write_bytes(
        make_roster(users, private_key=SIGNING_KEY, roster_key=ROSTER_KEY, **(defaults | members))
    )
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(
        posthouse_command, ["roster", *map(str, arguments)], standalone_mode=False
    )


def test_inspect_a_good_roster(tmp_path: Path, pairing: Path) -> None:
    """With keys everything is checked, and told for people and for programs."""
    file = make(tmp_path / "x.roster", "alice", rules=(rule(r"a|b\.c", "trap"),) * 12)
    done = run("inspect", file, "--pairing", pairing)
    assert done.return_value == 0
    for part in (
        "serial 7",
        "entries     2",
        "hmac-sha256",
        r"trap    a|b\.c",
        "and 2 more",
        "all, with",
    ):
        assert part in done.output, done.output
    document = json.loads(run("inspect", file, "--pairing", pairing, "--json").output)
    assert document["header"]["serial"] == 7
    assert document["header"]["digest"]["scheme"] == "hmac-sha256"
    assert document["checked_with"] == DOMAIN
    assert document["problems"] == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: data[:-1], "length"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "hash"),
        (lambda data: data[:500], "form"),
        (lambda data: data.replace(b'"serial":7', b'"serial":8'), "signature"),
        (lambda data: b"", "form"),
    ],
)
def test_inspect_tells_what_is_wrong(
    tmp_path: Path, pairing: Path, change: Any, problem: str
) -> None:
    """A damaged file is told of by its check, with exit code 1."""
    file = make(tmp_path / "x.roster", "alice")
    file.write_bytes(change(file.read_bytes()))
    done = run("inspect", file, "--pairing", pairing, "--json")
    assert done.return_value == 1
    (told,) = json.loads(done.output)["problems"]
    assert told.startswith(problem)
    assert "WRONG" in run("inspect", file, "--pairing", pairing).output


def test_inspect_without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys order and hash are checked all the same, and what was not is said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("posthouse.cli.main.DEFAULT_FILES", (Path("none"), Path("such")))
    file = make(tmp_path / "x.roster", "alice")
    done = run("inspect", file)
    assert done.return_value == 0
    assert "all but signature and postmaster" in done.output
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    assert run("inspect", file).return_value == 1
    expired = make(tmp_path / "y.roster", "alice", lasts=-50)
    assert "expired" in run("inspect", expired).output


def test_inspect_a_delta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delta shows what it changes and the header that results."""
    monkeypatch.setattr("posthouse.cli.main.DEFAULT_FILES", (Path("none"), Path("such")))
    file = tmp_path / "x.delta"
    file.write_bytes(DELTA)
    document = json.loads(run("inspect", file, "--json").output)
    assert document["kind"] == "delta"
    assert document["changes"] == {"from_serial": 1793606400, "removed": 1, "added": 1}
    file.write_bytes(DELTA[:-1])
    assert any(
        "length" in one for one in json.loads(run("inspect", file, "--json").output)["problems"]
    )


@pytest.mark.parametrize(
    ("address", "code", "reply"),
    [
        ("Alice+news@example.com", 0, "250 2.1.5"),
        ('"alice"@EXAMPLE.com', 0, "250 2.1.5"),
        ("nobody@example.com", 1, "550 5.1.1"),
        ("pot1@example.com", 0, "marked as a trap"),
        ("later@example.com", 1, "451 4.2.1"),
        ("postmaster@example.com", 0, "250 2.1.5"),
    ],
)
def test_ask_a_file(tmp_path: Path, pairing: Path, address: str, code: int, reply: str) -> None:
    """The reply that an address would get is shown; the exit code says whether mail is taken."""
    rules = (rule("pot[0-9]", "trap"), rule("later", "defer"))
    file = make(tmp_path / "x.roster", "alice", rules=rules)
    done = run("test", address, "--file", file, "--pairing", pairing)
    assert done.return_value == code, done.output
    assert reply in done.output
    told = json.loads(run("test", address, "--file", file, "--pairing", pairing, "--json").output)
    assert told["serial"] == 7


def test_ask_about_what_it_does_not_know(tmp_path: Path, pairing: Path) -> None:
    """Another domain, no address at all, a file that is none: told plainly."""
    file = make(tmp_path / "x.roster", "alice")
    for address, what in (
        ("alice@example.net", "is about example.com"),
        ("alice", "address has no domain"),
        ("", "no mailbox"),
    ):
        done = run("test", address, "--file", file, "--pairing", pairing)
        assert what in str(done.exception), (address, done.exception)
    (tmp_path / "y.roster").write_bytes(ROSTER[:100])
    done = run("test", "alice@example.com", "--file", tmp_path / "y.roster", "--pairing", pairing)
    assert "header line" in str(done.exception)


def test_check_reads_a_roster_file(tmp_path: Path, pairing: Path) -> None:
    """`posthouse check` takes a roster file as a node would, and names what is wrong with it."""
    file = make(tmp_path / "x.roster", "alice")
    config = tmp_path / "posthouse.toml"
    config.write_text(
        f'hostname = "mx2.example.net"\n[[domain]]\nname = "{DOMAIN}"\n'
        f'recipients = {{ file = "x.roster", pairing = "{pairing}" }}\n'
    )
    check = ["check", "-c", str(config)]
    done = CliRunner().invoke(posthouse_command, check, standalone_mode=False)
    assert done.return_value == 0, done.output
    assert "2 entries, roster 7" in done.output
    file.write_bytes(file.read_bytes()[:-1])
    done = CliRunner().invoke(posthouse_command, check, standalone_mode=False)
    assert done.return_value == 78
    assert "octets long instead of" in done.output
