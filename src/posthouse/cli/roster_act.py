"""`posthouse roster fetch|accept|reset-serial`: what an operator decides about rosters."""

from __future__ import annotations

import json
from pathlib import Path

import click

from posthouse.cli.main import EX_NOTHING, config_option, find_config
from posthouse.config import load
from posthouse.errors import AddressError
from posthouse.interfaces.roster_door import RosterOrder
from posthouse.log_sink import clean
from posthouse.mail.address import normalize_domain

json_option = click.option("--json", "as_json", is_flag=True, help="JSON: domain → what was done.")


@click.command()
@click.argument("domain", default="")
@json_option
@config_option
def fetch(domain: str, as_json: bool, config_file: Path | None) -> int:
    """Ask for the roster of DOMAIN now; without DOMAIN for all."""
    return _order(config_file, as_json, "fetch", domain)


@click.command()
@click.argument("domain")
@click.argument("serial", type=click.IntRange(min=1))
@json_option
@config_option
def accept(domain: str, serial: int, as_json: bool, config_file: Path | None) -> int:
    """Put the roster SERIAL of DOMAIN, which was set aside, in force.

    It was set aside because it lost many entries, or its catch-all, or was the first
    and named nobody. Ask the primary first: whoever is not on it gets 550.
    """
    return _order(config_file, as_json, "accept", domain, serial)


@click.command()
@click.argument("domain")
@json_option
@config_option
def reset_serial(domain: str, as_json: bool, config_file: Path | None) -> int:
    """Let a lower serial of DOMAIN pass, once: after its primary was restored from a backup."""
    return _order(config_file, as_json, "reset-serial", domain)


def _order(config_file: Path | None, as_json: bool, act: str, domain: str, serial: int = 0) -> int:
    from posthouse.node_roster_desk import order_rosters

    config = load(find_config(config_file), check_files=False)
    order = RosterOrder(act=act, domain=_normalize(domain), serial=serial)  # type: ignore[arg-type]
    said = order_rosters(config, order)
    if as_json:
        click.echo(json.dumps(dict(said.words), indent=2))
    elif not said.words:
        click.echo("No domain has a roster.")
    else:
        for name, words in said.words.items():
            click.echo(f"{name}: {clean(words)}")
    return 0 if said.done and said.words else EX_NOTHING


def _normalize(domain: str) -> str:
    try:
        return normalize_domain(domain) if domain else ""
    except AddressError as error:
        raise click.UsageError(f"{domain!r} is not a domain") from error
