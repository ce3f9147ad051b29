"""`posthouse primary`: what runs beside the primary."""

from __future__ import annotations

from pathlib import Path

import click

from posthouse.cli.main import find_primary_config, primary_config_option


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
