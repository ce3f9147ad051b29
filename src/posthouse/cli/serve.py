"""`posthouse serve`: run a node in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from posthouse.cli.main import config_option, find_config


@click.command()
@config_option
def serve(config_file: Path | None) -> int:
    """Run a node in the foreground.

    SIGTERM lets running sessions finish, SIGHUP reads the configuration,
    certificates and lists again without dropping a session.
    """
    from posthouse import node

    return node.serve(find_config(config_file))
