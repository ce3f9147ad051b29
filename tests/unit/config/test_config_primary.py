"""primary.toml: what is read, what is refused, and where the mistake stands."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from posthouse.cli.main import posthouse_command
from posthouse.config import load
from posthouse.config_primary import is_primary_file, load_primary
from posthouse.config_primary_schema import SECTIONS, format_reference
from posthouse.config_primary_values import SHIPPED_RULES, make_trap_rules
from posthouse.domain.recipients import Fold
from posthouse.domain.roster_rules import compile_rules
from posthouse.domain.source_kinds import PostmapSpec, TextSpec
from posthouse.errors import ConfigError
from posthouse.mail.roster import RosterRule

SMALLEST = """\
party = "example.com"
base_url = "https://mail.example.com:8447/"
[[domain]]
name = "example.com"
sources = ["file:users.txt"]
"""


def write(directory: Path, text: str) -> Path:
    (directory / "users.txt").write_text("alice\n")
    file = directory / "primary.toml"
    file.write_text(text)
    return file


def mistakes_in(directory: Path, text: str) -> list[str]:
    file = write(directory, text)
    with pytest.raises(ConfigError) as caught:
        load_primary(file)
    return [line.removeprefix(f"{file}:") for line in caught.value.mistakes]


def test_smallest_file_has_the_documented_defaults(tmp_path: Path) -> None:
    """A party, a URL and a domain with a source are enough; paths start where the file is."""
    config = load_primary(write(tmp_path, SMALLEST))
    [domain] = config.domains
    assert domain.sources == (TextSpec(path=str(tmp_path / "users.txt")),)
    assert domain.fold == Fold()
    assert (domain.digest.scheme, domain.digest.bytes) == ("hmac-sha256", 16)
    assert (domain.valid_for, domain.rebuild_interval) == (
        timedelta(days=14),
        timedelta(minutes=15),
    )
    assert domain.limits.max_message_bytes == 50 << 20
    assert (domain.policy.blocking, domain.policy.when_stale) == ("allowed", "defer")
    assert [str(door) for door in config.https.listen] == ["127.0.0.1:8447"]
    assert config.backups == ()
    [warning] = config.warnings
    assert "nobody is told when something is wrong" in warning


FULL = """\
party = "example.com"
base_url = "https://mail.example.com:8447/"
data_dir = "data"
[[domain]]
name = "Example.COM"
sources = ["postfix:hash:virtual", { sql = "sqlite:mail.db", query = "SELECT a FROM b" }]
fold = { case = "preserve", delimiters = "+-", dots = "drop" }
catch_all = true
traps = ["old.sales", "x+y"]
rules = ["batv", { match = "sales-[0-9]+", action = "accept", note = "fairs" }]
digest = { scheme = "scrypt", n = 1024, p = 2, bytes = 20 }
decoys = { percent = 10, multiple = 100 }
limits = { max_message_size = "10MB", smtputf8 = false }
policy = { blocking = "forbidden" }
mx = [[20, "mx2.example.net"], [10, "mx1.example.com"]]
"""


def test_every_key_of_a_domain(tmp_path: Path) -> None:
    """All that a roster says can be set."""
    config = load_primary(write(tmp_path, FULL), check_files=False)
    assert config.data_dir == tmp_path / "data"
    [domain] = config.domains
    assert domain.name == "example.com"
    assert domain.sources[0] == PostmapSpec(table="hash", path=str(tmp_path / "virtual"))
    assert domain.fold == Fold(case="preserve", delimiters="+-", dots="drop")
    assert domain.rules == (
        *SHIPPED_RULES["batv"],
        RosterRule(match="sales-[0-9]+", action="accept", note="fairs"),
    )
    assert (domain.digest.scheme, domain.digest.n, domain.digest.p) == ("scrypt", 1024, 2)
    assert (domain.decoys.percent, domain.decoys.multiple) == (10, 100)
    assert not domain.limits.smtputf8
    assert domain.limits.eight_bit_mime
    assert domain.mx == ((10, "mx1.example.com"), (20, "mx2.example.net"))


def changed(old: str, new: str) -> str:
    assert old in SMALLEST
    return SMALLEST.replace(old, new)


MISTAKES = [
    (changed("party", "partty"), "1: partty: unknown key; did you mean party?"),
    (changed("base_url =", "#"), "1: base_url: is missing"),
    (changed("https://", "http://"), "2: base_url: "),
    (changed("users.txt", "nobody.txt"), "5: domain.sources: "),
    (changed("file:users", "fiel:users"), "5: domain.sources: 'fiel' is not a kind of source"),
    (changed("sources =", "sourcse ="), "5: domain.sourcse: unknown key; did you mean sources?"),
    (changed("sources =", "#"), "3: domain.sources: nobody would exist"),
    (
        SMALLEST + "fold = { delimiter = '+' }",
        "6: domain.fold.delimiter: unknown key; did you mean delimiters?",
    ),
    (SMALLEST + "fold = { delimiters = 'a' }", "6: domain.fold.delimiters: "),
    (SMALLEST + "fold = 'lower'", '6: domain.fold: "lower" is not a table; write { case = …'),
    (SMALLEST + "rules = ['btv']", '6: domain.rules: there is no shipped rule "btv"'),
    (SMALLEST + "rules = ['subaddresses']", "6: domain.rules: subaddresses need no rule"),
    (
        SMALLEST + "rules = [{ match = '(a', action = 'accept' }]",
        '6: domain.rules: "(a": missing )',
    ),
    (SMALLEST + "rules = [{ match = '(?=a)', action = 'accept' }]", "6: domain.rules: "),
    (
        SMALLEST + "rules = [{ match = 'a', action = 'drop' }]",
        '6: domain.rules.action: "drop" is not known',
    ),
    (SMALLEST + "rules = [{ action = 'accept' }]", "6: domain.rules.match: the text is empty"),
    (SMALLEST + "traps = ['a@example.com']", "6: domain.traps: "),
    (
        SMALLEST + "digest = { scheme = 'scrypt', n = 5000 }",
        "6: domain.digest.n: 5000 is no power of two",
    ),
    (SMALLEST + "digest = { n = 1024 }", "6: domain.digest: n and p belong to scrypt"),
    (SMALLEST + "valid_for = '91d'", "6: domain.valid_for: "),
    (SMALLEST + "mx = ['mx1.example.com']", "6: domain.mx: "),
    (
        SMALLEST + "limits = { max_message_bytes = 5 }",
        "6: domain.limits.max_message_bytes: unknown key",
    ),
    (
        SMALLEST + '[[domain]]\nname = "EXAMPLE.com"\ncatch_all = true',
        "7: domain.name: example.com stands twice (line 4)",
    ),
    (
        SMALLEST + "[https]\nlisten = ['0.0.0.0:8447']",
        "7: https.listen: 0.0.0.0:8447 without a certificate",
    ),
    (
        SMALLEST + "[[backup]]\npairing = 'p'\nown = 'o'\ndomains = ['example.net']",
        "9: backup.domains: example.net is no [[domain]]",
    ),
    (
        SMALLEST + "[[backup]]\npairing = 'p'\nown = 'o'\ndomains = ['example.com']",
        "8: backup.own: ",
    ),
    (
        SMALLEST + "[[backup]]\nown = 'o'\ndomains = ['example.com']",
        "6: backup.pairing: is missing",
    ),
    (
        SMALLEST + "[[backup]]\nagreement = 'ask'",
        "7: backup.agreement: unknown key; did you mean agreements?",
    ),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES, ids=lambda value: str(value)[-50:])
def test_mistakes_have_line_key_and_remedy(tmp_path: Path, text: str, expected: str) -> None:
    """Each mistake is reported with its line, its key and what to write."""
    found = mistakes_in(tmp_path, text)
    assert [line for line in found if line.startswith(expected)], found
    assert all("; " in line for line in found)


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    """The operator sees every mistake of the file in one go, in its order."""
    found = mistakes_in(tmp_path, "party = 5\nbase_url = 'x'\n[[domain]]\nname = '@'\nfold = 1\n")
    assert [line.partition(":")[0] for line in found] == ["1", "2", "3", "4", "5"]


def test_check_knows_whose_file_it_is(tmp_path: Path) -> None:
    """`posthouse check` reads a file with a party as a primary's."""
    file = write(tmp_path, SMALLEST)
    assert is_primary_file(file)
    assert not is_primary_file(tmp_path / "users.txt")
    done = CliRunner().invoke(posthouse_command, ["check", "-c", str(file)], standalone_mode=False)
    assert done.return_value == 0
    assert "example.com" in done.output
    file.write_text(changed("file:users", "fiel:users"))
    done = CliRunner().invoke(posthouse_command, ["check", "-c", str(file)], standalone_mode=False)
    assert done.return_value == 78
    assert ":5: domain.sources: 'fiel'" in done.stderr


def test_the_other_sides_file_is_named_as_such(tmp_path: Path) -> None:
    """A command for one side says whose file it got, not that every key of it is unknown."""
    primary, backup = tmp_path / "primary.toml", tmp_path / "posthouse.toml"
    primary.write_text('party = "example.com"\nbase_url = "https://mail.example.com/"\n')
    backup.write_text('hostname = "mx2.example.net"\n')
    with pytest.raises(ConfigError) as wrong:
        load(primary)
    assert len(wrong.value.mistakes) == 1
    assert "configuration of a primary" in wrong.value.mistakes[0]
    with pytest.raises(ConfigError) as wrong:
        load_primary(backup)
    assert len(wrong.value.mistakes) == 1
    assert "configuration of a backup" in wrong.value.mistakes[0]


def test_trap_rules_match_their_traps_alone() -> None:
    """A list of traps of any length becomes few rules, and dots are dots."""
    traps = tuple(f"old.name{number}" for number in range(300))
    rules = make_trap_rules(traps)
    assert 1 < len(rules) < 10
    find = compile_rules(rules)
    assert all(find(trap) is not None for trap in traps)
    assert find("OLD.name7") is not None
    assert find("oldxname7") is None
    assert find("old.name300") is None


@pytest.mark.parametrize(
    ("name", "hit", "miss"),
    [
        ("batv", "prvs=4123abcdef=alice", "prvs=alice"),
        ("srs", "SRS0=abcd=8B=example.org=bob", "srs"),
        ("mailman", "friends-bounces+bob=example.org", "friends-bounce"),
    ],
)
def test_shipped_rules(name: str, hit: str, miss: str) -> None:
    """A shipped rule matches what its software writes."""
    find = compile_rules(SHIPPED_RULES[name])
    assert find(hit) is not None
    assert find(miss) is None


def test_places_for_postfix(tmp_path: Path) -> None:
    """A path, with or without "unix:", or a loopback address; relative paths start at the file."""
    assert load_primary(write(tmp_path, SMALLEST)).postfix.auth_socket is None
    text = SMALLEST + '[postfix]\nauth_socket = "./auth"\npolicy_listen = "127.0.0.1:10031"\n'
    postfix = load_primary(write(tmp_path, text)).postfix
    assert postfix.auth_socket == tmp_path / "auth"
    assert str(postfix.policy_listen) == "127.0.0.1:10031"
    text = SMALLEST + f'[postfix]\npolicy_listen = "unix:{tmp_path}/policy"\n'
    assert load_primary(write(tmp_path, text)).postfix.policy_listen == tmp_path / "policy"


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ('auth_socket = "0.0.0.0:12345"', "can be reached from outside"),
        ('auth_socket = "unix:"', "names no socket"),
        ('auth_socket = "somewhere"', "is not an IP address with a port"),
        ('auth_socket = "/no/such/place/auth"', "/no/such/place is not a directory"),
        ('auth_socket = "/tmp/x"\npolicy_listen = "unix:/tmp/x"', "same place"),
    ],
)
def test_wrong_places_for_postfix(tmp_path: Path, line: str, mistake: str) -> None:
    """Nobody outside may guess at passwords, and a socket needs its directory."""
    (told,) = mistakes_in(tmp_path, f"{SMALLEST}[postfix]\n{line}\n")
    assert mistake in told


def test_alerts_are_told_as_a_node_tells_them(tmp_path: Path) -> None:
    """The keys of posthouse.toml, and a way for the mails; a secret does not show."""
    (tmp_path / "secret").write_text("s3cret")
    text = f'contact = "ops@elsewhere.example"\n{SMALLEST}[alerts]\nmail_via = "smtp://127.0.0.1"\n'
    text += 'webhook = "https://hooks.example.net/"\nwebhook_secret_file = "secret"\ndelay = "0s"\n'
    config = load_primary(write(tmp_path, text))
    assert config.contact == "ops@elsewhere.example"
    assert str(config.alerts.mail_via) == "smtp://127.0.0.1:25"
    assert config.alerts.webhook_secret_file == tmp_path / "secret"
    assert (config.alerts.delay, config.alerts.interval) == (timedelta(0), timedelta(minutes=15))
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ('webhook = "http://hooks.example.net/"', "not encrypted"),
        ('webhook_secret_file = "nowhere"', "cannot be used"),
        ('command = ["logger"]', "whole path"),
        ('mail_via = "lmtp:/x"', "no way to send mail"),
        ('mail_via = "sendmail:/no/such/program"', "cannot be run"),
        ('digest = "1d"', "unknown key"),
        ('intervall = "1d"', "did you mean interval"),
    ],
)
def test_wrong_alerts(tmp_path: Path, line: str, mistake: str) -> None:
    """Each names its line; what is about a queue has no place here."""
    (told,) = mistakes_in(tmp_path, f"{SMALLEST}[alerts]\n{line}\n")
    assert told.startswith("7: alerts.")
    assert mistake in told


def test_manual_has_every_key() -> None:
    """The tables of docs/primary.md are those of the schema."""
    manual = (Path(__file__).parents[3] / "docs" / "primary.md").read_text()
    assert "\n".join(format_reference()).strip() in manual
    assert all(f"`{key.name}`" in manual for keys in SECTIONS.values() for key in keys)
