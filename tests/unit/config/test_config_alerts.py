"""The keys of [alerts] and of quotas: what is taken, what is a mistake, what is warned of."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from posthouse.config import load
from posthouse.config_schema import Config
from posthouse.errors import ConfigError

BASE = """\
hostname = "mx2.example.net"
contact = "ops@elsewhere.example"
{alerts}
[[domain]]
name = "example.com"
recipients = "list"
{domain}
"""


def read(tmp_path: Path, alerts: str = "", domain: str = "", contact: str = "") -> Config:
    (tmp_path / "list").write_text("bob\n")
    text = BASE.format(alerts=f"[alerts]\n{alerts}" if alerts else "", domain=domain)
    if contact:
        text = text.replace("ops@elsewhere.example", contact)
    (tmp_path / "posthouse.toml").write_text(text)
    return load(tmp_path / "posthouse.toml")


def test_defaults_tell_by_mail(tmp_path: Path) -> None:
    """With a contact and nothing else mails are sent, and nothing is warned of."""
    config = read(tmp_path)
    assert config.alerts.mail
    assert (config.alerts.webhook, config.alerts.command) == (None, ())
    assert config.alerts.digest == timedelta(days=1)
    assert config.warnings == ()


def test_everything_can_be_said(tmp_path: Path) -> None:
    """Paths are relative to the file; a secret does not show."""
    (tmp_path / "secret").write_text(" s3cret \n")
    config = read(
        tmp_path,
        'webhook = "https://hooks.example.net:8443/x?y=1"\nwebhook_secret_file = "secret"\n'
        'command = ["/usr/bin/logger", "-t", "a b"]\ndelay = "0s"',
        'quota_size = "5GB"\nquota_count = 1000',
    )
    assert config.alerts.webhook_secret_file == tmp_path / "secret"
    assert config.alerts.command == ("/usr/bin/logger", "-t", "a b")
    assert (config.domains[0].quota_size, config.domains[0].quota_count) == (5 * 10**9, 1000)
    other = read(tmp_path, 'webhook = "http://127.0.0.1:1/"\nwebhook_secret = "hidden"')
    assert "hidden" not in repr(other)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('webhook = "http://hooks.example.net/"', "not encrypted"),
        ('webhook = "ftp://hooks.example.net/"', "no https URL"),
        ('webhook = "https://u:p@hooks.example.net/"', "password"),
        ('webhook = "https://hooks.example.net:x/"', "no URL"),
        ('webhook = "https:///x"', "no URL"),
        ('webhook = "https://a b/"', "no URL"),
        ('webhook_secret_file = "nowhere"', "cannot be used"),
        ('webhook_ca_file = "nowhere"', "cannot be used"),
        ('command = ["logger"]', "whole path"),
        ('digest = "1h"', "stay between"),
        ('digst = "1d"', "did you mean digest"),
    ],
)
def test_mistakes(tmp_path: Path, line: str, told: str) -> None:
    """Each names its line and a remedy."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, line)
    (mistake,) = caught.value.mistakes
    assert told in mistake
    assert "posthouse.toml:4:" in mistake


@pytest.mark.parametrize(
    ("alerts", "contact", "told"),
    [
        ('webhook = "https://hooks.example.net/"', "", "cannot tell who sent"),
        ('webhook_secret = "x"', "", "there is no webhook"),
        ("", "ops@example.com", "behind this backup"),
        ("", "ops@hop.example.net", "is a next hop of this backup"),
    ],
)
def test_warnings(tmp_path: Path, alerts: str, contact: str, told: str) -> None:
    """What works but hardly as meant."""
    config = read(tmp_path, alerts, 'next_hop = ["smtp://hop.example.net"]', contact)
    assert [told in warning for warning in config.warnings] == [True]


def test_nobody_to_tell(tmp_path: Path) -> None:
    """Without contact, webhook and command nobody hears of trouble."""
    (tmp_path / "list").write_text("bob\n")
    text = BASE.format(alerts="", domain="").replace('contact = "ops@elsewhere.example"\n', "")
    (tmp_path / "posthouse.toml").write_text(text)
    assert "nobody is told" in load(tmp_path / "posthouse.toml").warnings[0]
