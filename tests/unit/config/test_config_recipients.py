"""`recipients` that name a roster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fakes.pairs import write_pairs
from posthouse.config import load
from posthouse.config_recipients import RosterOrigin, read_recipients
from posthouse.config_values import Wrong
from posthouse.errors import ConfigError

PRIMARY = '[[primary]]\npairing = "pairs/example.com.json"\nown = "pairs/mx2.example.net.json"\n'


def write(folder: Path, recipients: str, rest: str = "", domain: str = "example.com") -> Path:
    file = folder / "posthouse.toml"
    file.write_text(
        f'hostname = "mx2.example.net"\n{rest}[[domain]]\nname = "{domain}"\n'
        f"recipients = {recipients}\n"
    )
    return file


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x.recipients", Path("x.recipients")),
        ("x.roster", RosterOrigin(kind="file", place="x.roster")),
        ("https://h.example/x", RosterOrigin(kind="url", place="https://h.example/x")),
        ({"primary": "p"}, RosterOrigin(kind="primary", place="p")),
        ({"primary": "p", "max_loss": 0}, RosterOrigin(kind="primary", place="p", max_loss=0)),
        (
            {"primary": "p", "pairing": "y"},
            RosterOrigin(kind="primary", place="p", pairing=Path("y")),
        ),
        (
            {"file": "x", "pairing": "y"},
            RosterOrigin(kind="file", place="x", pairing=Path("y")),
        ),
        (
            {"url": "https://h.example/x", "pairing": "y"},
            RosterOrigin(kind="url", place="https://h.example/x", pairing=Path("y")),
        ),
    ],
)
def test_read(value: Any, expected: object) -> None:
    """A path, a roster file, a URL, or a table that names a primary, URL or file."""
    assert read_recipients(value) == expected


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (7, "neither a file nor a table"),
        ({}, "needs one of"),
        ({"primary": "a", "file": "b"}, "needs one of"),
        ({"primary": ""}, "primary is not a text"),
        ({"primery": "a"}, "unknown key primery"),
        ({"primary": "a", "max_loss": 101}, "101"),
        ("http://h.example/x", "loopback only"),
        ("https://u@h.example/x", "user before the host"),
        ({"url": "ftp://h.example/x"}, "neither https nor http"),
    ],
)
def test_wrong(value: Any, what: str) -> None:
    """Whatever else is written is a mistake with a remedy."""
    with pytest.raises(Wrong) as caught:
        read_recipients(value)
    assert what in caught.value.findings[0][1]


def test_keys_are_those_of_the_paired_primary(tmp_path: Path) -> None:
    """A primary by its name, a URL or a file by the domain; paths start where the file is."""
    write_pairs(tmp_path / "pairs", "example.com", "mx2.example.net")
    (tmp_path / "x.roster").write_bytes(b"")
    for recipients, place in (
        ('{ primary = "example.com" }', "example.com"),
        ('"https://cdn.example/x.roster"', "https://cdn.example/x.roster"),
        ('"x.roster"', str(tmp_path / "x.roster")),
    ):
        (domain,) = load(write(tmp_path, recipients, PRIMARY)).domains
        assert domain.roster is not None
        assert domain.roster.place == place
        assert domain.recipients is None


def test_a_pairing_of_its_own(tmp_path: Path) -> None:
    """A file or URL may name a pairing without any [[primary]]."""
    write_pairs(tmp_path / "pairs", "example.com", "mx2.example.net")
    (tmp_path / "x.roster").write_bytes(b"")
    recipients = '{ file = "x.roster", pairing = "pairs/example.com.json" }'
    (domain,) = load(write(tmp_path, recipients)).domains
    assert domain.roster is not None
    assert domain.roster.pairing == tmp_path / "pairs" / "example.com.json"


@pytest.mark.parametrize(
    ("recipients", "rest", "domain", "what"),
    [
        ('{ primary = "x" }', PRIMARY, "example.com", "no [[primary]] is x"),
        ('{ primary = "example.com" }', PRIMARY, "example.net", "is not about example.net"),
        (
            '{ primary = "x", pairing = "pairs/example.com.json" }',
            PRIMARY,
            "example.com",
            "no [[primary]] is x",
        ),
        ('"x.roster"', PRIMARY, "example.net", "nothing says who may sign it"),
        ('"x.roster"', "", "example.com", "nothing says who may sign it"),
        ('"missing.roster"', PRIMARY, "example.com", "cannot be read"),
        (
            '{ file = "x.roster", pairing = "missing.json" }',
            "",
            "example.com",
            "missing.json: cannot be read",
        ),
        (
            '{ file = "x.roster", pairing = "pairs/example.com.json" }',
            "",
            "example.net",
            "is not about example.net",
        ),
    ],
)
def test_rosters_without_keys(
    tmp_path: Path, recipients: str, rest: str, domain: str, what: str
) -> None:
    """A roster nobody could read is a mistake; a node that starts takes it for a warning."""
    write_pairs(tmp_path / "pairs", "example.com", "mx2.example.net")
    (tmp_path / "x.roster").write_bytes(b"")
    file = write(tmp_path, recipients, rest, domain)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert any(what in mistake for mistake in caught.value.mistakes)
    assert any(what in warning for warning in load(file, lists_may_wait=True).warnings)
    assert load(file, check_files=False).domains[0].roster is not None
