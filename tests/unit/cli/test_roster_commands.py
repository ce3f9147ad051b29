"""`posthouse roster keygen` and `build`, as an operator types them."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from peers.node import POSTHOUSE
from posthouse.cli.main import posthouse_command
from posthouse.config_primary import load_primary
from posthouse.domain.digests import roster_key_id
from posthouse.errors import ConfigError
from posthouse.node_publishing import load_signer, read_key
from posthouse.ports_roster import RosterKeys
from posthouse.proto.pairing import (
    BackupPairing,
    Credential,
    OwnPairing,
    format_backup_pairing,
    format_own_pairing,
)
from posthouse.storage.roster_body import RosterBody
from posthouse.storage.roster_intake import check_whole

CONFIG = """\
party = "example.com"
base_url = "https://mail.example.com:8447/"
data_dir = "data"
[[domain]]
name = "example.com"
sources = ["file:users.txt"]
[[domain]]
name = "example.net"
sources = ["file:users.txt"]
"""


class Desk:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "primary.toml"
        self.config.write_text(CONFIG)
        self.users = root / "users.txt"
        self.users.write_text("alice@example.com\nbob@example.com\ncarol@example.net\n")

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(
            posthouse_command,
            ["roster", *arguments, "-c", str(self.config)],
            standalone_mode=False,
        )


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_keys_are_made_once(desk: Desk) -> None:
    """The second time tells the same keys; secrets show only when asked for."""
    first = desk.run("keygen")
    assert first.return_value == 0
    assert "signing.key: made" in first.output
    second = desk.run("keygen", "--show-secret")
    assert "signing.key: is there already" in second.output
    [public] = [line for line in first.output.splitlines() if line.startswith("public_key")]
    assert public in second.output
    secret = (desk.root / "data" / "roster.key").read_text().strip()
    assert secret in second.output
    assert secret not in first.output
    assert (desk.root / "data" / "signing.key").stat().st_mode & 0o777 == 0o600


def test_a_damaged_key_is_never_replaced(desk: Desk) -> None:
    """A key file that cannot be read is for the operator to restore."""
    desk.run("keygen")
    (desk.root / "data" / "signing.key").write_text("not a key\n")
    result = desk.run("keygen")
    assert isinstance(result.exception, ConfigError)
    assert "restore it from a copy" in str(result.exception)


def test_build_without_a_pairing_makes_a_file_to_carry(desk: Desk) -> None:
    """A roster for one domain is made, copied, and taken by a backup's own code."""
    desk.run("keygen")
    target = desk.root / "example.com.roster"
    result = desk.run("build", "--domain", "example.com", "-o", str(target))
    assert result.return_value == 0, result.output
    assert "3 entries" in result.output
    config = load_primary(desk.config)
    roster_key = read_key(config.data_dir / "roster.key")
    keys = RosterKeys(
        domain="example.com",
        party="example.com",
        public_keys=(load_signer(config).public_key,),
        roster_keys=(roster_key,),
    )
    check_whole(target, keys, None, now_s=None)
    again = desk.run("build", "--domain", "example.com")
    assert "; unchanged" in again.output


def test_build_for_every_domain_and_backup(desk: Desk) -> None:
    """Each paired backup has rosters of its own; JSON tells of all."""
    config = load_primary(desk.config)
    desk.run("keygen")
    public_key = load_signer(config).public_key
    for number, name in enumerate(("mx2.example.net", "mx3.example.net")):
        own = OwnPairing(
            kind="primary",
            party="example.com",
            base_url="https://mail.example.com:8447/",
            credentials=(Credential(token_sha256=bytes(32), roster_key=bytes([number] * 32)),),
            domains=("example.com", "example.net"),
            public_key=public_key,
        )
        theirs = BackupPairing(party=name, base_url=f"https://{name}:8447/", token="t" * 43)
        (desk.root / f"own{number}").write_bytes(format_own_pairing(own))
        (desk.root / f"theirs{number}").write_bytes(format_backup_pairing(theirs))
        domains = '["example.com", "example.net"]' if not number else '["example.com"]'
        with desk.config.open("a") as file:
            file.write(f'[[backup]]\nown = "own{number}"\npairing = "theirs{number}"\n')
            file.write(f"domains = {domains}\n")
    result = desk.run("build", "--json")
    assert result.return_value == 0, result.output
    told = json.loads(result.output)
    ids = [roster_key_id(bytes([number] * 32)) for number in (0, 1)]
    assert [(one["domain"], one["key_id"], one["count"]) for one in told["rosters"]] == [
        ("example.com", ids[0], 3),
        ("example.com", ids[1], 3),
        ("example.net", ids[0], 2),
    ]
    assert told["failures"] == []
    body = RosterBody(Path(told["rosters"][0]["path"]), None)
    assert body.head.header.publisher.party == "example.com"
    body.close()
    refused = desk.run("build", "-o", "x.roster")
    assert "--output is for one roster" in str(refused.exception)


def test_what_fails_is_told_and_the_rest_is_made(desk: Desk) -> None:
    """One domain's trouble does not keep the others back; the exit code tells."""
    desk.run("keygen")
    desk.users.write_text("alice@example.com\nbob@example.com\n")
    result = desk.run("build")
    assert result.return_value == 69
    assert "example.com  serial" in result.output
    assert "example.net: not made: " in result.output
    assert "names nobody in example.net" in result.output


def test_a_loss_must_be_accepted(desk: Desk) -> None:
    """A roster that shrinks is held back with exit code 1 until the operator says so."""
    desk.run("keygen")
    arguments = ("build", "--domain", "example.com")
    desk.run(*arguments)
    desk.users.write_text("alice@example.com\n")
    result = desk.run(*arguments)
    assert result.return_value == 1
    assert "--accept-loss" in result.output
    result = desk.run(*arguments, "--accept-loss")
    assert result.return_value == 0
    assert "0 in, 1 out" in result.output


def test_missing_keys_name_the_cure(desk: Desk) -> None:
    """Without keys the commands that make them are named."""
    result = desk.run("build")
    assert "posthouse roster keygen" in str(result.exception)
    desk.run("keygen")
    (desk.root / "data" / "roster.key").unlink()
    result = desk.run("build")
    assert "there is no key to make it with" in str(result.exception)
    result = desk.run("build", "--domain", "example.org")
    assert "has no [[domain]] example.org" in str(result.exception)


@pytest.mark.peers
def test_root_builds_as_who_owns_the_data() -> None:
    """What root makes by hand can be read by the user that `primary serve` runs as."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        root.chmod(0o755)
        desk = Desk(root)
        nobody = pwd.getpwnam("nobody")
        (root / "data").mkdir(mode=0o700)
        os.chown(root / "data", nobody.pw_uid, nobody.pw_gid)
        for command in ("keygen", "build"):
            subprocess.run(
                [POSTHOUSE, "roster", command, "-c", desk.config], check=True, timeout=60
            )
        made = [path for path in (root / "data").rglob("*") if path.is_file()]
        assert {path.name for path in made} >= {"signing.key", "roster.key", "state.json"}
        assert {path.stat().st_uid for path in made} == {nobody.pw_uid}


def test_the_file_that_is_there_says_which_side(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --config `test` takes primary.toml where that is the only one; two want a choice."""
    desk.run("keygen")
    desk.run("build")
    monkeypatch.chdir(desk.root)
    arguments = ["roster", "test", "alice@example.com"]
    done = CliRunner().invoke(posthouse_command, arguments, standalone_mode=False)
    assert done.return_value == 0, done.exception
    (desk.root / "posthouse.toml").touch()
    done = CliRunner().invoke(posthouse_command, arguments, standalone_mode=False)
    assert "say which: --config FILE" in str(done.exception)


def test_the_primary_looks_into_what_it_made(desk: Desk) -> None:
    """`inspect` and `test` work beside the primary too, with its own keys and rosters."""
    desk.run("keygen")
    assert "posthouse roster build" in str(desk.run("test", "alice@example.com").exception)
    desk.run("build")
    known = desk.run("test", "Alice+x@example.com", "--json")
    assert known.return_value == 0, known.exception
    assert json.loads(known.output)["canonical"] == "alice@example.com"
    unknown = desk.run("test", "nobody@example.com")
    assert unknown.return_value == 1
    assert "550 5.1.1" in unknown.output
    assert "no roster configured" in str(desk.run("test", "a@example.org").exception)
    target = desk.root / "copy.roster"
    desk.run("build", "--domain", "example.com", "-o", str(target))
    shown = desk.run("inspect", str(target))
    assert shown.return_value == 0
    assert "all, with the keys of example.com" in shown.output
