"""`posthouse roster build`: read the sources and make rosters, now."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Final

import click
import msgspec

from posthouse import observe
from posthouse.cli.main import (
    EX_NOTHING,
    EX_UNAVAILABLE,
    find_primary_config,
    primary_config_option,
)
from posthouse.cli.roster_keygen import become_owner
from posthouse.config_primary import load_primary
from posthouse.config_primary_schema import PrimaryConfig, PublishedDomainConfig
from posthouse.errors import ConfigError, PosthouseError, PublishRefused
from posthouse.node_publishing import collect_keys, make_order, open_maker
from posthouse.ports_publish import BuildReport

_NO_KEY: Final = (
    "{file}: {domain}: there is no key to make it with; pair a backup (posthouse pair offer), "
    "or make one: posthouse roster keygen"
)


@click.command()
@primary_config_option
@click.option("--domain", "wanted", multiple=True, help="These domains only  [default: all]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Copy the roster to a file too: for one domain with one key.",
)
@click.option("--accept-loss", is_flag=True, help="Publish although many entries are gone.")
@click.option("--new-salt", is_flag=True, help="Fresh salt and decoys; every digest anew.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")
def build(
    config_file: Path | None,
    wanted: tuple[str, ...],
    output: Path | None,
    accept_loss: bool,
    new_salt: bool,
    as_json: bool,
) -> int:
    """Read all sources and put what has changed in force, for every backup.

    A running `posthouse primary serve` serves it at once. Exits 0 when all is well,
    1 when a roster is held back (see --accept-loss), 69 when a source fails.
    """
    config = load_primary(find_primary_config(config_file), check_files=False)
    domains = _select(config, wanted)
    if output is not None:
        output = output.absolute()
    become_owner(config)
    observe.configure(to="stderr", tag="posthouse")  # slow digests tell how far they are
    maker = open_maker(config)
    keys = collect_keys(config)
    reports: list[BuildReport] = []
    failures: list[tuple[str, PosthouseError]] = []
    for domain in domains:
        if not keys[domain.name]:
            raise ConfigError([_NO_KEY.format(file=config.file, domain=domain.name)])
        try:
            order = make_order(domain, keys[domain.name])
            reports += maker.make(order, accept_loss=accept_loss, new_salt=new_salt)
        except PosthouseError as error:
            failures.append((domain.name, error))
    if output is not None and not failures:
        _copy(reports, output)
    _tell(reports, failures, as_json)
    if not failures:
        return 0
    held_back = all(isinstance(error, PublishRefused) for _, error in failures)
    return EX_NOTHING if held_back else EX_UNAVAILABLE


def _select(config: PrimaryConfig, wanted: tuple[str, ...]) -> list[PublishedDomainConfig]:
    known = {domain.name: domain for domain in config.domains}
    unknown = [name for name in wanted if name.lower() not in known]
    if unknown:
        raise ConfigError([f"{config.file}: has no [[domain]] {', '.join(unknown)}"])
    return [known[name.lower()] for name in wanted] if wanted else list(config.domains)


def _copy(reports: list[BuildReport], output: Path) -> None:
    if len(reports) != 1:
        told = ", ".join(f"{report.domain} for key {report.key_id}" for report in reports)
        raise click.UsageError(f"--output is for one roster, and there are {told}")
    if str(output) == "/dev/stdout":
        with open(reports[0].path, "rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        return
    shutil.copyfile(reports[0].path, output)


def _tell(
    reports: list[BuildReport], failures: list[tuple[str, PosthouseError]], as_json: bool
) -> None:
    if as_json:
        document = {
            "rosters": msgspec.to_builtins(reports),
            "failures": [{"domain": name, "what": error.detail} for name, error in failures],
        }
        click.echo(json.dumps(document, indent=2))
        return
    for report in reports:
        click.echo("\n".join(tell_report(report)))
    for name, error in failures:
        remedy = "; if that is meant: --accept-loss" if isinstance(error, PublishRefused) else ""
        what = error.detail.removeprefix(f"{name}: ")
        click.echo(f"{name}: not made: {what}{remedy}", err=True)


def tell_report(report: BuildReport) -> list[str]:
    """What was made, in a line or two."""
    decoys = f", {report.decoys:,} of them decoys" if report.decoys else ""
    lines = [
        f"{report.domain}  serial {report.serial}, key {report.key_id}: "
        f"{report.count:,} entries{decoys}"
        + (f", {report.rules} rules" if report.rules else "")
        + (", catch-all" if report.catch_all else "")
    ]
    if not report.published:
        lines[0] += "; unchanged"
    elif report.added >= 0:
        lines[0] += f"; {report.added:,} in, {report.removed:,} out"
    if report.skipped:
        lines.append(f"  {report.skipped:,} entries of the sources are for other domains")
    lines += [f"  warning: {warning}" for warning in report.warnings]
    lines.append(f"  {report.path}")
    return lines
