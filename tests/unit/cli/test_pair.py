"""`posthouse pair`: both sides, a second use, rotation, and who may read what is made."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
import trustme
from click.testing import CliRunner

from fakes.http_server import Certificate
from posthouse.cli.pair import pair
from posthouse.config_pairs import (
    USED_TOKENS_FILE,
    load_backup_pairing,
    load_own_pairing,
    load_primary_pairing,
    make_account,
)
from posthouse.errors import ConfigError
from posthouse.mail.wire_text import decode_base64url
from posthouse.proto import signing
from posthouse.proto.pairing import hash_token
from posthouse.services.parties import PairedParties
from posthouse.storage.pairs import UsedHashes

PRIMARY = """
party = "example.com"
base_url = "https://mail.example.com:8447/"
data_dir = "data"
[[domain]]
name = "example.com"
[[domain]]
name = "example.org"
"""
BACKUP = """
hostname = "mx2.example.net"
data_dir = "data"
[https]
listen = ["0.0.0.0:9447"]
certificate = "fullchain.pem"
[[domain]]
name = "example.com"
"""


class World:
    """Two directories with a configuration each, and a desk in the middle for the carried files."""

    def __init__(self, folder: Path) -> None:
        self.primary = folder / "primary" / "primary.toml"
        self.backup = folder / "backup" / "posthouse.toml"
        self.desk = folder / "desk"
        for path, text in ((self.primary, PRIMARY), (self.backup, BACKUP)):
            path.parent.mkdir()
            path.write_text(text)
        self.desk.mkdir()
        certificate = Certificate(trustme.CA(), "mx2.example.net")
        (self.backup.parent / "fullchain.pem").write_bytes(certificate.chain_pem)
        self.pin = certificate.pin

    def run(self, config: Path, *arguments: str) -> str:
        """Run a command; its words. Raises ConfigError as the command line would report it."""
        done = CliRunner().invoke(pair, [arguments[0], "-c", str(config), *arguments[1:]])
        if isinstance(done.exception, ConfigError):
            raise done.exception
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    def offer(self, config: Path, partner: str, name: str, *more: str) -> tuple[Path, str]:
        carried = self.desk / name
        return carried, self.run(config, "offer", "--to", partner, "-o", str(carried), *more)

    def pair(self) -> None:
        there, _ = self.offer(self.primary, "mx2.example.net", "p.json")
        self.run(self.backup, "accept", str(there))
        back, _ = self.offer(self.backup, "example.com", "b.json")
        self.run(self.primary, "accept", str(back))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_four_commands_pair_two_sides(world: World) -> None:
    """Afterwards each side's token opens the other side's door, and both hold the same keys."""
    world.pair()
    theirs = load_primary_pairing(world.backup.parent / "pairs" / "example.com.json")
    own = load_own_pairing(world.primary.parent / "pairs" / "example.com.json", "primary")
    assert own.credentials[0].roster_key == theirs.roster_key
    assert own.credentials[0].token_sha256 == hash_token(theirs.token)
    assert theirs.domains == own.domains == ("example.com", "example.org")
    key = (world.primary.parent / "data" / "signing.key").read_text()
    assert signing.derive_public_key(decode_base64url(key.strip())) == theirs.public_key
    back = load_backup_pairing(world.primary.parent / "pairs" / "mx2.example.net.json")
    mine = load_own_pairing(world.backup.parent / "pairs" / "mx2.example.net.json", "backup")
    assert mine.credentials[0].token_sha256 == hash_token(back.token)
    assert back.base_url == "https://mx2.example.net:9447/"


def test_what_is_made_is_private(world: World) -> None:
    """Every file made has mode 0600, its directory 0700, and tokens lie only where presented."""
    world.pair()
    made = [path for path in world.desk.parent.rglob("*") if "pairs" in path.parts]
    made += [*world.desk.iterdir(), world.primary.parent / "data" / "signing.key"]
    for path in made:
        assert path.stat().st_mode & 0o077 == 0, path
    token = read(world.desk / "p.json")["token"]
    assert token not in (world.primary.parent / "pairs" / "example.com.json").read_text()


def test_the_carried_file_is_the_protocols(world: World) -> None:
    """It has the members of PROTOCOL.md §1 and no others."""
    carried, _ = world.offer(world.primary, "mx2.example.net", "p.json")
    assert list(read(carried)) == [
        "party",
        "base_url",
        "public_key",
        "roster_key",
        "token",
        "domains",
    ]
    carried, _ = world.offer(world.backup, "example.com", "b.json")
    assert list(read(carried)) == ["party", "base_url", "token"]


def test_an_offer_is_good_once(world: World) -> None:
    """A second acceptance of the same file is refused, also after the first was replaced."""
    there, _ = world.offer(world.primary, "mx2.example.net", "p.json")
    world.run(world.backup, "accept", str(there))
    for more in ([], ["--rotate"], ["--replace"]):
        with pytest.raises(ConfigError, match="accepted before"):
            world.run(world.backup, "accept", str(there), *more)


def test_what_is_next_is_said(world: World) -> None:
    """Each command names the next one, and the tables for the configuration."""
    there, words = world.offer(world.primary, "mx2.example.net", "p.json")
    assert "posthouse pair accept p.json" in words
    assert "call us at https://mail.example.com:8447/; if" in words
    assert 'own     = "pairs/example.com.json"' in words
    words = world.run(world.backup, "accept", str(there))
    assert f"posthouse pair offer -c {world.backup} --to example.com" in words
    back, words = world.offer(world.backup, "example.com", "b.json")
    assert "[[primary]]" in words
    words = world.run(world.primary, "accept", str(back))
    assert "[[backup]]" in words
    assert 'pairing = "pairs/mx2.example.net.json"' in words


def test_the_backup_may_begin(world: World) -> None:
    """The order of the four commands is free."""
    back, _ = world.offer(world.backup, "example.com", "b.json")
    world.run(world.primary, "accept", str(back))
    there, _ = world.offer(world.primary, "mx2.example.net", "p.json")
    words = world.run(world.backup, "accept", str(there))
    assert 'recipients = { primary = "example.com" }' in words
    assert 'own     = "pairs/mx2.example.net.json"' in words


# --------------------------------------------------------------------------- rotation


def test_rotation(world: World) -> None:
    """The issuer holds both credentials, the other side both roster keys; the new token counts."""
    world.pair()
    path = world.backup.parent / "pairs" / "example.com.json"
    before = load_primary_pairing(path)
    with pytest.raises(ConfigError, match="--rotate"):
        world.offer(world.primary, "mx2.example.net", "p2.json")
    fresh, words = world.offer(world.primary, "mx2.example.net", "p2.json", "--rotate")
    assert "SIGHUP" in words
    with pytest.raises(ConfigError, match="--rotate"):
        world.run(world.backup, "accept", str(fresh))
    world.run(world.backup, "accept", "--rotate", str(fresh))
    after = load_primary_pairing(path)
    assert after.token != before.token
    assert after.roster_keys == (after.roster_key, before.roster_key)
    assert after.roster_key != before.roster_key
    own = load_own_pairing(world.primary.parent / "pairs" / "example.com.json", "primary")
    uses = UsedHashes(world.primary.parent / "data" / USED_TOKENS_FILE)
    parties = PairedParties([make_account("mx2.example.net", own, frozenset())], uses)
    assert parties.find(before.token) is not None
    shown = parties.find(after.token)
    assert shown is not None
    assert shown.roster_key_ids[0] == signing.key_id(after.roster_key)
    assert parties.find(before.token) is None


def test_a_rotation_leaves_out_what_is_void(world: World) -> None:
    """Credentials older than the newest one used are dropped; unused ones pile up to a limit."""
    world.pair()
    path = world.primary.parent / "pairs" / "example.com.json"
    uses = UsedHashes(world.primary.parent / "data" / USED_TOKENS_FILE)
    for turn in range(3):
        carried, _ = world.offer(world.primary, "mx2.example.net", f"r{turn}.json", "--rotate")
        uses.add(hash_token(read(carried)["token"]))
        assert len(load_own_pairing(path, "primary").credentials) == 2
    for turn in range(7):
        world.offer(world.primary, "mx2.example.net", f"s{turn}.json", "--rotate")
    with pytest.raises(ConfigError, match="not used"):
        world.offer(world.primary, "mx2.example.net", "t.json", "--rotate")


def test_a_rotation_keeps_the_place(world: World) -> None:
    """Where we are called stays as it was, unless it is said anew."""
    first = "https://calls.example.net/posthouse/"
    carried, _ = world.offer(world.backup, "example.com", "b.json", "--base-url", first)
    carried, _ = world.offer(world.backup, "example.com", "b2.json", "--rotate")
    assert read(carried)["base_url"] == first
    second = "https://calls.example.net:444/"
    carried, _ = world.offer(
        world.backup, "example.com", "b3.json", "--rotate", "--base-url", second
    )
    assert read(carried)["base_url"] == second


def test_the_backup_rotates_its_token(world: World) -> None:
    """A backup's file has no keys but its token."""
    world.pair()
    fresh, _ = world.offer(world.backup, "example.com", "b2.json", "--rotate")
    world.run(world.primary, "accept", "--rotate", str(fresh))
    back = load_backup_pairing(world.primary.parent / "pairs" / "mx2.example.net.json")
    assert back.token == read(fresh)["token"]
    mine = load_own_pairing(world.backup.parent / "pairs" / "mx2.example.net.json", "backup")
    assert len(mine.credentials) == 2


def test_another_signing_key_is_no_rotation(world: World) -> None:
    """A file with another public key is not taken along in passing."""
    world.pair()
    (world.primary.parent / "data" / "signing.key").unlink()
    fresh, _ = world.offer(world.primary, "mx2.example.net", "p2.json", "--rotate")
    with pytest.raises(ConfigError, match="another one"):
        world.run(world.backup, "accept", "--rotate", str(fresh))
    world.run(world.backup, "accept", "--replace", str(fresh))


def test_beginning_anew(world: World) -> None:
    """--replace leaves nothing of before."""
    world.pair()
    fresh, _ = world.offer(world.primary, "mx2.example.net", "p2.json", "--replace")
    path = world.primary.parent / "pairs" / "example.com.json"
    assert len(load_own_pairing(path, "primary").credentials) == 1
    world.run(world.backup, "accept", "--replace", str(fresh))
    theirs = load_primary_pairing(world.backup.parent / "pairs" / "example.com.json")
    assert theirs.former_roster_keys == ()


# --------------------------------------------------------------------------- several partners


def test_each_backup_has_its_own_keys(world: World) -> None:
    """A second backup gets another roster key and a file of its own."""
    first, _ = world.offer(world.primary, "mx2.example.net", "p.json", "--domain", "example.com")
    second, words = world.offer(world.primary, "mx3.example.net", "p3.json")
    assert read(first)["roster_key"] != read(second)["roster_key"]
    assert read(first)["domains"] == ["example.com"]
    assert 'own     = "pairs/example.com-for-mx3.example.net.json"' in words
    fresh, _ = world.offer(world.primary, "mx3.example.net", "p4.json", "--rotate")
    own = world.primary.parent / "pairs" / "example.com-for-mx3.example.net.json"
    assert len(load_own_pairing(own, "primary").credentials) == 2
    assert read(fresh)["domains"] == ["example.com", "example.org"]


def test_a_backup_behind_a_backup(world: World) -> None:
    """The one in front gives what a granter gives, with the owner's public key; they find it so."""
    third = world.desk.parent / "third" / "posthouse.toml"
    third.parent.mkdir()
    third.write_text(BACKUP.replace("mx2.example.net", "mx3.example.org"))
    (third.parent / "fullchain.pem").write_bytes(
        (world.backup.parent / "fullchain.pem").read_bytes()
    )
    with pytest.raises(ConfigError, match="pair with the owner first"):
        world.offer(world.backup, "mx3.example.org", "early.json", "--behind")
    world.pair()
    owners, _ = world.offer(world.primary, "mx3.example.org", "p3.json", "--domain", "example.com")
    world.run(third, "accept", str(owners))
    front, words = world.offer(world.backup, "mx3.example.org", "f.json", "--behind")
    assert "[[backup]]" in words
    assert read(front)["public_key"] == read(owners)["public_key"]
    assert read(front)["roster_key"] != read(owners)["roster_key"]
    assert (read(front)["party"], read(front)["domains"]) == ("mx2.example.net", ["example.com"])
    world.run(third, "accept", str(front))
    back, words = world.offer(third, "mx2.example.net", "t.json")
    with pytest.raises(ConfigError, match="--behind"):
        world.run(world.backup, "accept", str(back))
    words = world.run(world.backup, "accept", "--behind", str(back))
    assert 'own     = "pairs/mx2.example.net-for-mx3.example.org.json"' in words
    again, _ = world.offer(world.backup, "mx3.example.org", "f2.json", "--behind", "--rotate")
    words = world.run(third, "accept", "--rotate", str(again))
    own = world.backup.parent / "pairs" / "mx2.example.net-for-mx3.example.org.json"
    assert len(load_own_pairing(own, "primary").credentials) == 2
    kept = load_own_pairing(world.backup.parent / "pairs" / "mx2.example.net.json", "backup")
    assert len(kept.credentials) == 1
    with pytest.raises(ConfigError, match="is a primary's"):
        world.offer(world.primary, "mx3.example.org", "x.json", "--behind")


def test_the_owner_stays_the_owner(world: World) -> None:
    """Who accepts the file of a backup in front is told where its table belongs."""
    third = world.desk.parent / "third" / "posthouse.toml"
    third.parent.mkdir()
    third.write_text(BACKUP.replace("mx2.example.net", "mx3.example.org"))
    (third.parent / "fullchain.pem").write_bytes(
        (world.backup.parent / "fullchain.pem").read_bytes()
    )
    world.pair()
    owners, _ = world.offer(world.primary, "mx3.example.org", "p3.json")
    world.run(third, "accept", str(owners))
    world.offer(third, "mx2.example.net", "t.json")
    front, _ = world.offer(world.backup, "mx3.example.org", "f.json", "--behind")
    words = world.run(third, "accept", str(front))
    assert "below that of example.com" in words
    assert "recipients" not in words


# --------------------------------------------------------------------------- the pin


def test_pins(world: World) -> None:
    """Asked for, the pin is that of our certificate; a certificate of an authority needs none."""
    carried, _ = world.offer(world.backup, "example.com", "b.json", "--pin")
    assert decode_base64url(read(carried)["tls_spki_sha256"]) == world.pin
    carried, _ = world.offer(world.backup, "example.com", "b2.json", "--rotate")
    assert "tls_spki_sha256" in read(carried)
    carried, _ = world.offer(world.backup, "example.com", "b3.json", "--rotate", "--no-pin")
    assert "tls_spki_sha256" not in read(carried)
    carried, _ = world.offer(world.backup, "example.com", "b4.json", "--rotate")
    assert "tls_spki_sha256" not in read(carried)
    with pytest.raises(ConfigError, match="no certificate"):
        world.offer(world.primary, "mx2.example.net", "p.json", "--pin")


def test_self_signed_certificates_are_pinned(world: World) -> None:
    """Nobody else could verify them."""
    ca = trustme.CA()
    (world.backup.parent / "fullchain.pem").write_bytes(ca.cert_pem.bytes())
    carried, words = world.offer(world.backup, "example.com", "b.json")
    assert "tls_spki_sha256" in read(carried)
    assert "pins" in words
    carried, _ = world.offer(world.backup, "example.com", "b2.json", "--no-pin", "--rotate")
    assert "tls_spki_sha256" not in read(carried)


# --------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("more", [[], ["--rotate"]])
def test_an_offer_that_cannot_be_written(world: World, more: list[str]) -> None:
    """What we keep is then as it was before."""
    if more:
        world.pair()
    kept = world.primary.parent / "pairs" / "example.com.json"
    before = kept.read_bytes() if more else None
    nowhere = world.desk / "no" / "p.json"
    done = CliRunner().invoke(
        pair,
        ["offer", "-c", str(world.primary), "--to", "mx2.example.net", "-o", str(nowhere), *more],
    )
    assert isinstance(done.exception, FileNotFoundError)
    assert (kept.read_bytes() if kept.exists() else None) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--to", "../x"], "party"),
        (["--to", "example.com"], "is us"),
        (["--to", "mx2.example.net", "--rotate"], "to rotate"),
        (["--to", "mx2.example.net", "--domain", "example.net"], "has no"),
        (["--to", "mx2.example.net", "--base-url", "http://mail.example.com/"], "loopback"),
        (["--to", "mx2.example.net", "--party", "a b"], "party"),
    ],
)
def test_mistakes_of_an_offer(world: World, arguments: list[str], says: str) -> None:
    """Each says what is wrong, and leaves nothing behind."""
    with pytest.raises(ConfigError, match=says):
        world.run(world.primary, "offer", "-o", str(world.desk / "p.json"), *arguments)
    assert list(world.desk.iterdir()) == []


def test_mistakes_of_an_acceptance(world: World) -> None:
    """A file for the other side, our own, a missing one, one that is none."""
    carried, _ = world.offer(world.primary, "mx2.example.net", "p.json")
    with pytest.raises(ConfigError, match="other side"):
        world.run(world.primary, "accept", str(carried))
    odd = world.desk / "odd.json"
    odd.write_text('{"party": "x"}')
    with pytest.raises(ConfigError, match="no usable pairing file: base_url is missing"):
        world.run(world.backup, "accept", str(odd))
    document = {**read(carried), "party": "mx2.example.net"}
    odd.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="names us"):
        world.run(world.backup, "accept", str(odd))


def test_an_offer_is_not_written_over(world: World) -> None:
    """A carried file that is still there is not replaced."""
    world.offer(world.primary, "mx2.example.net", "p.json")
    with pytest.raises(ConfigError, match="is there already"):
        world.offer(world.primary, "mx3.example.net", "p.json")


def test_who_runs_the_node_can_read_its_files(world: World) -> None:
    """Made as root, they belong to the account of `user`: SIGHUP reads them again."""
    text = world.primary.read_text()
    world.primary.write_text(f'user = "nobody"\n{text}')
    world.pair()
    owner = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    pairs = world.primary.parent / "pairs"
    for path in (pairs, *pairs.iterdir(), world.primary.parent / "data" / "signing.key"):
        assert path.stat().st_uid == owner, path
