from __future__ import annotations

import os
import pwd
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from fakes.pairs import write_pairs
from posthouse.config import load
from posthouse.config_schema import SECTIONS, format_reference
from posthouse.errors import ConfigError

SMALLEST = """\
hostname = "mx2.example.net"
[[domain]]
name = "example.com"
"""


def write(directory: Path, text: str) -> Path:
    file = directory / "posthouse.toml"
    file.write_bytes(text.encode())
    return file


def mistakes_in(directory: Path, text: str) -> list[str]:
    file = write(directory, text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    return [line.removeprefix(f"{file}:") for line in caught.value.mistakes]


def test_smallest_file_has_the_documented_defaults(tmp_path: Path) -> None:
    """A host name and a domain are enough."""
    config = load(write(tmp_path, SMALLEST))
    assert [str(endpoint) for endpoint in config.smtp.listen] == ["0.0.0.0:25", "[::]:25"]
    assert config.smtp.max_message_size == 50_000_000
    assert config.relay.retry == tuple(timedelta(minutes=m) for m in (1, 5, 15, 30))
    [domain] = config.domains
    assert (domain.next_hop, domain.keep_for) == ((), timedelta(days=21))
    assert config.data_dir == Path("/var/lib/posthouse")


def test_relative_paths_start_where_the_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths are relative to the file, not to where the command is run."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "list").write_text("bob\n")
    write(
        tmp_path / "etc",
        'hostname = "mx2.example.net"\ndata_dir = "data"\n[log]\nto = "mail.log"\n'
        '[[domain]]\nname = "example.com"\nrecipients = "list"\n',
    )
    monkeypatch.chdir(tmp_path)
    config = load("etc/posthouse.toml")
    assert config.data_dir == tmp_path / "etc" / "data"
    assert config.domains[0].recipients == tmp_path / "etc" / "list"
    assert config.log.to == str(tmp_path / "etc" / "mail.log")


MISTAKES = [
    ('hostname = "mx2"\n' + SMALLEST.split("\n", 1)[1], "1: hostname: "),
    (SMALLEST.replace("hostname", "host_name"), "1: host_name: unknown key; did you mean hostname?"),
    ("max_errors = 5\n" + SMALLEST, "1: max_errors: unknown key; it belongs below [smtp]"),
    ("keepfor = 5\n" + SMALLEST, "1: keepfor: unknown key; did you mean keep_for, below [[domain]]?"),
    ("[smpt]\n" + SMALLEST, "1: smpt: unknown table; did you mean smtp?"),
    (SMALLEST + "[web]\nlisten = []\n", "4: web: unknown table; "),
    ('user = "no-such-user"\n' + SMALLEST, "1: user: there is no user no-such-user; create it"),
    ("zzz = 1\n" + SMALLEST, "1: zzz: unknown key; remove it"),
    (SMALLEST.replace("[[domain]]", "[domain]"), "2: domain: is not a list of tables"),
    ('hostname = "mx2.example.net"\n', "1: no domain; add [[domain]]"),
    ("[[smtp]]\n" + SMALLEST, "1: smtp: stands in two pairs of brackets; write [smtp]"),
    ("smtp = 3\n" + SMALLEST, "1: smtp: 3 is not a table"),
    (SMALLEST.replace("name =", "next_hop ="), "2: domain.name: is missing"),
    (SMALLEST + '[[domain]]\nname = "EXAMPLE.COM"\n', "5: domain.name: example.com stands twice (line 3)"),
    (SMALLEST + 'next_hop = ["smtp://mx2.example.net"]\n', "4: domain.next_hop: smtp://mx2.example.net:25 is this host"),
    (SMALLEST + 'next_hop = ["smtp://127.0.0.1"]\n', "4: domain.next_hop: smtp://127.0.0.1:25 is this host"),
    (SMALLEST + 'next_hop = ["smtp://[::1]"]\n', "4: domain.next_hop: smtp://[::1]:25 is this host"),
    (SMALLEST + 'recipients = "missing"\n', "4: domain.recipients: "),
    (SMALLEST + 'recipients = { primary = "x" }\n', "4: domain.recipients: no [[primary]] is x; pair with it; there are: none"),
    (SMALLEST + '[smtp]\ncertificate = "cert.pem"\n', "4: smtp.private_key: is missing beside certificate"),
    (SMALLEST + '[smtp]\nprivate_key = "key.pem"\n', "4: smtp.certificate: is missing beside private_key"),
    (SMALLEST + "[relay]\nretry = []\n", "5: relay.retry: the list is empty"),
    (SMALLEST + "[smtp]\nlisten = [\n\n'x',\n]\n", "7: smtp.listen: "),
    ("hostname = mx2.example.net\n", "1: syntax: Invalid value"),
    ('a = "x\n', "1: syntax: Illegal character"),
    (SMALLEST + "[[domain]]\nname = [1,\n", "6: syntax: "),
    ('hostname = "a.b"\nhostname = "c.d"\n', "2: syntax: Cannot overwrite a value"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), MISTAKES)
def test_each_mistake_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    """One mistake gives a line that begins with file, line number and key."""
    found = mistakes_in(tmp_path, text)
    assert any(line.startswith(told) for line in found), found
    assert all("; " in line for line in found)


def test_all_mistakes_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Nothing stops at the first mistake."""
    found = mistakes_in(
        tmp_path,
        'hostname = "x"\nworker = 1\n[smtp]\nidle_timeout = 5\nlisten = ["a", "b"]\n'
        "[relay]\ntls = true\n[[domain]]\nkeep_for = 1\n",
    )
    numbers = [int(line.split(":")[0]) for line in found]
    assert numbers == [1, 2, 4, 5, 5, 7, 8, 9]


def test_octets_that_are_no_utf8_are_found(tmp_path: Path) -> None:
    """A file in another encoding is told with the line of its first bad octet."""
    file = tmp_path / "posthouse.toml"
    file.write_bytes(b'hostname = "mx2.example.net"\ncontact = "\xfc@example.org"\n')
    with pytest.raises(ConfigError, match=r"posthouse\.toml:2: not UTF-8"):
        load(file)


def test_an_absent_file_is_a_mistake(tmp_path: Path) -> None:
    """A file that cannot be read is a configuration mistake like others."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "none.toml")


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    """Editors that put one in front are forgiven."""
    assert load(write(tmp_path, "\ufeff" + SMALLEST)).hostname == "mx2.example.net"


def test_contact_behind_this_backup_is_a_warning(tmp_path: Path) -> None:
    """Alerts about the primary must not wait for the primary."""
    config = load(write(tmp_path, 'contact = "ops@example.com"\n' + SMALLEST))
    assert any("behind this backup" in line for line in config.warnings)


def test_a_lost_list_keeps_no_node_from_starting(tmp_path: Path) -> None:
    """The node takes an unreadable recipients file as a warning, `check` as a mistake."""
    file = write(tmp_path, SMALLEST + 'recipients = "missing"\n')
    assert any(
        "missing cannot be read" in line for line in load(file, lists_may_wait=True).warnings
    )


def test_certificate_and_key_must_belong_together(tmp_path: Path) -> None:
    """A key of another certificate, an encrypted key and a file without PEM are told apart."""
    authority = trustme.CA()
    one, other = authority.issue_cert("mx2.example.net"), authority.issue_cert("x.example.net")
    one.private_key_pem.write_to_path(tmp_path / "one.key")
    one.cert_chain_pems[0].write_to_path(tmp_path / "one.pem")
    other.private_key_pem.write_to_path(tmp_path / "other.key")
    (tmp_path / "no.pem").write_text("nothing\n")
    for key in tmp_path.glob("*.key"):
        key.chmod(0o600)

    def text(certificate: str, key: str) -> str:
        return SMALLEST + f'[smtp]\ncertificate = "{certificate}"\nprivate_key = "{key}"\n'

    assert load(write(tmp_path, text("one.pem", "one.key"))).smtp.certificate is not None
    assert "is not the key of" in mistakes_in(tmp_path, text("one.pem", "other.key"))[0]
    assert "cannot be loaded" in mistakes_in(tmp_path, text("no.pem", "one.key"))[0]
    assert "cannot be read" in mistakes_in(tmp_path, text("one.pem", "gone.key"))[0]


def test_an_encrypted_key_does_not_wait_for_a_password(tmp_path: Path) -> None:
    """A key that needs a password is a mistake, never a prompt."""
    from cryptography.hazmat.primitives import serialization

    issued = trustme.CA().issue_cert("mx2.example.net")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    found = mistakes_in(
        tmp_path, SMALLEST + '[smtp]\ncertificate = "cert.pem"\nprivate_key = "key.pem"\n'
    )
    assert "is encrypted" in found[0]


ROOT = Path(__file__).parents[3]


def test_the_manual_lists_every_key() -> None:
    """docs/configuration.md holds the reference made from the schema, word for word."""
    manual = (ROOT / "docs" / "configuration.md").read_text()
    assert "\n".join(format_reference()).strip() in manual


def test_the_annotated_example_is_valid_and_whole(tmp_path: Path) -> None:
    """packaging/posthouse.toml is accepted with every key in force, and shows the defaults."""
    text = (ROOT / "packaging" / "posthouse.toml").read_text()
    loud = "\n".join(
        line.removeprefix("#") if line.startswith("#") and not line.startswith("# ") else line
        for line in text.splitlines()
    )
    loud = loud.replace('user = "posthouse"', f'user = "{pwd.getpwuid(os.geteuid()).pw_name}"')
    issued = trustme.CA().issue_cert("mx2.example.net")
    for name in ("fullchain.pem", "privkey.pem"):
        loud = loud.replace(f"/etc/posthouse/{name}", str(tmp_path / name))
    issued.cert_chain_pems[0].write_to_path(tmp_path / "fullchain.pem")
    issued.private_key_pem.write_to_path(tmp_path / "privkey.pem")
    loud = loud.replace("/etc/ssl/certs/ca-certificates.crt", str(tmp_path / "fullchain.pem"))
    loud = loud.replace("/etc/posthouse/webhook.secret", str(tmp_path / "secret"))
    (tmp_path / "secret").write_text("shared\n")
    (tmp_path / "example.com.recipients").write_text("bob\n")
    write_pairs(tmp_path / "pairs", "example.com", "mx2.example.net")
    write_pairs(tmp_path / "pairs", "for-mx3.example.org", "mx3.example.org")
    loud = loud.replace("listen = []", 'listen = ["0.0.0.0:366"]')  # the [[pull]] wants it
    (tmp_path / "example.secret").write_text("0123456789abcdef")
    load(write(tmp_path, loud))
    for section, keys in SECTIONS.items():
        for key in keys:
            assert f"\n{key.name} " in loud.replace("\n#", "\n"), f"{section}.{key.name}"


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ("x = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("workers = " + "9" * 5000, "thousands of digits"),
        ('shutdown_grace = "' + "9" * 5000 + 's"', "shutdown_grace: "),
        ('data_dir = "file/data"', "data_dir: .*file is not a directory"),
        ('lisen = ["127.0.0.1:25"]', r"did you mean listen, below \[smtp\]"),
        ('log.to = "."', "is a directory"),
        ("zzqy = 1", "remove it"),
    ],
)
def test_oddities_are_mistakes_too(tmp_path: Path, head: str, told: str) -> None:
    """Depth, endless numbers and places of the wrong kind are told like any mistake."""
    (tmp_path / "file").write_text("")
    file = tmp_path / "odd.toml"
    file.write_text(f'{head}\nhostname = "mx2.example.net"\n[[domain]]\nname = "example.com"\n')
    with pytest.raises(ConfigError, match=told):
        load(file)


def test_a_named_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    """As configuration, list or certificate it is a mistake; commands need no such files."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="not a regular file"):
        load(pipe)
    file = tmp_path / "posthouse.toml"
    file.write_text(
        'hostname = "mx2.example.net"\n[smtp]\ncertificate = "pipe"\nprivate_key = "pipe"\n'
        '[[domain]]\nname = "example.com"\nrecipients = "pipe"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert len(caught.value.mistakes) == 3
    assert load(file, check_files=False).domains[0].name == "example.com"
