"""What people are told, as text: alert mails, the digest of held mail, a notice as a document.

Mails are plain text in UTF-8, one line an alert: what happened, since when,
what to do. They say `Auto-Submitted: auto-generated` (RFC 3834 §5), so that no
vacation program answers. What a stranger wrote (senders, replies) is made
printable and short before it stands here. Instants are told in UTC: who reads
may sit elsewhere than the node.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any, Final

import msgspec

from posthouse.log_sink import clean
from posthouse.mail.queueid import format_queue_id
from posthouse.mail.trace import format_date
from posthouse.ports_alerts import Notice, StoredAlert
from posthouse.ports_spool import QueuedMessage, State

MAX_TEXT: Final = 300
"""Characters of a line that come from elsewhere; a mail line has room for 998 octets."""
MOST_GROUPS: Final = 40
_ADDRESS: Final = re.compile(r"<[^<>]*>")
HELD_BY_OPERATOR: Final = "held by operator"
"""The reason of a move h that a person made: nobody needs to be told."""
MOST_ROWS: Final = 50


def tell(instant_us: int) -> str:
    """To the second, UTC."""
    return f"{datetime.fromtimestamp(instant_us / 1e6, UTC):%Y-%m-%d %H:%M:%S} UTC"


def tell_span(span_us: int) -> str:
    """The two biggest units."""
    left = max(0, span_us // 1_000_000)
    parts = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"


def shorten(text: str, most: int = MAX_TEXT) -> str:
    """One printable line of at most `most` characters."""
    text = clean(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def alert_line(stored: StoredAlert) -> str:
    """One alert in one line."""
    alert = stored.alert
    text = shorten(alert.text)
    if stored.over_us is not None:
        lasted = tell_span(stored.over_us - alert.since_us)
        return f"over: {text}; from {tell(alert.since_us)} to {tell(stored.over_us)} ({lasted})"
    todo = f". {shorten(alert.what_to_do)}" if alert.what_to_do else ""
    return f"{alert.kind}: {text}; since {tell(alert.since_us)}{todo}"


def notice_document(notice: Notice) -> dict[str, Any]:
    """For webhook and command; members may be added, none taken away."""
    return {
        "node": notice.node,
        "notice": notice.number,
        "sent_at": _rfc3339(notice.made_us),
        "alerts": [alert_document(stored) for stored in notice.alerts],
    }


def alert_document(stored: StoredAlert) -> dict[str, Any]:
    """One alert. state: "standing" or "over"."""
    alert = stored.alert
    return {
        "id": stored.number,
        "state": "standing" if stored.over_us is None else "over",
        "kind": alert.kind,
        "subject": alert.subject,
        "text": alert.text,
        "what_to_do": alert.what_to_do,
        "since": _rfc3339(alert.since_us),
        "raised_at": _rfc3339(stored.raised_us),
        "over_at": None if stored.over_us is None else _rfc3339(stored.over_us),
    }


def _rfc3339(instant_us: int) -> str:
    return f"{datetime.fromtimestamp(instant_us / 1e6, UTC):%Y-%m-%dT%H:%M:%S}Z"


# --------------------------------------------------------------------------- mails


def format_notice(notice: Notice) -> tuple[str, str]:
    """Subject and text of an alert mail."""
    standing = [stored for stored in notice.alerts if stored.over_us is None]
    over = [stored for stored in notice.alerts if stored.over_us is not None]
    first = (standing or over)[0]
    about = f"{first.alert.kind} {first.alert.subject}".strip()
    subject = about if standing else f"over: {about}"
    if len(notice.alerts) > 1:
        subject += f" and {len(notice.alerts) - 1} more"
    lines = [*map(alert_line, standing), *map(alert_line, over)]
    text = "\n\n".join(lines)
    footer = (
        f"Posthouse on {notice.node}. `posthouse status` and `posthouse alerts` show more there."
    )
    return f"[{notice.node}] {shorten(subject, 150)}", f"{text}\n\n-- \n{footer}\n"


def format_mail(*, node: str, to: str, subject: str, text: str, now_us: int, token: str) -> bytes:
    """The octets of a mail from this node, CR LF at line ends. token: makes its id unique."""
    mail = EmailMessage(policy=SMTP)
    mail["Date"] = format_date(now_us // 1_000_000).removesuffix(" (UTC)")
    mail["From"] = f"Posthouse <postmaster@{node}>"
    mail["To"] = to
    mail["Subject"] = subject
    mail["Message-ID"] = f"<{token}@{node}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(text)
    return mail.as_bytes()


# --------------------------------------------------------------------------- the digest


class HeldRow(msgspec.Struct, frozen=True, kw_only=True):
    """One recipient on hold, with what is told of it."""

    queue_id: int
    domain: str
    recipient: str
    sender: str
    client: str
    why: str
    held_us: int
    size_bytes: int


def held_rows(message: QueuedMessage) -> Iterator[tuple[int, HeldRow]]:
    """The recipients of a message that were put on hold for them, by seq."""
    client = message.client
    for row in message.recipients:
        if row.state is State.HELD and row.reason != HELD_BY_OPERATOR:
            yield (
                row.seq,
                HeldRow(
                    queue_id=message.queue_id,
                    domain=row.domain,
                    recipient=row.address,
                    sender=message.envelope_sender,
                    client=f"{client.name}[{client.address}]",
                    why=_tell_why(row.reply, row.reason),
                    held_us=row.due_us,
                    size_bytes=message.size_bytes,
                ),
            )


def _tell_why(reply: str, reason: str) -> str:
    if reply and reason and reason not in reply:
        return f"{reason}: {reply}"
    return reply or reason


def format_digest(*, node: str, rows: Sequence[HeldRow], new: int, held: int) -> tuple[str, str]:
    """Subject and text. rows: the first of the `new` ones; held: on hold in all."""
    groups: dict[tuple[str, str], int] = {}
    for row in rows:
        # The reply names its recipient as a rule; the group is about what it says of it.
        key = (row.domain, shorten(_ADDRESS.sub("<…>", row.why), 120))
        groups[key] = groups.get(key, 0) + 1
    most = sorted(groups.items(), key=lambda item: -item[1])
    lines = [
        f"{new:,} recipients were put on hold since the last digest; {held:,} are on hold in all.",
        "Nothing was bounced: they wait here until you decide.",
        "",
        "How many, for which domain, why:",
        *(f"  {count:>6,}  {domain}  {why}" for (domain, why), count in most[:MOST_GROUPS]),
        *([f"  … and {len(most) - MOST_GROUPS} other reasons"] if len(most) > MOST_GROUPS else []),
        "",
        "The first of them (the sender is what the client claimed, and may be forged):",
        *_row_lines(rows[:MOST_ROWS]),
        *([f"  … and {new - MOST_ROWS:,} more"] if new > MOST_ROWS else []),
        "",
        "What you can do, on the node:",
        *_how_to_act(rows),
    ]
    subject = f"[{node}] {new:,} recipients put on hold"
    return subject, "\n".join(lines) + "\n"


def _row_lines(rows: Iterable[HeldRow]) -> Iterator[str]:
    for row in rows:
        sender = shorten(row.sender, 100) or "(nobody)"
        yield (
            f"  {format_queue_id(row.queue_id)}  to {shorten(row.recipient, 100)}, claimed from "
            f"{sender} by {shorten(row.client, 100)}, held {tell(row.held_us)}"
        )
        yield f"      {shorten(row.why)}"


def _how_to_act(rows: Sequence[HeldRow]) -> Iterator[str]:
    domain = rows[0].domain if rows else "example.com"
    code = next((row.why.rpartition(": ")[2][:3] for row in rows if _code_of(row.why)), "550")
    first = format_queue_id(rows[0].queue_id) if rows else "ID"
    yield f"  posthouse queue list --state held --domain {domain}"
    yield f"  posthouse queue show {first}"
    yield f"  posthouse queue release --domain {domain} --reply {code} --dry-run  (lets it go)"
    yield f"  posthouse queue redirect postmaster@{domain} {first}"
    yield f"  posthouse queue export --state held --domain {domain} -o held/"
    yield f"  posthouse queue delete --state held --domain {domain}   (asks first)"


def _code_of(why: str) -> bool:
    code = why.rpartition(": ")[2][:3]
    return len(code) == 3 and code.isdigit() and code[0] == "5"
