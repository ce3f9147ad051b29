"""[pages] of primary.toml: how the one-time link is mailed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from posthouse.config_primary import load_primary
from posthouse.config_primary_pages import PagesConfig
from posthouse.config_values import FixedHop
from posthouse.errors import ConfigError

SMALLEST = """
party = "example.com"
base_url = "http://127.0.0.1:8447/"
[https]
listen = ["127.0.0.1:8447"]
[[domain]]
name = "example.com"
catch_all = true
"""


def read(folder: Path, pages: str) -> PagesConfig:
    file = folder / "primary.toml"
    file.write_text(f"{SMALLEST}[pages]\n{pages}\n")
    return load_primary(file).pages


def test_no_pages_unless_asked_for(tmp_path: Path) -> None:
    """Without mail_via there are none."""
    assert read(tmp_path, "") == PagesConfig(
        mail_via=None, sender=None, name=None, link_lifetime=timedelta(minutes=30)
    )


def test_all_of_it(tmp_path: Path) -> None:
    """A host with its port, a sender, a name, a lifetime."""
    assert read(
        tmp_path,
        'mail_via = "smtp://127.0.0.1:2525"\nfrom = "mail@example.com"\nname = "Example & Sons"\n'
        'link_lifetime = "2h"',
    ) == PagesConfig(
        mail_via=FixedHop(host="127.0.0.1", port=2525),
        sender="mail@example.com",
        name="Example & Sons",
        link_lifetime=timedelta(hours=2),
    )


def test_a_program(tmp_path: Path) -> None:
    """It has to be there, and to be one."""
    program = tmp_path / "sendmail"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(ConfigError, match=r"pages\.mail_via: .*cannot be run"):
        read(tmp_path, f'mail_via = "sendmail:{program}"')
    program.chmod(0o755)
    assert read(tmp_path, f'mail_via = "sendmail:{program}"').mail_via == program


@pytest.mark.parametrize(
    "value", ['"sendmail"', '"sendmail:bin/sendmail"', '"127.0.0.1:25"', '"lmtp://x:24"', "25"]
)
def test_what_is_no_way_to_send(tmp_path: Path, value: str) -> None:
    """Each is told with what to write instead."""
    with pytest.raises(ConfigError, match=r"pages\.mail_via: .*; .*write"):
        read(tmp_path, f"mail_via = {value}")


def test_odd_lifetimes(tmp_path: Path) -> None:
    """Neither a moment nor a month."""
    for value in ("1s", "30d"):
        with pytest.raises(ConfigError, match="link_lifetime"):
            read(tmp_path, f'link_lifetime = "{value}"')
