"""`posthouse queue`: look into the spool and act on it, with or without a running node."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from posthouse.cli.desks import Desks
from posthouse.cli.main import EX_NOTHING, config_option, inner_config_option
from posthouse.cli.queue_desks import Meant, json_option, open_desks
from posthouse.cli.queue_export import export
from posthouse.cli.queue_move import COMMANDS
from posthouse.cli.selection import is_unrestricted, parse_id, selection_options
from posthouse.cli.texts import describe_message, message_document, message_lines
from posthouse.ports_spool import Selection


@click.group()
@config_option
@click.pass_context
def queue(context: click.Context, config_file: Path | None) -> None:
    """Look into the spool and act on it.

    Messages are chosen by their IDs, by options, or both; every condition must
    hold. Works with and without a running node.
    """
    context.obj = config_file


@queue.command("list")
@selection_options
@click.option("--limit", type=click.IntRange(min=1), help="At most so many messages.")
@json_option
@inner_config_option
@click.pass_context
def list_(context: click.Context, selection: Selection, limit: int | None, as_json: bool) -> int:
    """List messages, oldest first."""
    seen = Meant()
    with open_desks(context) as desks:
        for message in desks.list_messages(selection, limit):
            seen.messages += 1
            seen.recipients += len(message.recipients)
            seen.octets += message.size_bytes
            if as_json:
                click.echo(json.dumps(message_document(message)))
            else:
                click.echo("\n".join(message_lines(message)))
    if not as_json:
        click.echo(
            seen.summary()
            if seen.messages
            else "Nothing matches."
            if not is_unrestricted(selection)
            else "The queue is empty."
        )
    return 0 if seen.messages or is_unrestricted(selection) else EX_NOTHING


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


for _command in (*COMMANDS, export):
    queue.add_command(_command)
