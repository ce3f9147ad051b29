"""`posthouse queue export`: messages as .eml files, an mbox, or a Maildir."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import click

from posthouse.cli.desks import DeskError, Desks
from posthouse.cli.export import export_message, iterate_with_fields
from posthouse.cli.export_mail import Maildir, Mbox, format_mbox
from posthouse.cli.main import EX_NOTHING, EX_UNAVAILABLE, inner_config_option
from posthouse.cli.queue_desks import all_option, count, dry_run_option, json_option, open_desks
from posthouse.cli.selection import is_unrestricted, selection_options
from posthouse.mail.queueid import format_queue_id
from posthouse.ports_spool import QueuedMessage, Selection

FORMATS: Final = ("eml", "mbox", "maildir")


@click.command()
@selection_options
@all_option
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="eml",
    show_default=True,
    help="As what.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PATH",
    help="eml: directory for ID.eml files; mbox: file, which must not exist; maildir: directory. "
    '"-": standard output (mbox, or a single .eml).',
)
@dry_run_option
@json_option
@inner_config_option
@click.pass_context
def export(
    context: click.Context,
    selection: Selection,
    everything: bool,
    form: str,
    output: Path,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Write messages to files; the queue stays as it is.

    The envelope stands in X-Posthouse-* fields on top. Below them not one octet
    is changed in .eml files; in an mbox (mboxrd: lines that begin with From get
    one more ">") and a Maildir lines end with LF, as mail programs expect there.
    Files are on disk when the command ends with 0.
    """
    if is_unrestricted(selection) and not everything:
        raise click.UsageError("choose what to export by IDs or options, or say --all")
    if form == "maildir" and str(output) == "-":
        raise click.UsageError("a Maildir is a directory; name it with -o")
    with open_desks(context) as desks:
        if dry_run:
            meant = count(desks.list_messages(selection, None))
            if as_json:
                click.echo(json.dumps({"action": "export", "dry_run": True, **meant.document()}))
            else:
                click.echo(f"{meant.summary()} would be exported to {output}.")
                click.echo("\n".join(meant.lines()))
            return 0 if meant.messages else EX_NOTHING
        written, failed = _export(desks, selection, form, output, as_json)
    if failed:
        return EX_UNAVAILABLE
    if not written:
        click.echo("Nothing matches.", err=True)
        return EX_NOTHING
    return 0


def _export(
    desks: Desks, selection: Selection, form: str, output: Path, as_json: bool
) -> tuple[int, int]:
    """How many were written and how many could not be. Raises DeskError, OSError."""
    failed = written = 0
    writer = _open_writer(desks, form, output)
    try:
        for message in _chosen(desks, selection, form, output):
            name = format_queue_id(message.queue_id)
            try:
                where = writer.write(message)
            except DeskError as failure:
                if failure.kind not in ("gone", "damaged"):
                    raise
                failed += 1
                click.echo(f"{name}: {failure.detail}", err=True)
                continue
            written += 1
            if str(output) != "-":
                click.echo(json.dumps({"id": name, "file": where}) if as_json else where)
    finally:
        writer.close()
    return written, failed


class _EmlWriter:
    def __init__(self, desks: Desks, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._desks = desks
        self._directory = directory

    def write(self, message: QueuedMessage) -> str:
        return str(export_message(self._desks, message, self._directory))

    def close(self) -> None:
        """Each file is on disk already."""


class _StreamWriter:
    """To standard output."""

    def __init__(self, desks: Desks, form: str, stream: BinaryIO) -> None:
        self._desks = desks
        self._form = form
        self._stream = stream

    def write(self, message: QueuedMessage) -> str:
        pieces: Iterable[bytes] = iterate_with_fields(self._desks, message)
        if self._form == "mbox":
            pieces = format_mbox(message, pieces)
        for piece in pieces:
            self._stream.write(piece)
        return "-"

    def close(self) -> None:
        self._stream.flush()


class _StoreWriter:
    """To an mbox or a Maildir."""

    def __init__(self, desks: Desks, store: Mbox | Maildir) -> None:
        self._desks = desks
        self._store = store

    def write(self, message: QueuedMessage) -> str:
        return str(self._store.write(message, iterate_with_fields(self._desks, message)))

    def close(self) -> None:
        self._store.close()


def _open_writer(
    desks: Desks, form: str, output: Path
) -> _EmlWriter | _StreamWriter | _StoreWriter:
    if str(output) == "-":
        return _StreamWriter(desks, form, sys.stdout.buffer)
    if form == "eml":
        return _EmlWriter(desks, output)
    try:
        return _StoreWriter(desks, Mbox(output) if form == "mbox" else Maildir(output))
    except FileExistsError:
        raise click.UsageError(f"{output} is there already; name another") from None


def _chosen(desks: Desks, selection: Selection, form: str, output: Path) -> Iterator[QueuedMessage]:
    if str(output) != "-" or form == "mbox":
        return desks.list_messages(selection, None)
    found = list(desks.list_messages(selection, 2))
    if len(found) > 1:
        raise click.UsageError("standard output takes one .eml; choose one, or -o DIR")
    return iter(found)
