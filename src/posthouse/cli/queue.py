"""`posthouse queue`: look into the spool and act on it, with or without a running node."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from posthouse.cli.desks import DeskError, Desks
from posthouse.cli.export import export_message, iterate_with_fields
from posthouse.cli.main import (
    EX_NOTHING,
    EX_UNAVAILABLE,
    config_option,
    find_config,
    inner_config_option,
)
from posthouse.cli.selection import is_unrestricted, parse_id, selection_options
from posthouse.cli.texts import describe_message, message_document, message_lines, tell_size
from posthouse.config import load
from posthouse.mail.queueid import format_queue_id
from posthouse.ports import OperatorAction, QueuedMessage, Selection, State

json_option = click.option("--json", "as_json", is_flag=True, help="JSON, one document a line.")


@click.group()
@config_option
@click.pass_context
def queue(context: click.Context, config_file: Path | None) -> None:
    """Look into the spool and act on it.

    Messages are chosen by their IDs, by options, or both; every condition must
    hold. Works with and without a running node.
    """
    context.obj = config_file


@contextlib.contextmanager
def open_desks(context: click.Context) -> Iterator[Desks]:
    """Connect to the node, or open its shards when none runs."""
    from posthouse.node_desks import connect_desks

    config = load(find_config(context.obj), check_files=False)
    with connect_desks(config) as (connections, live), Desks(connections, live=live) as desks:
        yield desks


@queue.command("list")
@selection_options
@click.option("--limit", type=click.IntRange(min=1), help="At most so many messages.")
@json_option
@inner_config_option
@click.pass_context
def list_(context: click.Context, selection: Selection, limit: int | None, as_json: bool) -> int:
    """List messages, oldest first."""
    messages = recipients = octets = 0
    with open_desks(context) as desks:
        for message in desks.list_messages(selection, limit):
            messages += 1
            recipients += len(message.recipients)
            octets += message.size_bytes
            if as_json:
                click.echo(json.dumps(message_document(message)))
            else:
                click.echo("\n".join(message_lines(message)))
    if not as_json:
        click.echo(
            f"{messages:,} messages for {recipients:,} recipients, {tell_size(octets)}"
            if messages
            else "Nothing matches."
            if not is_unrestricted(selection)
            else "The queue is empty."
        )
    return 0 if messages or is_unrestricted(selection) else EX_NOTHING


@queue.command()
@click.argument("queue_id", metavar="ID")
@click.option("--raw", is_flag=True, help="The stored octets and nothing else.")
@json_option
@inner_config_option
@click.pass_context
def show(context: click.Context, queue_id: str, raw: bool, as_json: bool) -> int:
    """Show one message: its envelope, its recipients and its header section."""
    wanted = parse_id(queue_id)
    with open_desks(context) as desks:
        message = next(desks.list_messages(Selection(queue_ids=(wanted,)), 1), None)
        if message is None:
            click.echo(f"There is no message {queue_id}.", err=True)
            return EX_NOTHING
        if raw:
            for piece in desks.read_body(wanted):
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return 0
        headers = _read_headers(desks, wanted)
    if as_json:
        click.echo(json.dumps({**message_document(message), "headers": headers}))
    else:
        click.echo("\n".join([*describe_message(message), "", headers]))
    return 0


def _read_headers(desks: Desks, queue_id: int) -> str:
    """The header section, at most 64 KiB of it."""
    start = b""
    for piece in desks.read_body(queue_id):
        if len(start) < 65536 and b"\r\n\r\n" not in start:
            start += piece
    section = start.split(b"\r\n\r\n", 1)[0][:65536]
    return section.decode("utf-8", "backslashreplace").replace("\r\n", "\n")


def _acting(
    action: OperatorAction, past: str, text: str, default: State | None = None
) -> Callable[..., Any]:
    """Make the command of one operator action."""

    @queue.command(action.value, help=text)
    @selection_options
    @click.option("--all", "everything", is_flag=True, help="The whole queue is meant.")
    @click.option("--dry-run", is_flag=True, help="Only count what is meant.")
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
        if is_unrestricted(selection) and not everything:
            raise click.UsageError(f"choose what to {action.value} by IDs or options, or say --all")
        if default is not None and selection.state is None:
            selection = msgspec.structs.replace(selection, state=default)
        with open_desks(context) as desks:
            if dry_run:
                count = sum(len(m.recipients) for m in desks.list_messages(selection, None))
            else:
                if action is OperatorAction.DELETE and not yes:
                    _confirm(desks, selection)
                count = desks.act(selection, action)
        if as_json:
            click.echo(
                json.dumps({"action": action.value, "recipients": count, "dry_run": dry_run})
            )
        elif not count:
            click.echo("Nothing matches.")
        else:
            click.echo(f"{count:,} recipients {'would be ' * dry_run}{past}.")
        return 0 if count else EX_NOTHING

    return command


def _confirm(desks: Desks, selection: Selection) -> None:
    messages = recipients = 0
    for message in desks.list_messages(selection, None):
        messages += 1
        recipients += len(message.recipients)
    if messages:
        click.confirm(
            f"Delete {messages:,} messages for {recipients:,} recipients for good?",
            abort=True,
            err=True,
        )


_acting(
    OperatorAction.HOLD,
    "put on hold",
    "Put recipients on hold: nothing is tried until they are released.",
    State.QUEUED,
)
_acting(
    OperatorAction.RELEASE,
    "released",
    "Take recipients off hold: they are due at once and keep_for starts again.",
    State.HELD,
)
_acting(
    OperatorAction.RETRY,
    "due now",
    "Make queued recipients due at once.",
    State.QUEUED,
)
_acting(OperatorAction.DELETE, "deleted", "Delete recipients for good. Asks first.")


@queue.command()
@selection_options
@click.option("--all", "everything", is_flag=True, help="The whole queue is meant.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help='Directory for ID.eml files; "-" writes a single message to standard output.',
)
@json_option
@inner_config_option
@click.pass_context
def export(
    context: click.Context, selection: Selection, everything: bool, output: Path, as_json: bool
) -> int:
    """Write messages as .eml files; the queue stays as it is.

    The envelope stands in X-Posthouse-* fields on top; below them not one
    octet is changed. Files are on disk when the command ends with 0.
    """
    if is_unrestricted(selection) and not everything:
        raise click.UsageError("choose what to export by IDs or options, or say --all")
    failed = written = 0
    with open_desks(context) as desks:
        for message in _chosen(desks, selection, output):
            name = format_queue_id(message.queue_id)
            try:
                if str(output) == "-":
                    for piece in iterate_with_fields(desks, message):
                        sys.stdout.buffer.write(piece)
                    sys.stdout.buffer.flush()
                else:
                    path = export_message(desks, message, output)
                    told = json.dumps({"id": name, "file": str(path)}) if as_json else str(path)
                    click.echo(told)
                written += 1
            except DeskError as failure:
                if failure.kind not in ("gone", "damaged"):
                    raise
                failed += 1
                click.echo(f"{name}: {failure.detail}", err=True)
    if failed:
        return EX_UNAVAILABLE
    if not written:
        click.echo("Nothing matches.", err=True)
        return EX_NOTHING
    return 0


def _chosen(desks: Desks, selection: Selection, output: Path) -> Iterator[QueuedMessage]:
    if str(output) != "-":
        output.mkdir(mode=0o700, parents=True, exist_ok=True)
        return desks.list_messages(selection, None)
    found = list(desks.list_messages(selection, 2))
    if len(found) > 1:
        raise click.UsageError("standard output takes one message; choose one, or -o DIR")
    return iter(found)
