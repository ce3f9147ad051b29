"""Pairing files named by a configuration: mistakes name the file and the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posthouse.config_pairs import (
    load_backup_pairing,
    load_own_pairing,
    load_primary_pairing,
    make_account,
    warn_of_open_file,
)
from posthouse.errors import ConfigError
from posthouse.mail.wire_text import encode_base64url
from posthouse.proto.pairing import hash_token
from posthouse.proto.signing import key_id

PRIMARY = {
    "party": "example.com",
    "base_url": "https://mail.example.com:8447/",
    "public_key": encode_base64url(b"p" * 32),
    "roster_key": encode_base64url(b"r" * 32),
    "token": "t",
    "domains": ["example.com"],
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "pair.json"
    path.write_text(json.dumps({**PRIMARY, **changes}))
    path.chmod(0o600)
    return path


def test_files_are_read(tmp_path: Path) -> None:
    """One file serves as the other side's and, on the side that made it, as its own."""
    path = write(tmp_path)
    assert load_primary_pairing(path).roster_key == b"r" * 32
    assert load_backup_pairing(path).token == "t"
    account = make_account("mx2.example.net", load_own_pairing(path, "primary"), frozenset({"a"}))
    assert account.token_hashes == (hash_token("t"),)
    assert account.roster_key_ids == (key_id(b"r" * 32),)
    backup = make_account("example.com", load_own_pairing(path, "backup"), frozenset())
    assert backup.roster_key_ids == ()


def test_mistakes_name_file_and_remedy(tmp_path: Path) -> None:
    """Whether the file is missing or wrong."""
    missing = tmp_path / "no.json"
    with pytest.raises(ConfigError) as caught:
        load_primary_pairing(missing)
    assert str(missing) in caught.value.mistakes[0]
    assert "pair offer" in caught.value.mistakes[0]
    with pytest.raises(ConfigError, match=r"pair\.json: no usable pairing file: token is missing"):
        load_backup_pairing(_without_token(tmp_path))


def _without_token(folder: Path) -> Path:
    path = write(folder)
    path.write_text(json.dumps({k: v for k, v in PRIMARY.items() if k != "token"}))
    return path


def test_files_open_to_everybody_are_told(tmp_path: Path) -> None:
    """A secret that others can read is worth a warning."""
    path = write(tmp_path)
    assert warn_of_open_file(path) is None
    path.chmod(0o604)
    assert "chmod 600" in (warn_of_open_file(path) or "")
    assert warn_of_open_file(tmp_path / "no.json") is None
