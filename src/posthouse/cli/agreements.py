"""`posthouse agreements`: look into the books, on either side, and act on them.

The configuration says which side: primary.toml (what was granted), posthouse.toml
(what this backup holds, and with --granted what it grants to backups behind it).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from posthouse.cli.agreement_acts import GrantedActs, HeldActs, Report
from posthouse.cli.agreement_texts import (
    describe_entry,
    describe_grant,
    entry_document,
    entry_line,
    grant_document,
    grant_line,
    holder_document,
    holder_line,
)
from posthouse.cli.main import (
    EX_NOTHING,
    config_option,
    find_either_config,
    inner_config_option,
)
from posthouse.domain.agreement import State
from posthouse.ports_agreements import AgreementQuery, GrantState

_PAGE: Final = 500
_STATES: Final = sorted({one.name.lower() for one in (*State, *GrantState)})

T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="JSON, one document a line.")
granted_option = click.option(
    "--granted", is_flag=True, help="On a backup: what it grants to backups behind it."
)
backup_option = click.option(
    "--backup", metavar="PARTY", default="", help="This backup only  [default: all of them]"
)


@click.group()
@config_option
@click.pass_context
def agreements(context: click.Context, config_file: Path | None) -> None:
    """Look into the books of agreements and act on them.

    With primary.toml: what was granted to which backup. With posthouse.toml: what
    this backup holds. Works with and without a running process.
    """
    context.obj = config_file


@asynccontextmanager
async def _open(context: click.Context, granted: bool) -> AsyncIterator[HeldActs | GrantedActs]:
    """The book that is meant."""
    from posthouse.config import load
    from posthouse.config_primary import is_primary_file, load_primary
    from posthouse.node_agreements_office import open_backup_office, open_primary_office

    file = find_either_config(context.obj)
    if is_primary_file(file):
        async with open_primary_office(load_primary(file, check_files=False)) as office:
            yield GrantedActs(office)
        return
    async with open_backup_office(load(file, check_files=False)) as (held, grants):
        yield GrantedActs(grants) if granted else HeldActs(held, grants.callbacks)


def _run(
    context: click.Context,
    granted: bool,
    work: Callable[[HeldActs | GrantedActs], Awaitable[T]],
) -> T:
    async def run() -> T:
        async with _open(context, granted) as acts:
            return await work(acts)

    return asyncio.run(run())


# --------------------------------------------------------------------------- look


@agreements.command("list")
@click.option("--domain", default="", help="Of this domain only.")
@click.option("--state", type=click.Choice(_STATES), help="In this state only.")
@granted_option
@json_option
@inner_config_option
@click.pass_context
def list_(
    context: click.Context, domain: str, state: str | None, granted: bool, as_json: bool
) -> int:
    """List agreements, by address or agreement-ID."""

    async def work(acts: HeldActs | GrantedActs) -> int:
        count = 0
        async for line, document in _pages(acts, domain, state):
            click.echo(json.dumps(document) if as_json else line)
            count += 1
        return count

    count = _run(context, granted, work)
    if not as_json:
        click.echo(f"{count:,} agreements" if count else "There is none.")
    return 0 if count or not (domain or state) else EX_NOTHING


async def _pages(
    acts: HeldActs | GrantedActs, domain: str, state: str | None
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    after = ""
    if isinstance(acts, GrantedActs):
        wanted = _state(GrantState, state)
        while page := await acts.office.book.list(
            domain=domain, state=wanted, after=after, limit=_PAGE
        ):
            for grant in page:
                yield grant_line(grant), grant_document(grant)
            after = page[-1].agreement_id
        return
    query = AgreementQuery(domain=domain, state=_state(State, state))
    while entries := await acts.office.book.list(query, after=after, limit=_PAGE):
        for entry in entries:
            yield entry_line(entry), entry_document(entry)
        after = entries[-1].canonical


def _state(kind: Any, name: str | None) -> Any:
    if name is None:
        return None
    if name.upper() not in kind.__members__:
        there = ", ".join(one.name.lower() for one in kind)
        raise click.UsageError(f"no agreement here is ever {name}; there are: {there}")
    return kind[name.upper()]


@agreements.command()
@click.argument("address", metavar="ADDRESS|ID")
@granted_option
@json_option
@inner_config_option
@click.pass_context
def show(context: click.Context, address: str, granted: bool, as_json: bool) -> int:
    """Show everything about an agreement but its secrets."""

    async def work(acts: HeldActs | GrantedActs) -> list[tuple[list[str], dict[str, Any]]]:
        if isinstance(acts, GrantedActs):
            grants = await acts.office.find(address)
            return [(list(describe_grant(one)), grant_document(one)) for one in grants]
        entry = await acts.office.find(address)
        return [] if entry is None else [(list(describe_entry(entry)), entry_document(entry))]

    found = _run(context, granted, work)
    for number, (lines, document) in enumerate(found):
        if as_json:
            click.echo(json.dumps(document))
        else:
            click.echo("\n".join([*([""] if number else []), *lines]))
    if not found:
        click.echo(f"There is no agreement for {address}.", err=True)
    return 0 if found else EX_NOTHING


@agreements.command()
@click.argument("address")
@granted_option
@json_option
@inner_config_option
@click.pass_context
def servers(context: click.Context, address: str, granted: bool, as_json: bool) -> int:
    """Ask every backup, and those behind them, whether they store an address."""
    holders = _run(context, granted, lambda acts: acts.servers(address))
    for holder in holders:
        click.echo(json.dumps(holder_document(holder)) if as_json else holder_line(holder))
    if not holders and not as_json:
        click.echo(f"No backup stores {address}.")
    return 0 if holders else EX_NOTHING


# --------------------------------------------------------------------------- act


def _tell(reports: Sequence[Report], address: str, as_json: bool) -> int:
    """Say what became of each; the worst of them is the exit code."""
    for report in reports:
        if as_json:
            click.echo(json.dumps(report.document()))
        else:
            click.echo(f"{report.subject}: {report.text}", err=report.code != 0)
    if not reports and not as_json:
        click.echo(f"There is no agreement for {address}.", err=True)
    return max((report.code for report in reports), default=EX_NOTHING)


def _acting(
    name: str, text: str, act: Callable[[HeldActs | GrantedActs, str, str], Awaitable[list[Report]]]
) -> None:
    @agreements.command(name, help=text)
    @click.argument("address", metavar="ADDRESS|ID")
    @backup_option
    @granted_option
    @json_option
    @inner_config_option
    @click.pass_context
    def command(
        context: click.Context, address: str, backup: str, granted: bool, as_json: bool
    ) -> int:
        reports = _run(context, granted, lambda acts: act(acts, address, backup))
        return _tell(reports, address, as_json)


_acting(
    "block",
    "Have backups answer 551 for an address, where the policy of its domain allows it.",
    lambda acts, address, backup: acts.block(address, True, backup),
)
_acting(
    "unblock",
    "Have backups take mail for an address again.",
    lambda acts, address, backup: acts.block(address, False, backup),
)
_acting(
    "end",
    "End an agreement whose mailbox is gone. On a backup: ask the granter to, which says no "
    "while the mailbox exists.",
    lambda acts, address, backup: acts.end(address, backup),
)
_acting(
    "reset",
    "On the granter's side: void the password of an agreement; the backup sets a new one.",
    lambda acts, address, backup: acts.reset(address, backup),
)


def _deciding(name: str, text: str, *, grant: bool) -> None:
    @agreements.command(name, help=text)
    @click.argument("addresses", metavar="[ADDRESS|ID]...", nargs=-1)
    @click.option("--all", "everything", is_flag=True, help="Every pending one.")
    @click.option("--domain", default="", help="With --all: of this domain only.")
    @granted_option
    @json_option
    @inner_config_option
    @click.pass_context
    def command(
        context: click.Context,
        addresses: tuple[str, ...],
        everything: bool,
        domain: str,
        granted: bool,  # noqa: ARG001 (understood, and the default here)
        as_json: bool,
    ) -> int:
        if bool(addresses) == everything:
            raise click.UsageError("name addresses or agreement-IDs, or say --all")

        async def work(acts: HeldActs | GrantedActs) -> list[Report]:
            assert isinstance(acts, GrantedActs)
            return await acts.decide(addresses, domain, grant=grant)

        reports = _run(context, True, work)
        if everything and not reports and not as_json:
            click.echo("Nothing is pending.")
            return 0
        return _tell(reports, ", ".join(addresses), as_json)


_deciding("grant", "Say yes to pending agreements: the backup completes them.", grant=True)
_deciding("refuse", "Say no to pending agreements: the backup asks again in a week.", grant=False)
