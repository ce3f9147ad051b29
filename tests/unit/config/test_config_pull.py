"""Configuration of mail that is fetched, and of the standby modes."""

from __future__ import annotations

from pathlib import Path

import pytest

from posthouse.config import load
from posthouse.config_values import PULL
from posthouse.errors import ConfigError
from posthouse.node_settings import make_routes, make_standby

GOOD = """\
hostname = "mx2.example.net"
data_dir = "data"
[odmr]
listen = ["127.0.0.1"]
[[domain]]
name = "example.com"
recipients = "list"
next_hop = "pull"
[[domain]]
name = "example.org"
recipients = "list"
standby = "defer"
standby_patience = 5
[[pull]]
user = "ada"
secret_file = "secret"
domains = ["Example.COM"]
"""


def write(tmp_path: Path, text: str, *, secret: str = "0123456789abcdef\n") -> Path:
    (tmp_path / "list").write_text("alice\n")
    path = tmp_path / "secret"
    path.write_text(secret)
    path.chmod(0o600)
    file = tmp_path / "posthouse.toml"
    file.write_text(text)
    return file


def test_a_good_file(tmp_path: Path) -> None:
    """Who fetches, with which secret; where the relays will find them; who is deferred."""
    config = load(write(tmp_path, GOOD))
    (pull,) = config.pulls
    assert (pull.user, pull.domains, pull.secret) == ("ada", ("example.com",), "0123456789abcdef")
    assert "0123456789abcdef" not in repr(config)
    assert [(e.address, e.port) for e in config.odmr.listen] == [("127.0.0.1", 366)]
    assert config.domains[0].next_hop == PULL
    (hop,) = make_routes(config)["example.com"].hops
    assert hop.host.startswith(f"{tmp_path}/data/run/atrn-")
    assert {d: (r.mode.value, r.patience) for d, r in make_standby(config).items()} == {
        "example.org": ("defer", 5)
    }


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ('["Example.COM"]', '["example.org"]', ":17: pull.domains: example.org is not fetched"),
        ('["Example.COM"]', '["example.org"]', ":8: domain.next_hop: nobody may fetch"),
        ('listen = ["127.0.0.1"]', "", ":3: odmr.listen: nobody can dial in"),
        ('"secret"\n', '"nowhere"\n', "cannot be read"),
        ('user = "ada"\n', "", "pull.user: is missing"),
        ('standby = "defer"', 'standby = "proxies"', 'domain.standby: "proxies" is'),
        (
            'next_hop = "pull"',
            'next_hop = "pull"\nstandby = "defer"',
            ":9: domain.standby: the primary",
        ),
        ('user = "ada"', 'usr = "ada"', "did you mean user?"),
        (
            "[[pull]]",
            '[[pull]]\nuser = "ada"\nsecret_file = "secret"\ndomains = ["example.com"]\n[[pull]]',
            "ada stands twice",
        ),
    ],
)
def test_mistakes(tmp_path: Path, old: str, new: str, mistake: str) -> None:
    """Each mistake is named with its place and a remedy."""
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, GOOD.replace(old, new)))
    assert any(mistake in line for line in caught.value.mistakes), caught.value.mistakes


def test_a_short_secret(tmp_path: Path) -> None:
    """A secret that can be guessed is refused."""
    with pytest.raises(ConfigError, match="has 5 characters"):
        load(write(tmp_path, GOOD, secret="short\n"))
