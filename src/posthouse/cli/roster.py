"""`posthouse roster`: rosters on both sides. Each command is imported when it is used."""

from __future__ import annotations

from typing import Final

import click

from posthouse.cli.main import LazyCommands

# name → (module, attribute, one line for --help)
ROSTER_COMMANDS: Final = {
    "keygen": ("posthouse.cli.roster_keygen", "keygen", "Make the keys of a primary."),
    "build": ("posthouse.cli.roster_build", "build", "Make rosters from their sources."),
}


@click.command(cls=LazyCommands, commands_table=ROSTER_COMMANDS)
def roster() -> None:
    """Make, look into, try and confirm rosters."""
