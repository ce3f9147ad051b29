"""Messages as an mbox or a Maildir, for mail programs. Large ones are streamed.

Both hold lines that end with LF: CR LF becomes LF, a CR elsewhere stays.
mboxrd (RFC 4155 leaves the quoting open; qmail's mbox(5) names this one): a line
of the message that begins with any number of ">" and "From " gets one more ">",
which a reader takes away again, so nothing is lost.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from posthouse.mail.queueid import format_queue_id
from posthouse.ports_spool import QueuedMessage

_FROM_LINE: Final = re.compile(rb"^(>*From )", re.MULTILINE)


def with_lf(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """CR LF to LF, also where a piece ends between the two."""
    kept = b""
    for piece in pieces:
        data = kept + piece
        kept = b"\r" if data.endswith(b"\r") else b""
        yield data[: len(data) - len(kept)].replace(b"\r\n", b"\n")
    if kept:
        yield kept


def quote_from(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """mboxrd quoting. Lines end with LF.

    One more ">" is as good behind the others as before them, so that of a line that has
    begun nothing waits but what may become "From ".
    """
    kept = b""
    open_line = True  # the next octets stand at the beginning of a line, or behind ">" there
    for piece in pieces:
        data = kept + piece
        last = data.rfind(b"\n") + 1
        word = data[last:].lstrip(b">")
        may_be = bool(last or open_line) and len(word) < 5 and b"From ".startswith(word)
        kept = word if may_be else b""
        data = data[: len(data) - len(kept)]
        first = 0 if open_line else data.find(b"\n") + 1 or len(data)
        yield data[:first] + _FROM_LINE.sub(rb">\1", data[first:])
        open_line = may_be
    yield kept


def format_mbox(message: QueuedMessage, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """One message of an mbox: the From_ line, the message quoted, an empty line."""
    sender = message.envelope_sender
    if not sender or not sender.isascii() or not sender.isprintable() or " " in sender:
        sender = "MAILER-DAEMON"
    when = time.asctime(time.gmtime(message.received_us // 1_000_000))
    yield f"From {sender} {when}\n".encode()
    last = b""
    for piece in quote_from(with_lf(pieces)):
        if piece:
            last = piece[-1:]
            yield piece
    yield b"\n" if last == b"\n" else b"\n\n"


class Mbox:
    """A new mbox file, mode 0600. Raises FileExistsError, OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = open(fd, "wb")  # noqa: SIM115 - closed by `close`

    def write(self, message: QueuedMessage, pieces: Iterable[bytes]) -> Path:
        """Append one message, or nothing of it when `pieces` fails half way."""
        begin = self._file.tell()
        try:
            for piece in format_mbox(message, pieces):
                self._file.write(piece)
        except BaseException:
            self._file.flush()
            self._file.seek(begin)
            self._file.truncate()
            raise
        return self._path

    def close(self) -> None:
        """Have it on disk."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        _flush_directory(self._path.parent)


class Maildir:
    """A Maildir, made when it is not there. Messages come into new/ whole or not at all.

    Names are unique: time, queue id, process and a count, and the host's name
    (cr.yp.to/proto/maildir.html). Raises OSError.
    """

    def __init__(self, path: Path) -> None:
        for part in (path, *(path / name for name in ("tmp", "new", "cur"))):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        self._host = socket.gethostname().replace("/", r"\057").replace(":", r"\072")
        self._count = 0

    def write(self, message: QueuedMessage, pieces: Iterable[bytes]) -> Path:
        """One message; its file in new/. Nothing is left when `pieces` fails half way."""
        self._count += 1
        queue_id = format_queue_id(message.queue_id)
        unique = f"{int(time.time())}.Q{queue_id}P{os.getpid()}C{self._count}.{self._host}"
        draft, final = self._path / "tmp" / unique, self._path / "new" / unique
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                for piece in with_lf(pieces):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, final)  # never over a file that is there
        finally:
            with contextlib.suppress(OSError):
                draft.unlink()
        return final

    def close(self) -> None:
        """Have the names on disk."""
        _flush_directory(self._path / "new")


def _flush_directory(directory: Path) -> None:
    holder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(holder)
    finally:
        os.close(holder)
