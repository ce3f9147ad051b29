"""One typed function per log event, and the counters.

Text lines have Postfix's shape, so that fail2ban's postfix filter, pflogsumm
and the usual exporters read them as they are; the tag is therefore
`postfix/<daemon>[pid]` unless `log.tag` says otherwise (beside a real Postfix
use "postfix-posthouse", its own form for a second instance: fail2ban reads it,
pflogsumm with --syslog-name). JSON lines carry the same facts as members.

Lines are gathered and written once per turn of the event loop, which never waits
for a reader (`log_sink`): a refused RCPT costs microseconds. Text that came from a
peer is escaped before it is written: no control character of a stranger reaches a log.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from posthouse import tally
from posthouse.log_sink import Sink, clean, find_stderr


class Counters(msgspec.Struct):
    """Since the process started. Each is a count of events; `*_bytes` of octets."""

    connections: int = 0
    connections_refused: int = 0
    messages_accepted: int = 0
    accepted_bytes: int = 0
    messages_proxied: int = 0
    proxied_bytes: int = 0
    recipients_refused: int = 0
    messages_refused: int = 0
    storage_refusals: int = 0
    guesses_refused: int = 0
    traps_hit: int = 0
    recipients_delivered: int = 0
    recipients_deferred: int = 0
    recipients_held: int = 0


_sink: Final = Sink()
counters: Final = Counters()


def configure(
    *,
    fmt: str = "text",
    to: str = "stderr",
    tag: str = "postfix",
    hostname: str | None = None,
) -> None:
    """Choose where and how to log. Call again after fork and to reopen a rotated file.

    fmt: "text" or "json". to: "stderr", "syslog" (/dev/log, facility mail) or a
    file path. Raises OSError when the place cannot be opened.
    """
    pid = os.getpid()
    if pid != _sink.pid:  # just forked: what waits there is our parent's to write
        _sink.pending.clear()
        _sink.forget_backlog()
        _sink.scheduled = _sink.retrying = False
    _sink.flush()
    _sink.close()
    _sink.json = fmt == "json"
    _sink.tag = tag
    _sink.pid = pid
    _sink.second = -1
    if hostname:
        _sink.host = hostname.split(".")[0]
    if to == "syslog":
        _sink.connect()
        _sink.to_syslog = True
    elif to == "stderr":
        _sink.fd = find_stderr()
    else:
        # Not to be kept waiting by a named pipe that nobody reads.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        _sink.fd = os.open(to, flags, 0o640)
        _sink.path = to
    if _sink.fd is not None:
        _sink.plain = stat.S_ISREG(os.fstat(_sink.fd).st_mode)
    if _sink.plain and _sink.backlog:
        left = [data.decode("utf-8", "replace").rstrip("\n") for data in _sink.backlog]
        _sink.backlog.clear()
        _sink.backlog_bytes = 0
        _sink.write_file(left)


def gather_with(
    schedule: Callable[[Callable[[], None]], object] | None,
    later: Callable[[float, Callable[[], None]], object] | None = None,
) -> None:
    """Write gathered lines through `schedule` (e.g. loop.call_soon); None: write at once.

    later: e.g. loop.call_later, for the next attempt when a reader stands still;
    without it the next line is the next attempt.
    """
    _sink.flush()
    _sink.schedule = schedule
    _sink.later = later
    _sink.retrying = False


def flush() -> None:
    """Write what is gathered, now."""
    _sink.flush()


# --------------------------------------------------------------------------- reception (smtpd)


def client_connected(name: str, address: str, port: int) -> None:
    """A client came in."""
    counters.connections += 1
    _sink.put(
        "smtpd",
        f"connect from {clean(name)}[{address}]",
        {"event": "connect", "client": address, "name": name, "port": port} if _sink.json else None,
    )


def client_gone(name: str, address: str, *, commands: int, messages: int) -> None:
    """A client left."""
    _sink.put(
        "smtpd",
        f"disconnect from {clean(name)}[{address}] commands={commands} messages={messages}",
        {
            "event": "disconnect",
            "client": address,
            "name": name,
            "commands": commands,
            "messages": messages,
        }
        if _sink.json
        else None,
    )


def connection_refused(address: str, reply: str) -> None:
    """A limit on connections was met; the client was told `reply`."""
    counters.connections_refused += 1
    _sink.put(
        "smtpd",
        f"NOQUEUE: reject: CONNECT from unknown[{address}]: {clean(reply)}; proto=SMTP",
        {"event": "refused_connection", "client": address, "reply": reply},
    )


def recipient_refused(
    name: str, address: str, reply: str, recipient: str, sender: str, proto: str, helo: str
) -> None:
    """RCPT got a 4xx or 5xx. `reply` is "550 5.1.1 text" without the address."""
    counters.recipients_refused += 1
    if reply.startswith("550 5.1.1"):
        tally.of(recipient).unknown += 1
    _sink.put(
        "smtpd",
        f"NOQUEUE: reject: RCPT from {clean(name)}[{address}]: {clean(reply)}; "
        f"from=<{clean(sender)}> to=<{clean(recipient)}> proto={clean(proto)} helo=<{clean(helo)}>",
        {
            "event": "refused_recipient",
            "client": address,
            "name": name,
            "reply": reply,
            "sender": sender,
            "recipient": recipient,
            "proto": proto,
            "helo": helo,
        }
        if _sink.json
        else None,
    )


def command_refused(
    name: str, address: str, stage: str, reply: str, proto: str, helo: str, sender: str | None
) -> None:
    """MAIL, DATA, end of data … got a 4xx or 5xx."""
    counters.messages_refused += 1
    origin = "" if sender is None else f" from=<{clean(sender)}>"
    _sink.put(
        "smtpd",
        f"NOQUEUE: reject: {clean(stage)} from {clean(name)}[{address}]: {clean(reply)};{origin} "
        f"proto={clean(proto)} helo=<{clean(helo)}>",
        {
            "event": "refused",
            "stage": stage,
            "client": address,
            "name": name,
            "reply": reply,
            "sender": sender,
            "proto": proto,
            "helo": helo,
        },
    )


def session_cut(name: str, address: str, after: str, why: str) -> None:
    """A session ended early: `why` is "timeout", "lost connection", "too many errors" …"""
    _sink.put(
        "smtpd",
        f"{clean(why)} after {clean(after)} from {clean(name)}[{address}]",
        {"event": "session_cut", "client": address, "name": name, "after": after, "why": why},
    )


def trap_hit(queue_id: str, address: str, recipient: str) -> None:
    """A message came for a honeypot; its client cannot tell."""
    counters.traps_hit += 1
    _sink.put(
        "smtpd",
        f"{queue_id}: trap: from {clean(address)}, to=<{clean(recipient)}>",
        {"event": "trap", "queue_id": queue_id, "client": address, "recipient": recipient},
    )


def message_accepted(
    queue_id: str,
    name: str,
    address: str,
    *,
    sender: str,
    size_bytes: int,
    recipients: Iterable[str],
    message_id: str,
) -> None:
    """A message is durable and was answered 250. Three lines, as Postfix has them."""
    counters.messages_accepted += 1
    counters.accepted_bytes += size_bytes
    addresses = tuple(recipients)
    _tally_accepted(addresses, size_bytes)
    if _sink.json:
        _sink.put(
            "smtpd",
            "accepted",
            {
                "event": "accepted",
                "queue_id": queue_id,
                "client": address,
                "name": name,
                "sender": sender,
                "size": size_bytes,
                "recipients": addresses,
                "message_id": message_id,
            },
        )
        return
    facts = f"from=<{clean(sender)}>, size={size_bytes}, nrcpt={len(addresses)}"
    _sink.put_text(
        ("smtpd", f"{queue_id}: client={clean(name)}[{address}]"),
        ("cleanup", f"{queue_id}: message-id={clean(message_id)}"),
        ("qmgr", f"{queue_id}: {facts} (queue active)"),
    )


def message_proxied(
    queue_id: str,
    name: str,
    address: str,
    *,
    reply: str,
    sender: str,
    recipients: Iterable[str],
    proto: str,
    helo: str,
    size_bytes: int,
) -> None:
    """The primary took a message within the session: one line a recipient, as Postfix has it.

    Postfix's smtpd_proxy_filter says "proxy-accept" where its filter took a message.
    """
    counters.messages_proxied += 1
    counters.proxied_bytes += size_bytes
    addresses = tuple(recipients)
    for one in _tallies(addresses):
        one.proxied += 1
        one.proxied_bytes += size_bytes
    if _sink.json:
        _sink.put(
            "smtpd",
            "proxied",
            {
                "event": "proxied",
                "queue_id": queue_id,
                "client": address,
                "name": name,
                "reply": reply,
                "sender": sender,
                "size": size_bytes,
                "recipients": addresses,
                "proto": proto,
                "helo": helo,
            },
        )
        return
    head = f"{queue_id}: proxy-accept: END-OF-MESSAGE from {clean(name)}[{address}]: {clean(reply)}"
    tail = f"proto={clean(proto)} helo=<{clean(helo)}>"
    _sink.put_text(
        *(
            ("smtpd", f"{head}; from=<{clean(sender)}> to=<{clean(recipient)}> {tail}")
            for recipient in addresses
        )
    )


def _tally_accepted(addresses: tuple[str, ...], size_bytes: int) -> None:
    for one in _tallies(addresses):
        one.accepted += 1
        one.accepted_bytes += size_bytes


def _tallies(addresses: tuple[str, ...]) -> list[tally.Tally]:
    """Once for each domain that a message has a recipient in."""
    counts = [tally.of(addresses[0])] if len(addresses) == 1 else []
    for address in addresses[len(counts) :]:
        found = tally.of(address)
        if not any(one is found for one in counts):
            counts.append(found)
    return counts


# --------------------------------------------------------------------------- relay (smtp)


def recipient_settled(
    queue_id: str,
    recipient: str,
    *,
    relay: str,
    delay_seconds: float,
    dsn: str,
    status: str,
    text: str,
    size_bytes: int = 0,
) -> None:
    """One recipient's outcome.

    status: "sent", "deferred" or "held"; relay: "host[ip]:port" or "none".
    """
    if status == "sent":
        counters.recipients_delivered += 1
        count = tally.of(recipient)
        count.delivered += 1
        count.delivered_bytes += size_bytes
        count.longest_us = max(count.longest_us, int(delay_seconds * 1e6))
    elif status == "deferred":
        counters.recipients_deferred += 1
    else:
        counters.recipients_held += 1
        tally.of(recipient).held += 1
    _sink.put(
        "smtp",
        f"{queue_id}: to=<{clean(recipient)}>, relay={clean(relay)}, delay={delay_seconds:.2f}, "
        f"delays=0/0/0/0, dsn={dsn}, status={status} ({clean(text)})",
        {
            "event": status,
            "queue_id": queue_id,
            "recipient": recipient,
            "relay": relay,
            "delay": round(delay_seconds, 3),
            "dsn": dsn,
            "text": text,
        }
        if _sink.json
        else None,
    )


def message_removed(queue_id: str) -> None:
    """The last recipient of a message is settled and its rows are gone."""
    fields = {"event": "removed", "queue_id": queue_id} if _sink.json else None
    _sink.put("qmgr", f"{queue_id}: removed", fields)


def next_hop_changed(next_hop: str, state: str, why: str) -> None:
    """A next hop went up, down or blocked."""
    _sink.put(
        "qmgr",
        f"next hop {clean(next_hop)} is {state}: {clean(why)}",
        {"event": "next_hop", "next_hop": next_hop, "state": state, "why": why},
    )


# --------------------------------------------------------------------------- everything else


def alert(kind: str, text: str, **facts: Any) -> None:
    """Something a person should see: a warning line now, and `posthouse status` while it lasts."""
    _sink.put(
        "alert",
        f"warning: {kind}: {clean(text)}",
        {"event": "alert", "kind": kind, "text": text, **facts},
    )


def note(daemon: str, text: str, **facts: Any) -> None:
    """A plain fact about the running of the node."""
    _sink.put(daemon, clean(text), {"event": "note", "text": text, **facts})


def trouble(daemon: str, text: str, error: BaseException | None = None, **facts: Any) -> None:
    """A failure that was handled; `error` is named with its type."""
    said = text if error is None else f"{text}: {type(error).__name__}: {error}"
    _sink.put(daemon, f"error: {clean(said)}", {"event": "error", "text": said, **facts})
