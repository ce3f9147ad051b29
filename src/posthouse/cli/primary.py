"""`posthouse primary`: what runs beside the primary."""

from __future__ import annotations

from pathlib import Path

import click

from posthouse.errors import ConfigError

PRIMARY_FILES = (Path("primary.toml"), Path("/etc/posthouse/primary.toml"))

primary_config_option = click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file  [default: ./primary.toml, then /etc/posthouse/primary.toml]",
)


def find_primary_config(given: Path | None) -> Path:
    """The file to read: the one given, else the first default that exists."""
    if given is not None:
        return given
    for candidate in PRIMARY_FILES:
        if candidate.exists():
            return candidate
    raise ConfigError([f"there is neither ./{PRIMARY_FILES[0]} nor {PRIMARY_FILES[1]}; use -c"])


@click.group()
def primary() -> None:
    """What runs beside the primary mail server."""


@primary.command()
@primary_config_option
def serve(config_file: Path | None) -> int:
    """Serve rosters and grant agreements, in the foreground.

    SIGTERM lets answers under way finish; SIGHUP reads the configuration, the
    certificate and the pairing files again.
    """
    from posthouse import node_primary

    return node_primary.serve_primary(find_primary_config(config_file))
