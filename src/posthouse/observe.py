"""One typed function per log event, and the counters.

Text lines have Postfix's shape, so that fail2ban's postfix filter, pflogsumm
and the usual exporters read them as they are; the tag is therefore
`postfix/<daemon>[pid]` unless `log.tag` says otherwise (beside a real Postfix
use "postfix-posthouse", its own form for a second instance: fail2ban reads it,
pflogsumm with --syslog-name). JSON lines carry the same facts as members.

Lines are gathered and written once per turn of the event loop: a refused RCPT
costs microseconds. Text that came from a peer is escaped before it is written:
no control character of a stranger reaches a log.

Writing never waits: a pipe, terminal or syslog whose reader stands still fills
a bounded backlog; what exceeds it is lost, and counted in a line of its own as
soon as lines go out again.
"""

from __future__ import annotations

import collections
import errno
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from posthouse import tally

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
    guesses_refused: int = 0
    traps_hit: int = 0
    recipients_delivered: int = 0
    recipients_deferred: int = 0
    recipients_held: int = 0


# What is kept for a reader that stands still; about 5,000 lines.
BACKLOG_BYTES: Final = 1 << 20
# A pipe that is ready takes so much whole (PIPE_BUF on Linux).
_PIECE_BYTES: Final = 4096
_RETRY_SECONDS: Final = 0.2
_RECONNECT_SECONDS: Final = 1.0
SYSLOG_PATH: Final = "/dev/log"


class _Sink:
    """Where lines go. One per process, set up by `configure`."""

    def __init__(self) -> None:
        self.json = False
        self.tag = "postfix"
        self.host = socket.gethostname().split(".")[0]
        self.pid = os.getpid()
        self.fd: int | None = None
        self.path: str | None = None
        self.plain = False  # a file on a disk: no reader to wait for
        self.syslog: socket.socket | None = None
        self.to_syslog = False
        self.connect_at = 0.0
        self.pending: list[str] = []
        self.backlog: collections.deque[bytes] = collections.deque()
        self.backlog_bytes = 0
        self.schedule: Callable[[Callable[[], None]], object] | None = None
        self.later: Callable[[float, Callable[[], None]], object] | None = None
        self.scheduled = False
        self.retrying = False
        self.lost = 0
        self.second = -1
        self.prefixes: dict[str, str] = {}

    def put(self, daemon: str, text: str, fields: dict[str, Any] | None) -> None:
        if self.fd is None and not self.to_syslog:
            return
        self.pending.append(self.make_line(daemon, text, fields))
        if self.schedule is None:
            self.flush()
        elif not self.scheduled:
            self.scheduled = True
            self.schedule(self.flush)

    def put_text(self, *lines: tuple[str, str]) -> None:
        """Several text lines of one event, each (daemon, text)."""
        if self.fd is None and not self.to_syslog:
            return
        for daemon, text in lines:
            self.pending.append(self.prefix(daemon) + text)
        if self.schedule is None:
            self.flush()
        elif not self.scheduled:
            self.scheduled = True
            self.schedule(self.flush)

    def make_line(self, daemon: str, text: str, fields: dict[str, Any] | None) -> str:
        if not self.json:
            return self.prefix(daemon) + text
        record = {"time": time.time(), "daemon": daemon, "pid": self.pid}
        record.update(fields or {})
        record.setdefault("message", text)
        try:
            return _json.encode(record).decode()
        except UnicodeEncodeError:  # a lone surrogate: octets that were no UTF-8
            safe = {k: clean(v) if isinstance(v, str) else v for k, v in record.items()}
            safe = {k: [*map(clean, v)] if isinstance(v, tuple) else v for k, v in safe.items()}
            return _json.encode(safe).decode()

    def prefix(self, daemon: str) -> str:
        """What stands before the text; made once a second for each daemon name."""
        second = int(time.time())
        if second != self.second:
            self.second = second
            self.prefixes.clear()
        found = self.prefixes.get(daemon)
        if found is None:
            who = f"{self.tag}/{daemon}[{self.pid}]: "
            if self.to_syslog:
                found = "<22>" + who  # facility mail, level info
            else:
                stamp = time.strftime("%b %e %H:%M:%S", time.localtime(second))
                found = f"{stamp} {self.host} {who}"
            self.prefixes[daemon] = found
        return found

    def flush(self) -> None:
        """Write what is gathered; what cannot be written now is kept. Never waits."""
        self.scheduled = False
        lines, self.pending = self.pending, []
        if self.plain:
            if lines:
                self.write_file(lines)
            return
        if lines:
            self.keep(lines)
        if self.backlog:
            self.drain()
        if self.backlog and self.later is not None and not self.retrying:
            self.retrying = True
            self.later(_RETRY_SECONDS, self.retry)

    def retry(self) -> None:
        self.retrying = False
        self.flush()

    def describe_loss(self) -> str:
        text = f"warning: log: {self.lost} lines were lost while it could not be written"
        fields = {"event": "lines_lost", "count": self.lost}
        return self.make_line("alert", text, fields)

    def write_file(self, lines: list[str]) -> None:
        if self.fd is None:
            return
        count = len(lines)
        if self.lost:
            lines.insert(0, self.describe_loss())
        lines.append("")
        data = "\n".join(lines).encode("utf-8", "replace")
        while data:
            try:
                data = data[os.write(self.fd, data) :]
            except InterruptedError:
                continue
            except OSError:  # a full disk: mail goes on
                self.lost += count
                return
        self.lost = 0

    def keep(self, lines: list[str]) -> None:
        end = b"" if self.to_syslog else b"\n"
        for line in lines:
            data = line.encode("utf-8", "replace") + end
            if self.backlog_bytes + len(data) > BACKLOG_BYTES:
                self.lost += 1
            else:
                self.backlog.append(data)
                self.backlog_bytes += len(data)

    def drain(self) -> None:
        """Hand on the backlog until the reader would have us wait."""
        write = self.send_line if self.to_syslog else self.write_piece
        while self.backlog and write():
            if not self.backlog and self.lost:
                line, self.lost = self.describe_loss(), 0
                self.keep([line])

    def take(self) -> bytes:
        data = self.backlog.popleft()
        self.backlog_bytes -= len(data)
        return data

    def put_back(self, data: bytes) -> None:
        self.backlog.appendleft(data)
        self.backlog_bytes += len(data)

    def write_piece(self) -> bool:
        """Write a few whole lines to a pipe or terminal. False when it takes no more now."""
        if self.fd is None:
            return False
        # The descriptor may be shared with strangers, so it stays a blocking one: ask first.
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        if not poll.poll(0):
            return False
        pieces = [self.take()]
        size = len(pieces[0])
        while self.backlog and size + len(self.backlog[0]) <= _PIECE_BYTES:
            pieces.append(self.take())
            size += len(pieces[-1])
        data = b"".join(pieces)
        try:
            written = os.write(self.fd, data[:_PIECE_BYTES])
        except (BlockingIOError, InterruptedError):
            self.put_back(data)
            return False
        except OSError:  # the reader went away: mail goes on
            self.lost += len(pieces)
            return bool(self.backlog)
        if written < len(data):
            self.put_back(data[written:])
        return True

    def send_line(self) -> bool:
        """Send one line to syslog, connecting again if need be. False: not now."""
        if self.syslog is None and not self.connect_again():
            return False
        assert self.syslog is not None
        try:
            self.syslog.send(self.backlog[0], socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                self.take()
                self.lost += 1
                return True
            self.syslog.close()  # it was restarted: its socket is another one now
            self.syslog = None
            return self.connect_again()
        self.take()
        return True

    def connect_again(self) -> bool:
        """Try at most once a second."""
        now = time.monotonic()
        if now < self.connect_at:
            return False
        self.connect_at = now + _RECONNECT_SECONDS
        try:
            self.connect()
        except OSError:
            return False
        return True

    def connect(self) -> None:
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            fresh.connect(SYSLOG_PATH)
        except OSError:
            fresh.close()
            raise
        self.syslog = fresh

    def close(self) -> None:
        """Leave the place; what it did not take stays for the next one."""
        if self.path is not None and self.fd is not None:
            os.close(self.fd)
        if self.syslog is not None:
            self.syslog.close()
        self.fd, self.path, self.syslog = None, None, None
        self.plain = self.to_syslog = False

    def forget_backlog(self) -> None:
        self.backlog.clear()
        self.backlog_bytes = self.lost = 0


_own_stderr: dict[tuple[int, int], int] = {}


def _find_stderr() -> int:
    """Standard error as a descriptor that never blocks, where the system gives us one.

    A pipe or terminal is opened anew, so that the one we share with others stays as
    it is. Sockets cannot be; they are asked whether they are ready before each write.
    """
    status = os.fstat(2)
    if not (stat.S_ISFIFO(status.st_mode) or os.isatty(2)):
        return 2
    known = _own_stderr.get((status.st_dev, status.st_ino))
    if known is not None:
        return known
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open("/proc/self/fd/2", flags)
    except OSError:
        return 2
    for old in _own_stderr.values():
        os.close(old)
    _own_stderr.clear()
    _own_stderr[status.st_dev, status.st_ino] = fd
    return fd


_sink: Final = _Sink()
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
        _sink.fd = _find_stderr()
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


def clean(text: str) -> str:
    """Escape what a peer could use to forge or spoil a log line.

    Control characters become "?1B"; the rest that does not print, such as a change of
    the writing direction or a lone surrogate, becomes "?u202E".
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    return f"?{code:02X}" if code < 0x100 else f"?u{code:04X}"


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


def _tally_accepted(addresses: tuple[str, ...], size_bytes: int) -> None:
    """Count a message once for each domain it has a recipient in."""
    counts = [tally.of(addresses[0])] if len(addresses) == 1 else []
    for address in addresses[len(counts) :]:
        found = tally.of(address)
        if not any(one is found for one in counts):
            counts.append(found)
    for one in counts:
        one.accepted += 1
        one.accepted_bytes += size_bytes


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
