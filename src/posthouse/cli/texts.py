"""How messages, instants and sizes are shown to people and to programs."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from posthouse.log_sink import clean
from posthouse.mail.queueid import format_queue_id
from posthouse.ports_spool import QueuedMessage, QueuedRecipient, State


def tell_size(octets: int) -> str:
    """E.g. "812 B", "4.1 kB", "50 MB"."""
    size = float(octets)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def tell_utc(instant_us: int) -> str:
    """RFC 3339, UTC, to the microsecond."""
    return f"{datetime.fromtimestamp(instant_us / 1e6, UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def tell_local(instant_us: int) -> str:
    """Local time to the second, as a person reads it."""
    return f"{datetime.fromtimestamp(instant_us / 1e6).astimezone():%Y-%m-%d %H:%M:%S}"


def tell_span(seconds: float) -> str:
    """The two biggest units: "3d 4h", "5m 10s", "0s"."""
    left = max(0, int(seconds))
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"


def tell_age(instant_us: int) -> str:
    """How long ago."""
    return tell_span(time.time() - instant_us / 1e6)


def recipient_document(row: QueuedRecipient) -> dict[str, Any]:
    """One recipient for --json."""
    return {
        "address": row.address,
        "domain": row.domain,
        "state": row.state.name.lower(),
        "attempts": row.attempts,
        "next_attempt_at": tell_utc(row.due_us) if row.state is State.QUEUED else None,
        "held_at": tell_utc(row.due_us) if row.state is State.HELD else None,
        "reason": row.reason,
        "reply": row.reply,
    }


def message_document(message: QueuedMessage) -> dict[str, Any]:
    """One message for --json."""
    return {
        "id": format_queue_id(message.queue_id),
        "received_at": tell_utc(message.received_us),
        "size": message.size_bytes,
        "sender": message.envelope_sender,
        "client": {
            "address": message.client.address,
            "name": message.client.name,
            "helo": message.client.helo,
            "protocol": message.client.protocol,
        },
        "recipients": [recipient_document(row) for row in message.recipients],
    }


def message_lines(message: QueuedMessage) -> list[str]:
    """One message in a list."""
    head = (
        f"{format_queue_id(message.queue_id)}  {tell_local(message.received_us)}  "
        f"{tell_size(message.size_bytes):>7}  <{clean(message.envelope_sender)}>"
    )
    return [head, *(f"    {_recipient_line(row)}" for row in message.recipients)]


def _recipient_line(row: QueuedRecipient) -> str:
    told = f"{row.state.name.lower():<6}  {clean(row.address)}"
    if row.state is State.QUEUED and row.attempts:
        wait = row.due_us / 1e6 - time.time()
        when = f"again in {tell_span(wait)}" if wait > 0 else "due"
        told += f"  ({row.attempts} attempts, {when})"
    why = row.reply or row.reason
    return f"{told}  {clean(why)}" if why else told


def describe_message(message: QueuedMessage) -> list[str]:
    """One message on its own."""
    client = message.client
    lines = [
        f"id         {format_queue_id(message.queue_id)}",
        f"received   {tell_local(message.received_us)} ({tell_age(message.received_us)} ago)",
        f"size       {tell_size(message.size_bytes)} ({message.size_bytes:,} octets)",
        f"sender     <{clean(message.envelope_sender)}>",
        f"client     {clean(client.name)} [{client.address}] helo {clean(client.helo)}, "
        + ", ".join(filter(None, (client.protocol, client.tls))),
    ]
    for row in message.recipients:
        lines.append(f"recipient  {_recipient_line(row)}")
        if row.reply and row.reason and row.reason != row.reply:
            lines.append(f"           {clean(row.reason)}")
    return lines
