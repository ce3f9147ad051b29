"""`posthouse roster`: rosters on both sides. Each command is imported when it is used."""

from __future__ import annotations

from typing import Final

import click

from posthouse.cli.main import LazyCommands

# name → (module, attribute, one line for --help)
ROSTER_COMMANDS: Final = {
    "keygen": ("posthouse.cli.roster_keygen", "keygen", "Make the keys of a primary."),
    "build": ("posthouse.cli.roster_build", "build", "Make rosters from their sources."),
    "inspect": ("posthouse.cli.roster_look", "inspect", "Look into a roster file."),
    "test": ("posthouse.cli.roster_look", "try_address", "Ask a roster about an address."),
    "fetch": ("posthouse.cli.roster_act", "fetch", "Ask for rosters now."),
    "accept": ("posthouse.cli.roster_act", "accept", "Put what was set aside in force."),
    "reset-serial": ("posthouse.cli.roster_act", "reset_serial", "Let a lower serial pass."),
}


@click.command(cls=LazyCommands, commands_table=ROSTER_COMMANDS)
def roster() -> None:
    """Make, look into, try and confirm rosters."""
