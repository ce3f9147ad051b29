"""`posthouse check`: report every mistake in the configuration."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import click

from posthouse.cli.main import EX_CONFIG, config_option, find_config
from posthouse.config import load
from posthouse.config_pairs import load_backup_pairing
from posthouse.config_primary import is_primary_file, load_primary
from posthouse.config_recipients import RosterOrigin
from posthouse.config_schema import Config, format_reference
from posthouse.config_schema_domain import DomainConfig
from posthouse.config_values import PULL
from posthouse.domain.source_kinds import describe_source
from posthouse.errors import ConfigError, RosterRefused, StorageError


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")
@click.option("--keys", is_flag=True, help="Show every key there is, with its default, and stop.")
def check(config_file: Path | None, as_json: bool, keys: bool) -> int:
    """Read the configuration and the recipient lists; report every mistake.

    Exits 0 when the node would start with them, 78 when not. Changes nothing
    and needs no running node. A file with a `party` is read as a primary's.
    """
    if keys:
        click.echo("\n".join(format_reference()))
        return 0
    file = find_config(config_file)
    if is_primary_file(file):
        return _check_primary(file, as_json)
    config, counts, mistakes = read_all(file)
    mistakes = list(dict.fromkeys(mistakes))  # a list may serve several domains
    warnings = list(config.warnings) if config is not None else []
    if as_json:
        document = {
            "ok": not mistakes,
            "mistakes": mistakes,
            "warnings": warnings,
            "domains": {name: {"recipients": told} for name, told in counts.items()},
        }
        click.echo(json.dumps(document, indent=2))
    else:
        for line in mistakes:
            click.echo(line, err=True)
        for line in warnings:
            click.echo(f"{line} (warning)", err=True)
        if config is not None and not mistakes:
            _summarize(config, counts)
    return EX_CONFIG if mistakes else 0


def read_all(config_file: Path | None) -> tuple[Config | None, dict[str, str], list[str]]:
    """Read the file and every list it names: configuration, sizes by domain, mistakes."""
    try:
        config = load(find_config(config_file))
    except ConfigError as error:
        return None, {}, [*error.mistakes, *_check_lists(error.lists)]
    counts: dict[str, str] = {}
    mistakes: list[str] = []
    for domain in config.domains:
        try:
            counts[domain.name] = _count_recipients(config, domain)
        except ConfigError as error:
            mistakes += error.mistakes
    return config, counts, mistakes


def _check_lists(lists: Sequence[tuple[str, str]]) -> list[str]:
    """The mistakes of lists that a broken configuration names."""
    from posthouse.storage.recipient_lists import check_recipients

    mistakes: list[str] = []
    for domain, source in lists:
        try:
            check_recipients(domain, source)
        except ConfigError as error:
            mistakes += error.mistakes
    return mistakes


def _check_primary(file: Path, as_json: bool) -> int:
    warnings: tuple[str, ...] = ()
    mistakes: list[str] = []
    told: list[str] = []
    try:
        config = load_primary(file)
    except ConfigError as error:
        mistakes = error.mistakes
    else:
        warnings = config.warnings
        listen = ", ".join(map(str, config.https.listen))
        told.append(f"{config.file} is fine.")
        told.append(f"{config.party} serves {config.base_url} on {listen}; keeps {config.data_dir}")
        told += [
            f"  {domain.name}  from {', '.join(map(describe_source, domain.sources)) or 'rules'}"
            for domain in config.domains
        ]
        told += [
            f"  {load_backup_pairing(one.pairing).party}  backs up {', '.join(one.domains)}"
            for one in config.backups
        ]
    if as_json:
        document = {"ok": not mistakes, "mistakes": mistakes, "warnings": list(warnings)}
        click.echo(json.dumps(document, indent=2))
        return EX_CONFIG if mistakes else 0
    for line in mistakes:
        click.echo(line, err=True)
    for line in warnings:
        click.echo(f"{line} (warning)", err=True)
    if told:
        click.echo("\n".join(told))
    return EX_CONFIG if mistakes else 0


def _count_recipients(config: Config, domain: DomainConfig) -> str:
    if domain.roster is not None:
        return _check_roster(config, domain.name, domain.roster)
    if domain.recipients is None:
        return "no list"
    from posthouse.storage.recipient_lists import check_recipients

    reading = check_recipients(domain.name, str(domain.recipients))
    told = f"{reading.entries:,} recipients"
    if reading.catch_all:
        told += ", catch-all"
    if reading.skipped:
        told += f", {reading.skipped:,} lines for other domains"
    return told


def _check_roster(config: Config, domain: str, origin: RosterOrigin) -> str:
    """A file is read to its last octet, as a node would; others are asked when it runs."""
    if origin.kind != "file":
        return f"roster from {origin.place}"
    from posthouse.node_rosters import find_pairings, make_keys
    from posthouse.storage.roster_intake import check_whole

    keys = make_keys(domain, find_pairings(config)[domain])
    try:
        checked = check_whole(Path(origin.place), keys, None, now_s=int(time.time()))
    except (RosterRefused, StorageError) as error:
        raise ConfigError([f"{origin.place}: no roster for {domain}: {error.detail}"]) from error
    return f"{checked.known.count:,} entries, roster {checked.known.serial}"


def _summarize(config: Config, counts: dict[str, str]) -> None:
    listen = ", ".join(map(str, config.smtp.listen))
    tls = "STARTTLS" if config.smtp.certificate is not None else "no STARTTLS (no certificate)"
    click.echo(f"{config.file} is fine.")
    click.echo(f"{config.hostname} listens on {listen}, {tls}; keeps mail in {config.data_dir}")
    width = max(len(domain.name) for domain in config.domains)
    for domain in config.domains:
        hops = "to " + (", ".join(map(str, domain.next_hop)) or "MX in DNS")
        if domain.next_hop == PULL:
            (user,) = (pull.user for pull in config.pulls if domain.name in pull.domains)
            hops = f"fetched by {user} (ATRN)"
        click.echo(f"  {domain.name:<{width}}  {hops}; {counts.get(domain.name, '')}")
