"""What all `posthouse queue` commands share: the way to the desks, --json, what is shown first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import click
import msgspec

from posthouse.cli.desks import Desks
from posthouse.cli.main import find_config
from posthouse.cli.texts import message_document, message_lines, tell_size
from posthouse.config import load
from posthouse.ports_spool import QueuedMessage

FIRST_SHOWN: Final = 10

json_option = click.option("--json", "as_json", is_flag=True, help="JSON, one document a line.")
all_option = click.option("--all", "everything", is_flag=True, help="The whole queue is meant.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Only show what would be done: how much, and the first rows."
)


@contextlib.contextmanager
def open_desks(context: click.Context) -> Iterator[Desks]:
    """Connect to the node, or open its shards when none runs."""
    from posthouse.node_desks import connect_desks

    config = load(find_config(context.obj), check_files=False)
    with connect_desks(config) as (connections, live), Desks(connections, live=live) as desks:
        yield desks


class Meant(msgspec.Struct, kw_only=True):
    """What a selection means now: counts, and the first messages."""

    messages: int = 0
    recipients: int = 0
    octets: int = 0
    first: list[QueuedMessage] = []

    def lines(self) -> Iterator[str]:
        """The first messages for a person."""
        for message in self.first:
            yield from message_lines(message)
        if self.messages > len(self.first):
            yield f"… and {self.messages - len(self.first):,} more messages"

    def summary(self) -> str:
        """E.g. "3 messages for 4 recipients, 12 kB"."""
        return (
            f"{self.messages:,} messages for {self.recipients:,} recipients, "
            f"{tell_size(self.octets)}"
        )

    def document(self) -> dict[str, Any]:
        """For --json."""
        return {
            "messages": self.messages,
            "recipients": self.recipients,
            "size": self.octets,
            "first": [message_document(message) for message in self.first],
        }


def count(messages: Iterable[QueuedMessage]) -> Meant:
    """Count what is listed and keep the first rows."""
    meant = Meant()
    for message in messages:
        meant.messages += 1
        meant.recipients += len(message.recipients)
        meant.octets += message.size_bytes
        if len(meant.first) < FIRST_SHOWN:
            meant.first.append(message)
    return meant
