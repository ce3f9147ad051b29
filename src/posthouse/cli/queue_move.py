"""`posthouse queue hold|release|retry|delete|redirect`: what an operator may do to the queue."""

from __future__ import annotations

import json
from typing import Any

import click
import msgspec

from posthouse.cli.desks import Desks
from posthouse.cli.main import EX_NOTHING, EX_UNAVAILABLE, inner_config_option
from posthouse.cli.queue_desks import all_option, count, dry_run_option, json_option, open_desks
from posthouse.cli.selection import is_unrestricted, selection_options
from posthouse.ports_spool import OperatorAction, Selection, State


def _make_command(
    action: OperatorAction, past: str, text: str, default: State | None = None
) -> click.Command:
    """The command of one operator action. default: the state meant when none is given."""

    @click.command(action.value, help=text)
    @selection_options
    @all_option
    @dry_run_option
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @json_option
    @inner_config_option
    @click.pass_context
    def command(
        context: click.Context,
        selection: Selection,
        everything: bool,
        dry_run: bool,
        yes: bool,
        as_json: bool,
    ) -> int:
        _require_choice(selection, everything, action.value)
        if default is not None and selection.state is None:
            selection = msgspec.structs.replace(selection, state=default)
        with open_desks(context) as desks:
            if dry_run:
                return _show(desks, selection, action.value, past, as_json)
            if action is OperatorAction.DELETE and not yes:
                _confirm(desks, selection)
            moved = desks.act(selection, action)
        if as_json:
            click.echo(json.dumps({"action": action.value, "recipients": moved, "dry_run": False}))
        elif not moved:
            click.echo("Nothing matches.")
        else:
            click.echo(f"{moved:,} recipients {past}.")
        return 0 if moved else EX_NOTHING

    return command


def _require_choice(selection: Selection, everything: bool, action: str) -> None:
    if is_unrestricted(selection) and not everything:
        raise click.UsageError(f"choose what to {action} by IDs or options, or say --all")


def _show(desks: Desks, selection: Selection, action: str, past: str, as_json: bool) -> int:
    """What a dry run tells."""
    meant = count(desks.list_messages(selection, None))
    if as_json:
        click.echo(json.dumps({"action": action, "dry_run": True, **meant.document()}))
    elif not meant.recipients:
        click.echo("Nothing matches.")
    else:
        click.echo(f"{meant.recipients:,} recipients would be {past}.")
        click.echo("\n".join(meant.lines()))
    return 0 if meant.recipients else EX_NOTHING


def _confirm(desks: Desks, selection: Selection) -> None:
    meant = count(desks.list_messages(selection, None))
    if meant.messages:
        click.echo("\n".join(meant.lines()), err=True)
        click.confirm(
            f"Delete {meant.messages:,} messages for {meant.recipients:,} recipients for good?",
            abort=True,
            err=True,
        )


@click.command()
@click.argument("address")
@selection_options
@all_option
@dry_run_option
@json_option
@inner_config_option
@click.pass_context
def redirect(
    context: click.Context,
    address: str,
    selection: Selection,
    everything: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Send what is held or queued to ADDRESS instead, due at once.

    ADDRESS must be at a domain this node backs up: a backup is no way to send
    mail to strangers. The message stays as it is, under a new ID; a recipient
    that is being sent at this moment may reach both addresses.
    """
    _require_choice(selection, everything, "redirect")
    past = f"redirected to {address}"
    with open_desks(context) as desks:
        if dry_run:
            return _show(desks, selection, "redirect", past, as_json)
        done = desks.redirect(selection, address)
    if as_json:
        told: dict[str, Any] = {"action": "redirect", "address": address, "dry_run": False}
        click.echo(json.dumps({**told, "recipients": done.recipients, "failed": done.failed}))
    elif not done.recipients and not done.failed:
        click.echo("Nothing matches.")
    else:
        click.echo(f"{done.recipients:,} recipients {past}.")
    if done.failed:
        click.echo(f"{done.failed:,} recipients stay on hold: damaged; see the log.", err=True)
        return EX_UNAVAILABLE
    return 0 if done.recipients else EX_NOTHING


hold = _make_command(
    OperatorAction.HOLD,
    "put on hold",
    "Put recipients on hold: nothing is tried until they are released.",
    State.QUEUED,
)
release = _make_command(
    OperatorAction.RELEASE,
    "released",
    "Take recipients off hold: they are due at once and keep_for starts again.",
    State.HELD,
)
retry = _make_command(
    OperatorAction.RETRY,
    "due now",
    "Make queued recipients due at once.",
    State.QUEUED,
)
delete = _make_command(OperatorAction.DELETE, "deleted", "Delete recipients for good. Asks first.")

COMMANDS: tuple[click.Command, ...] = (hold, release, retry, delete, redirect)
