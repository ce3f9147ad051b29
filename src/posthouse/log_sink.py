"""Where log lines go: gathered, written once a turn of the event loop, never waited for.

A pipe, terminal or syslog whose reader stands still fills a bounded backlog; what exceeds
it is lost, and counted in a line of its own as soon as lines go out again. `observe` says
what is logged, this module how it gets out.
"""

from __future__ import annotations

import collections
import errno
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

_json = msgspec.json.Encoder()

# What is kept for a reader that stands still; about 5,000 lines.
BACKLOG_BYTES: Final = 1 << 20
# A pipe that is ready takes so much whole (PIPE_BUF on Linux).
_PIECE_BYTES: Final = 4096
_RETRY_SECONDS: Final = 0.2
_RECONNECT_SECONDS: Final = 1.0
SYSLOG_PATH: Final = "/dev/log"


class Sink:
    """Where lines go. One per process, set up by `observe.configure`."""

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


def find_stderr() -> int:
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
