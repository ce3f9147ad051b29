"""The options by which queue commands choose messages, and how they become a `Selection`."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from datetime import datetime
from datetime import time as _time
from typing import Any

import click

from posthouse.config_values import Wrong, parse_duration, read_domain
from posthouse.mail.queueid import parse_queue_id
from posthouse.ports_spool import Selection, State

_STATES = {"queued": State.QUEUED, "held": State.HELD}


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the selection options; it receives one `selection`."""

    @functools.wraps(command)
    def with_selection(
        *args: Any,
        queue_ids: tuple[str, ...],
        domain: str,
        recipient: str,
        sender: str | None,
        state: str | None,
        reply: str,
        older_than: str | None,
        since: str | None,
        **others: Any,
    ) -> Any:
        selection = Selection(
            queue_ids=tuple(parse_id(text) for text in queue_ids),
            domain=_parse_domain(domain) if domain else "",
            recipient=recipient,
            sender=None if sender is None else sender.removeprefix("<").removesuffix(">"),
            state=None if state is None else _STATES[state],
            reply=reply,
            older_than_us=None if older_than is None else _parse_age(older_than),
            since_us=None if since is None else _parse_since(since),
        )
        return command(*args, selection=selection, **others)

    for decorate in (
        click.option(
            "--since",
            metavar="WHEN",
            help='Received or put on hold since: "2h", "04:05", "2026-02-03", "2026-02-03T04:05".',
        ),
        click.option("--older-than", metavar="AGE", help='Received longer ago, e.g. "2d".'),
        click.option(
            "--reply",
            default="",
            metavar="TEXT",
            help="Its code (550), or a text in it or the reason.",
        ),
        click.option("--state", type=click.Choice(list(_STATES)), help="Only these."),
        click.option("--sender", metavar="ADDRESS", help='Envelope sender; "<>" for notices.'),
        click.option("--recipient", default="", metavar="ADDRESS", help="One recipient."),
        click.option("--domain", default="", metavar="NAME", help="One backed-up domain."),
        click.argument("queue_ids", nargs=-1, metavar="[ID]..."),
    ):
        with_selection = decorate(with_selection)
    return with_selection


def is_unrestricted(selection: Selection) -> bool:
    """True when it means everything there is."""
    return selection == Selection()


def parse_id(text: str) -> int:
    """A queue id that was typed. Raises UsageError when it is none."""
    queue_id = parse_queue_id(text)
    if queue_id is None:
        raise click.UsageError(f"{text} is not a queue id; `posthouse queue list` shows them")
    return queue_id


def _parse_domain(text: str) -> str:
    try:
        return read_domain(text)
    except Wrong as wrong:
        raise click.UsageError(f"--domain: {wrong}") from wrong


def _parse_since(text: str) -> int:
    """An age, an ISO 8601 instant (local time when it names no zone), or a time of today."""
    if parse_duration(text) is not None:
        return _parse_age(text)
    try:
        if re.fullmatch(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?", text):
            at = datetime.combine(datetime.now().date(), _time.fromisoformat(text.rjust(5, "0")))
        else:
            at = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(
            f'--since: {text} is no time; write "2h", "2026-02-03", "2026-02-03T04:05" or "04:05"'
        ) from None
    return int(at.timestamp() * 1e6)


def _parse_age(text: str) -> int:
    age = parse_duration(text)
    if age is None:
        raise click.UsageError(f'--older-than: {text} is not a duration; write it like "2d", "90m"')
    return time.time_ns() // 1000 - int(age.total_seconds() * 1e6)
