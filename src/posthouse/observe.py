"""One typed function per log event, and the counters.

Text lines have Postfix's shape, so that fail2ban's postfix filter, pflogsumm
and the usual exporters read them as they are; the tag is therefore
`postfix/<daemon>[pid]` unless `log.tag` says otherwise (beside a real Postfix
use "postfix-posthouse", its own form for a second instance: fail2ban reads it,
pflogsumm with --syslog-name). JSON lines carry the same facts as members.

Lines are gathered and written once per turn of the event loop: a refused RCPT
costs microseconds. Text that came from a peer is escaped before it is written:
no control character of a stranger reaches a log.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

_json = msgspec.json.Encoder()


class Counters(msgspec.Struct):
    """Since the process started. Each is a count of events; `*_bytes` of octets."""

    connections: int = 0
    connections_refused: int = 0
    messages_accepted: int = 0
    accepted_bytes: int = 0
    recipients_refused: int = 0
    messages_refused: int = 0
    storage_refusals: int = 0
    recipients_delivered: int = 0
    recipients_deferred: int = 0
    recipients_held: int = 0


class _Sink:
    """Where lines go. One per process, set up by `configure`."""

    def __init__(self) -> None:
        self.json = False
        self.tag = "postfix"
        self.host = socket.gethostname().split(".")[0]
        self.pid = os.getpid()
        self.fd: int | None = None
        self.path: str | None = None
        self.syslog: socket.socket | None = None
        self.pending: list[str] = []
        self.schedule: Callable[[Callable[[], None]], object] | None = None
        self.scheduled = False
        self.lost = 0
        self.second = -1
        self.prefixes: dict[str, str] = {}

    def put(self, daemon: str, text: str, fields: dict[str, Any] | None) -> None:
        if self.fd is None and self.syslog is None:
            return
        if self.json:
            record = {"time": time.time(), "daemon": daemon, "pid": self.pid}
            record.update(fields or {})
            record.setdefault("message", text)
            self.pending.append(_json.encode(record).decode())
        else:
            self.pending.append(self.prefix(daemon) + text)
        if self.schedule is None:
            self.flush()
        elif not self.scheduled:
            self.scheduled = True
            self.schedule(self.flush)

    def prefix(self, daemon: str) -> str:
        """What stands before the text; made once a second for each daemon name."""
        second = int(time.time())
        if second != self.second:
            self.second = second
            self.prefixes.clear()
        found = self.prefixes.get(daemon)
        if found is None:
            who = f"{self.tag}/{daemon}[{self.pid}]: "
            if self.syslog is not None:
                found = "<22>" + who  # facility mail, level info
            else:
                stamp = time.strftime("%b %e %H:%M:%S", time.localtime(second))
                found = f"{stamp} {self.host} {who}"
            self.prefixes[daemon] = found
        return found

    def flush(self) -> None:
        self.scheduled = False
        lines, self.pending = self.pending, []
        if not lines:
            return
        if self.syslog is not None:
            for line in lines:
                try:
                    self.syslog.send(line.encode("utf-8", "replace"))
                except OSError:
                    self.lost += 1
            return
        lines.append("")
        data = "\n".join(lines).encode("utf-8", "replace")
        while data and self.fd is not None:
            try:
                data = data[os.write(self.fd, data) :]
            except InterruptedError:
                continue
            except OSError:  # full disk or a reader that went away: mail goes on
                self.lost += len(lines) - 1
                return


_sink: Final = _Sink()
counters: Final = Counters()

_ESCAPES: Final = {c: f"?{c:02X}" for c in (*range(0x20), 0x7F, *range(0x80, 0xA0))}


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
    _sink.flush()
    _sink.json = fmt == "json"
    _sink.tag = tag
    _sink.pid = os.getpid()
    _sink.second = -1
    if hostname:
        _sink.host = hostname.split(".")[0]
    if _sink.path is not None and _sink.fd is not None:
        os.close(_sink.fd)
    if _sink.syslog is not None:
        _sink.syslog.close()
    _sink.fd, _sink.path, _sink.syslog = None, None, None
    if to == "stderr":
        _sink.fd = 2
    elif to == "syslog":
        _sink.syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        _sink.syslog.connect("/dev/log")
    else:
        _sink.fd = os.open(to, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        _sink.path = to


def gather_with(schedule: Callable[[Callable[[], None]], object] | None) -> None:
    """Write gathered lines through `schedule` (e.g. loop.call_soon); None: write at once."""
    _sink.flush()
    _sink.schedule = schedule


def flush() -> None:
    """Write what is gathered, now."""
    _sink.flush()


def clean(text: str) -> str:
    """Escape what a peer could use to forge or spoil a log line."""
    if text.isprintable():
        return text
    return text.translate(_ESCAPES).replace("\u2028", "?").replace("\u2029", "?")


# --------------------------------------------------------------------------- reception (smtpd)


def client_connected(name: str, address: str, port: int) -> None:
    """A client came in."""
    counters.connections += 1
    _sink.put(
        "smtpd",
        f"connect from {name}[{address}]",
        {"event": "connect", "client": address, "name": name, "port": port} if _sink.json else None,
    )


def client_gone(name: str, address: str, *, commands: int, messages: int) -> None:
    """A client left."""
    _sink.put(
        "smtpd",
        f"disconnect from {name}[{address}] commands={commands} messages={messages}",
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
        f"NOQUEUE: reject: CONNECT from unknown[{address}]: {reply}; proto=SMTP",
        {"event": "refused_connection", "client": address, "reply": reply},
    )


def recipient_refused(
    name: str, address: str, reply: str, recipient: str, sender: str, proto: str, helo: str
) -> None:
    """RCPT got a 4xx or 5xx. `reply` is "550 5.1.1 text" without the address."""
    counters.recipients_refused += 1
    _sink.put(
        "smtpd",
        f"NOQUEUE: reject: RCPT from {name}[{address}]: {reply}; from=<{clean(sender)}> "
        f"to=<{clean(recipient)}> proto={proto} helo=<{clean(helo)}>",
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
        f"NOQUEUE: reject: {stage} from {name}[{address}]: {clean(reply)};{origin} "
        f"proto={proto} helo=<{clean(helo)}>",
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
        f"{why} after {after} from {name}[{address}]",
        {"event": "session_cut", "client": address, "name": name, "after": after, "why": why},
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
    put = _sink.put
    put("smtpd", f"{queue_id}: client={name}[{address}]", None)
    put("cleanup", f"{queue_id}: message-id={clean(message_id)}", None)
    put(
        "qmgr",
        f"{queue_id}: from=<{clean(sender)}>, size={size_bytes}, nrcpt={len(addresses)} "
        "(queue active)",
        None,
    )


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
) -> None:
    """One recipient's outcome.

    status: "sent", "deferred" or "held"; relay: "host[ip]:port" or "none".
    """
    if status == "sent":
        counters.recipients_delivered += 1
    elif status == "deferred":
        counters.recipients_deferred += 1
    else:
        counters.recipients_held += 1
    _sink.put(
        "smtp",
        f"{queue_id}: to=<{clean(recipient)}>, relay={relay}, delay={delay_seconds:.2f}, "
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
        f"next hop {next_hop} is {state}: {clean(why)}",
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
