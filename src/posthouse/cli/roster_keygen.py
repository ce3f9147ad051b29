"""`posthouse roster keygen`: the key that signs rosters, and one to hash addresses with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click

from posthouse.cli.main import find_primary_config, primary_config_option
from posthouse.config_primary import load_primary
from posthouse.config_primary_schema import PrimaryConfig
from posthouse.errors import ConfigError
from posthouse.mail.wire_text import encode_base64url
from posthouse.node_publishing import ROSTER_KEY_FILE, SIGNING_KEY_FILE, read_key, write_key
from posthouse.node_user import become, find_owner
from posthouse.proto import signing


@click.command()
@primary_config_option
@click.option("--show-secret", is_flag=True, help="Show the roster key too, to hand it over.")
def keygen(config_file: Path | None, show_secret: bool) -> int:
    """Make the keys of a primary, once.

    The signing key is needed by every primary; `posthouse pair offer` makes it too.
    The roster key is for rosters that are carried to a backup as files: a paired
    backup has one of its own. Keys that are there already are left alone and told.
    """
    config = load_primary(find_primary_config(config_file), check_files=False)
    become_owner(config)
    made = [
        _ensure(config.data_dir / SIGNING_KEY_FILE, signing.generate_private_key),
        _ensure(config.data_dir / ROSTER_KEY_FILE, lambda: os.urandom(signing.KEY_BYTES)),
    ]
    private_key, roster_key = (key for key, _ in made)
    public_key = signing.derive_public_key(private_key)
    for name, (_, fresh) in zip((SIGNING_KEY_FILE, ROSTER_KEY_FILE), made, strict=True):
        click.echo(f"{config.data_dir / name}: {'made' if fresh else 'is there already'}")
    click.echo(f"party       {config.party}")
    click.echo(f"public_key  {encode_base64url(public_key)}  (id {signing.key_id(public_key)})")
    secret = encode_base64url(roster_key) if show_secret else "secret, see --show-secret"
    click.echo(f"roster_key  {secret}  (id {signing.key_id(roster_key)})")
    click.echo(f"Keep a copy of {config.data_dir / SIGNING_KEY_FILE} where only you can read it.")
    return 0


def become_owner(config: PrimaryConfig) -> None:
    """As root, go on as who owns data_dir: what is written must be read by `primary serve`."""
    if os.geteuid() == 0 and config.data_dir.is_dir():
        become(find_owner(config.data_dir))


def _ensure(path: Path, generate: Callable[[], bytes]) -> tuple[bytes, bool]:
    """The key in a file, and whether it was made now."""
    try:
        return read_key(path), False
    except FileNotFoundError:
        key = generate()
    try:
        write_key(path, key)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be written: {error.strerror}"]) from error
    return key, True
