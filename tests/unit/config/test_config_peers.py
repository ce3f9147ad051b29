"""[https] and [[primary]] of posthouse.toml: certificates, loopback, pairing files."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from fakes.http_server import Certificate
from fakes.https_stage import write_certificate
from fakes.pairs import write_pairs
from posthouse.config import load
from posthouse.config_schema import Config
from posthouse.errors import ConfigError

TOP = """
hostname = "mx2.example.net"
data_dir = "data"
[smtp]
listen = ["127.0.0.1:2525"]
{smtp}
{rest}
[[domain]]
name = "example.com"
recipients = "list"
"""
CERTIFICATE = 'certificate = "fullchain.pem"\nprivate_key = "privkey.pem"'
PRIMARY = '[[primary]]\npairing = "example.com.json"\nown = "mx2.example.net.json"\n'


def read(folder: Path, *, smtp: str = "", rest: str = "", may_wait: bool = False) -> Config:
    """Load a file with these lines in it."""
    (folder / "list").write_text("user@example.com\n")
    write_certificate(folder, Certificate(trustme.CA(), "mx2.example.net"))
    (folder / "privkey.pem").chmod(0o600)
    file = folder / "posthouse.toml"
    file.write_text(TOP.format(smtp=smtp, rest=rest))
    return load(file, lists_may_wait=may_wait)


def test_no_door_unless_asked_for(tmp_path: Path) -> None:
    """Without [https] nothing listens, and there is no primary."""
    config = read(tmp_path)
    assert config.https.listen == ()
    assert config.primaries == ()


def test_the_certificate_of_smtp_serves_both(tmp_path: Path) -> None:
    """Unless [https] has its own."""
    config = read(tmp_path, smtp=CERTIFICATE, rest='[https]\nlisten = ["0.0.0.0:8447"]')
    assert config.https.certificate == tmp_path / "fullchain.pem"
    assert [str(door) for door in config.https.listen] == ["0.0.0.0:8447"]
    own = CERTIFICATE.replace("fullchain", "./fullchain")
    config = read(tmp_path, rest=f'[https]\nlisten = ["0.0.0.0:8447"]\n{own}')
    assert config.https.private_key == tmp_path / "privkey.pem"


def test_without_a_certificate_it_stays_on_loopback(tmp_path: Path) -> None:
    """A wildcard becomes loopback and is told; an address of the host is a mistake."""
    config = read(tmp_path, rest='[https]\nlisten = ["0.0.0.0:8447", "[::]:8447"]')
    assert [str(door) for door in config.https.listen] == ["127.0.0.1:8447", "[::1]:8447"]
    assert sum("without a certificate" in warning for warning in config.warnings) == 2
    with pytest.raises(ConfigError, match="without a certificate"):
        read(tmp_path, rest='[https]\nlisten = ["192.0.2.1:8447"]')


def test_half_a_certificate(tmp_path: Path) -> None:
    """A certificate without key is a mistake here too."""
    with pytest.raises(ConfigError, match=r"https\.private_key: is missing"):
        read(tmp_path, rest='[https]\nlisten = ["127.0.0.1:8447"]\ncertificate = "fullchain.pem"')


def test_a_paired_primary(tmp_path: Path) -> None:
    """Paths start where the file is."""
    write_pairs(tmp_path, "example.com", "mx2.example.net")
    config = read(tmp_path, rest=PRIMARY)
    assert config.primaries[0].pairing == tmp_path / "example.com.json"
    assert config.primaries[0].own == tmp_path / "mx2.example.net.json"
    assert not [warning for warning in config.warnings if "json" in warning]


def test_pairing_files_that_are_no_good(tmp_path: Path) -> None:
    """`check` refuses them by file and line; a node that starts goes on without."""
    write_pairs(tmp_path, "example.com", "mx2.example.net", public_key="x")
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, rest=PRIMARY)
    assert "posthouse.toml:8: primary.pairing: " in caught.value.mistakes[0]
    assert "public_key" in caught.value.mistakes[0]
    config = read(tmp_path, rest=PRIMARY, may_wait=True)
    assert any("public_key" in warning for warning in config.warnings)
    (tmp_path / "mx2.example.net.json").unlink()
    with pytest.raises(ConfigError, match=r"mx2\.example\.net\.json: cannot be read"):
        read(tmp_path, rest=PRIMARY)


def test_one_primary_twice(tmp_path: Path) -> None:
    """Each party stands there once."""
    write_pairs(tmp_path, "example.com", "mx2.example.net")
    with pytest.raises(ConfigError, match=r"example\.com stands twice"):
        read(tmp_path, rest=PRIMARY + PRIMARY)


def test_secrets_that_others_can_read(tmp_path: Path) -> None:
    """They are told, not refused."""
    write_pairs(tmp_path, "example.com", "mx2.example.net")
    (tmp_path / "example.com.json").chmod(0o644)
    config = read(tmp_path, rest=PRIMARY)
    assert any("chmod 600" in warning for warning in config.warnings)


BACKUP = '[[backup]]\npairing = "mx3.example.org.json"\nown = "for-mx3.json"\ndomains = ["{}"]\n'


def test_a_further_backup(tmp_path: Path) -> None:
    """[[backup]] names a backup behind this one, and only domains of ours."""
    write_pairs(tmp_path, "for-mx3", "mx3.example.org")
    config = read(tmp_path, rest=BACKUP.format("example.com"))
    (backup,) = config.backups
    assert backup.pairing == tmp_path / "mx3.example.org.json"
    assert (backup.domains, backup.agreements) == (("example.com",), "auto")
    with pytest.raises(ConfigError, match=r"example.org is no \[\[domain\]\] here"):
        read(tmp_path, rest=BACKUP.format("example.org"))
    (tmp_path / "for-mx3.json").write_text("{}")
    with pytest.raises(ConfigError, match="no usable pairing file"):
        read(tmp_path, rest=BACKUP.format("example.com"))
    read(tmp_path, rest=BACKUP.format("example.com"), may_wait=True)
