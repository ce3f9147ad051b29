"""Messages as .eml files: the envelope in X-Posthouse-* fields, then the stored octets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from posthouse.cli.desks import Desks
from posthouse.cli.texts import tell_utc
from posthouse.mail.queueid import format_queue_id
from posthouse.ports_spool import QueuedMessage


def format_fields(message: QueuedMessage) -> bytes:
    """The envelope as header fields, CR LF at their ends. One recipient a field."""
    client = message.client
    fields = [
        ("Id", format_queue_id(message.queue_id)),
        ("Received", tell_utc(message.received_us)),
        ("Client", f"{client.name} [{client.address}]:{client.port} helo={client.helo}"),
        ("Protocol", client.protocol),
        ("Sender", f"<{message.envelope_sender}>"),
        ("Body", message.body_type),
        ("Smtputf8", "yes" if message.smtputf8 else ""),
        ("Ret", message.ret),
        ("Envid", message.envid),
    ]
    for row in message.recipients:
        parameters = [
            f"state={row.state.name.lower()}",
            f"attempts={row.attempts}",
            *([f"notify={row.notify}"] if row.notify else []),
            *([f"orcpt={row.orcpt}"] if row.orcpt else []),
        ]
        fields.append(("Recipient", f"<{row.address}> {' '.join(parameters)}"))
        if row.reply or row.reason:
            fields.append(("Reason", row.reply or row.reason))
    return b"".join(
        f"X-Posthouse-{name}: {_one_line(value)}\r\n".encode("utf-8", "replace")
        for name, value in fields
        if value
    )


def _one_line(value: str) -> str:
    """No value of a stranger may begin a field of its own."""
    return "".join(c if c.isprintable() else "?" for c in value)


def iterate_with_fields(desks: Desks, message: QueuedMessage) -> Iterator[bytes]:
    """The exported message in pieces. Raises DeskError."""
    yield format_fields(message)
    yield from desks.read_body(message.queue_id)


def export_message(desks: Desks, message: QueuedMessage, directory: Path) -> Path:
    """Write ID.eml, mode 0600, whole and on disk, or not at all. Raises DeskError, OSError."""
    path = directory / f"{format_queue_id(message.queue_id)}.eml"
    draft = path.with_suffix(".tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            for piece in iterate_with_fields(desks, message):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    holder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(holder)
    finally:
        os.close(holder)
    return path
