"""`posthouse primary`: what runs beside the primary."""

from __future__ import annotations

import json
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


@primary.command()
@primary_config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")
def status(config_file: Path | None, as_json: bool) -> int:
    """One screen: rosters, backups and what they came for, alerts.

    Works with and without a running `primary serve`.
    """
    from posthouse.cli.primary_status import format_status, read_status
    from posthouse.config_primary import load_primary

    document = read_status(load_primary(find_primary_config(config_file), check_files=False))
    click.echo(json.dumps(document, indent=2) if as_json else "\n".join(format_status(document)))
    return 0
