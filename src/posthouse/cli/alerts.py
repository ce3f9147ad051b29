"""`posthouse alerts`: what is wrong now, and what was; with and without a running node."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from posthouse.cli.main import (
    DEFAULT_FILES,
    EX_NOTHING,
    EX_UNAVAILABLE,
    PRIMARY_FILES,
    config_option,
    find_config,
)
from posthouse.cli.texts import tell_local, tell_span
from posthouse.config import load
from posthouse.config_primary import is_primary_file, load_primary
from posthouse.config_primary_schema import PrimaryConfig
from posthouse.config_schema import Config
from posthouse.log_sink import clean
from posthouse.ports_alerts import StoredAlert

MOST_SHOWN = 1000


@click.command()
@config_option
@click.option("--all", "everything", is_flag=True, help="What is over too, the newest first.")
@click.option("--limit", type=click.IntRange(1, MOST_SHOWN), default=100, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="JSON, one document a line.")
@click.option("--test", "try_all", is_flag=True, help="Tell a test alert on every way, now.")
def alerts(
    config_file: Path | None, everything: bool, limit: int, as_json: bool, try_all: bool
) -> int:
    """What is wrong now, since when, and what to do.

    Exits 1 when something is, 0 when nothing is (with --all: always 0). With --test
    a test alert is told by mail, webhook and command, as configured; exits 69 when
    one of them fails. Beside a primary: those of `primary serve`, with -c primary.toml
    or where there is no posthouse.toml.
    """
    file = _find_file(config_file)
    config = (load_primary if is_primary_file(file) else load)(file, check_files=try_all)
    if try_all:
        return _try_all(config)
    found = read_alerts(config, everything=everything, limit=limit)
    if as_json:
        from posthouse.services.alert_text import alert_document

        for stored in found:
            click.echo(json.dumps(alert_document(stored)))
    else:
        click.echo("\n".join(format_alerts(found, everything=everything)))
    return EX_NOTHING if found and not everything else 0


def _find_file(given: Path | None) -> Path:
    if given is None and not any(path.exists() for path in DEFAULT_FILES):
        given = next((path for path in PRIMARY_FILES if path.exists()), None)
    return find_config(given)


def _try_ways(config: Config | PrimaryConfig) -> list[tuple[str, str]]:
    if isinstance(config, PrimaryConfig):
        from posthouse.node_primary_watch import try_primary_ways

        return try_primary_ways(config)
    from posthouse.node_tellers import try_ways

    return try_ways(config)


def _try_all(config: Config | PrimaryConfig) -> int:
    failed = False
    tried = _try_ways(config)
    for name, failure in tried:
        failed = failed or bool(failure)
        click.echo(f"{name}: {clean(failure) or 'told'}")
    if not tried:
        click.echo("Nobody is told: there is no contact, no webhook and no command.")
    return EX_UNAVAILABLE if failed or not tried else 0


def read_alerts(
    config: Config | PrimaryConfig, *, everything: bool, limit: int
) -> Sequence[StoredAlert]:
    """What is stored, the newest first. Raises StorageError."""
    from posthouse.node_tellers import alerts_file
    from posthouse.storage.alert_store import SqliteAlertStore

    store = SqliteAlertStore.open_to_read(alerts_file(config.data_dir))
    if store is None:
        return ()
    try:
        return store.list_alerts(everything=everything, limit=limit)
    finally:
        store.close()


def format_alerts(found: Sequence[StoredAlert], *, everything: bool) -> Iterator[str]:
    """Lines for a person."""
    if not found:
        yield "No alerts so far." if everything else "Nothing is wrong."
    for stored in found:
        alert = stored.alert
        when = f"since {tell_local(alert.since_us)}"
        if stored.over_us is not None:
            lasted = tell_span((stored.over_us - alert.since_us) / 1e6)
            when = f"from {tell_local(alert.since_us)} for {lasted}"
        yield f"{'over  ' * (stored.over_us is not None)}{alert.kind}  {when}: {clean(alert.text)}"
        if stored.over_us is None and alert.what_to_do:
            yield f"    {clean(alert.what_to_do)}"
